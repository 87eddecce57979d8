"""The commands and their options; what they do is in the modules beside."""

from __future__ import annotations

from typing import Annotated

import typer

from partime_async.cli.arguments import (
    AllowHost,
    AsJson,
    Balance,
    Clip,
    Devices,
    Host,
    IceWay,
    Loss,
    Model,
    Optimizer,
    Port,
    Rule,
    Stages,
    TlsCert,
    TlsKey,
    TlsPasswordFile,
    TokenFile,
    WithTraceback,
)
from partime_async.cli.doctor import show_doctor, version_of
from partime_async.cli.evaluate import evaluate as compare_rules
from partime_async.cli.lessons import LEARNING, LearnOptions, refuse_idle
from partime_async.cli.options import (
    CutOptions,
    LoopKind,
    RunOptions,
    SizeRule,
    check_files,
    parse_shape,
    parse_size,
    size_to_compare,
)
from partime_async.cli.plan import PlanOptions, show_models, show_plan
from partime_async.cli.run import run as run_job
from partime_async.cli.style import errors_told
from partime_async.errors import ConfigurationError
from partime_async.overflow import FeedOptions, Overflow
from partime_async.run import OnError

app = typer.Typer(
    help="Run neural networks over live streams, frame by frame, cut into stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _check_learns(context: typer.Context, learn: str | None) -> None:
    if learn is None:
        sources = {name: context.get_parameter_source(name) for name in LEARNING}
        refuse_idle([name for name, source in sources.items() if source is not None and source.name != "DEFAULT"])


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"partime-async {version_of('partime-async')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    tells_version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Hold what goes before a command."""


@app.command()
def run(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, camera, camera:1, scene, tcp://127.0.0.1:9000 (also udp, unix, ws, mqtt; tcps, wss, "
            "mqtts with TLS), or your own 'module:callable'."
        ),
    ] = "scene",
    model: Model = "conv-a",
    stages: Stages = "auto",
    balance: Balance = None,
    device: Devices = None,
    size: Annotated[
        str,
        typer.Option(
            metavar="WxH|auto|source", help="Of the frames; auto: about as many pixels as the model was made for."
        ),
    ] = SizeRule.AUTO.value,
    realtime: Annotated[bool, typer.Option("--realtime", help="At the source's own pace, as a camera would.")] = False,
    overflow: Annotated[
        Overflow | None,
        typer.Option(help="When frames come too fast; by default latest for what is live, block for what is not."),
    ] = None,
    max_age: Annotated[float | None, typer.Option(metavar="SECONDS", help="Drop frames that are older.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", "-n", min=1, help="Stop after this many.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the processed video: .mp4, .mkv, ...")
    ] = None,
    learn: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="Learn while running: next-frame, itself, or given (by the source)."),
    ] = None,
    spare: Annotated[
        bool, typer.Option("--spare", help="Learn only where no other frame has to wait for it, and from one in ten.")
    ] = False,
    loss: Loss = "mse",
    optimizer: Optimizer = "sgd:lr=0.01",
    rule: Rule = "pipedream",
    clip: Clip = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Begin with these weights, by torch.save or .safetensors; optimisers start afresh."
        ),
    ] = None,
    save: Annotated[str | None, typer.Option(metavar="FILE", help="Keep the weights in the end: .safetensors.")] = None,
    seed: Annotated[int, typer.Option(help="Of the network's weights and of the scene.")] = 0,
    on_error: Annotated[OnError, typer.Option(help="What a frame that fails in the network does.")] = (
        OnError.FAIL_FRAME
    ),
    loop: Annotated[LoopKind | None, typer.Option(help="The event loop; uvloop where there is one.")] = None,
    as_json: AsJson = False,
    traceback: WithTraceback = False,
) -> None:
    """Run a network over a source, show how it goes, and sum up.

    Ctrl-C ends it with a summary and exit code 130. Exit codes: 1 if it broke on its way, 2 if it could not start.
    """
    with errors_told(with_traceback=traceback):
        is_live = realtime or source.partition(":")[0] == "camera"
        policy = overflow or (Overflow.LATEST if is_live else Overflow.BLOCK)
        # Said before seconds are spent on planning, or hours on learning.
        FeedOptions.checked(policy, max_age, 1, 1)
        _check_learns(context, learn)
        check_files(weights, save)
        options = RunOptions(
            source=source,
            model=model,
            cut=CutOptions.parsed(stages, balance, device or ()),
            size=parse_size(size),
            is_realtime=realtime,
            overflow=policy,
            max_age_s=max_age,
            frames=frames,
            output=output,
            seed=seed,
            on_error=on_error,
            learning=(
                None if learn is None else LearnOptions.parsed(learn, loss, optimizer, rule, clip, is_spare=spare)
            ),
            weights=weights,
            save=save,
        )
        code = run_job(options, loop=loop, is_json=as_json, with_traceback=traceback)
    raise typer.Exit(code)


@app.command()
def evaluate(
    source: Annotated[
        str, typer.Argument(help="A video file, scene, or your own 'module:callable': the same frames every time.")
    ] = "scene",
    model: Model = "conv-a",
    stages: Annotated[int, typer.Option("--stages", "-s", min=1, help="How many stages learn.")] = 4,
    balance: Balance = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH|auto|source", help="Of the frames; 32x32 for pictures, if nothing is said."),
    ] = None,
    frames: Annotated[int, typer.Option("--frames", "-n", min=2, help="How many to learn from.")] = 300,
    learn: Annotated[str, typer.Option(metavar="WHAT", help="next-frame, itself, or given.")] = "next-frame",
    loss: Loss = "mse",
    optimizer: Optimizer = "sgd:lr=0.01",
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="RULE", help="To compare; repeat it. Also skip: every N-th frame only."),
    ] = None,
    clip: Clip = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Draw the curves: .png, .svg or .pdf.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the network's weights and of the scene.")] = 0,
    as_json: AsJson = False,
    traceback: WithTraceback = False,
) -> None:
    """Learn from the same stream by several update rules, the network cut alike for all, and compare the losses."""
    with errors_told(with_traceback=traceback):
        options = RunOptions(
            source=source,
            model=model,
            cut=CutOptions.parsed(str(stages), balance, ()),
            size=size_to_compare(source, size),
            is_realtime=False,
            overflow=Overflow.BLOCK,
            max_age_s=None,
            frames=frames,
            output=output,
            seed=seed,
            on_error=OnError.STOP,
            learning=LearnOptions.parsed(learn, loss, optimizer, "exact", clip),
        )
        compare_rules(options, rule or ["exact", "pipedream", "partime", "replay", "skip"], is_json=as_json)


@app.command()
def demo(
    host: Host = "127.0.0.1",
    port: Port = 8765,
    token_file: TokenFile = None,
    allow_host: AllowHost = None,
    ice: IceWay = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_password_file: TlsPasswordFile = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page right away.")] = True,
    device: Devices = None,
    seed: Annotated[int, typer.Option(help="Of the networks' weights.")] = 0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what happens, a line each, on stderr.")] = False,
    loop: Annotated[LoopKind | None, typer.Option(help="The event loop; uvloop where there is one.")] = None,
    as_json: AsJson = False,
    traceback: WithTraceback = False,
) -> None:
    """Watch a network learn from your camera, or from a moving scene, on a page in your browser. Ctrl-C stops it."""
    with errors_told(with_traceback=traceback):
        from partime_async.cli.demo import DemoOptions
        from partime_async.cli.demo import demo as run_demo  # only here: it needs the extra ``serve``
        from partime_async.cli.reach import Reach
        from partime_async.cli.serve import end_process

        options = DemoOptions(
            reach=Reach(host, port, token_file, tuple(allow_host or ()), (), ice, tls_cert, tls_key, tls_password_file),
            opens_browser=browser,
            devices=tuple(device or ("cpu",)),
            seed=seed,
            is_verbose=verbose,
        )
        code = run_demo(options, loop=loop, is_json=as_json)
    end_process(code)


@app.command()
def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A name that `partime-async models` lists, or your own 'module:factory'.")
    ] = "conv-a",
    stages: Stages = "auto",
    balance: Balance = None,
    device: Devices = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Of the frames, if they are pictures.")] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Of the frames, if not; with the batch dimension.")
    ] = None,
    learn: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="Learn from all clients: next-frame, itself, or given (by the clients)."),
    ] = None,
    own_head: Annotated[
        int, typer.Option(metavar="N", min=0, help="The last N layers are each client's own, and they alone learn.")
    ] = 0,
    loss: Loss = "mse",
    optimizer: Optimizer = "sgd:lr=0.01",
    rule: Rule = "pipedream",
    clip: Clip = None,
    label_delay: Annotated[
        int, typer.Option(metavar="FRAMES", min=0, help="Learn so many frames later: targets may come that late.")
    ] = 0,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Begin with these weights, by torch.save or .safetensors.")
    ] = None,
    save: Annotated[str | None, typer.Option(metavar="FILE", help="Keep the weights in the end: .safetensors.")] = None,
    seed: Annotated[int, typer.Option(help="Of the network's weights.")] = 0,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    token_file: TokenFile = None,
    allow_host: AllowHost = None,
    origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Pages elsewhere that may use it. Repeat it.")
    ] = None,
    max_clients: Annotated[int, typer.Option(min=1, help="At the same time.")] = 16,
    max_duration: Annotated[float, typer.Option(metavar="SECONDS", min=1.0, help="Of one visit.")] = 43200.0,
    max_age: Annotated[float | None, typer.Option(metavar="SECONDS", help="Drop frames that are older.")] = None,
    ice: IceWay = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_password_file: TlsPasswordFile = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="With a page for browsers.")] = True,
    loop: Annotated[LoopKind | None, typer.Option(help="The event loop; uvloop where there is one.")] = None,
    as_json: AsJson = False,
    traceback: WithTraceback = False,
) -> None:
    """Serve a network to browsers (WebRTC) and programs (WebSocket), as one pipeline that all of them share.

    Only this machine is served unless there is a token. Ctrl-C stops it: exit code 0.
    """
    with errors_told(with_traceback=traceback):
        from partime_async.cli.reach import Reach
        from partime_async.cli.serve import ServeOptions, end_process
        from partime_async.cli.serve import serve as serve_model  # only here: it needs the extra ``serve``

        _check_learns(context, learn)
        parsed = None if size is None else parse_size(size)
        if isinstance(parsed, SizeRule):
            raise ConfigurationError(f"--size is {size!r}, and there is no source. Give width and height.")
        options = ServeOptions(
            plan=PlanOptions(
                model=model,
                cut=CutOptions.parsed(stages, balance, device or ()),
                size=parsed,
                shape=None if shape is None else parse_shape(shape),
                is_measured=False,
            ),
            learning=(
                None
                if learn is None
                else LearnOptions.parsed(learn, loss, optimizer, rule, clip, label_delay=label_delay)
            ),
            loss=loss,
            own_head=own_head,
            reach=Reach(
                host,
                port,
                token_file,
                tuple(allow_host or ()),
                tuple(origin or ()),
                ice,
                tls_cert,
                tls_key,
                tls_password_file,
            ),
            max_clients=max_clients,
            max_duration_s=max_duration,
            max_age_s=max_age,
            has_page=page,
            weights=weights,
            save=save,
            seed=seed,
        )
        code = serve_model(options, loop=loop, is_json=as_json)
    end_process(code)


@app.command()
def plan(
    model: Model = "conv-a",
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Of the frames, if they are pictures.")] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Of the frames, if not; with the batch dimension.")
    ] = None,
    stages: Stages = "auto",
    balance: Balance = None,
    device: Devices = None,
    measure: Annotated[bool, typer.Option("--measure", help="Also run the plan for a moment.")] = False,
    as_json: AsJson = False,
    traceback: WithTraceback = False,
) -> None:
    """Measure a network's layers here, and show how it is best cut into stages."""
    with errors_told(with_traceback=traceback):
        parsed = None if size is None else parse_size(size)
        if isinstance(parsed, SizeRule):
            raise ConfigurationError(f"--size is {size!r}, and there is no source. Give width and height.")
        options = PlanOptions(
            model=model,
            cut=CutOptions.parsed(stages, balance, device or ()),
            size=parsed,
            shape=None if shape is None else parse_shape(shape),
            is_measured=measure,
        )
        show_plan(options, is_json=as_json)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the networks that come with the package."""
    show_models(is_json=as_json)


@app.command()
def doctor(as_json: AsJson = False, traceback: WithTraceback = False) -> None:
    """Look at what this machine has, and run a small pipeline on it. Exit code 1 if something needed is missing."""
    with errors_told(with_traceback=traceback):
        code = show_doctor(is_json=as_json)
    raise typer.Exit(code)
