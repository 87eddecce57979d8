"""The commands and their options; what they do is in the modules beside."""

from __future__ import annotations

from typing import Annotated

import typer

from partime_async.cli.doctor import show_doctor
from partime_async.cli.options import CutOptions, LoopKind, RunOptions, SizeRule, parse_shape, parse_size
from partime_async.cli.plan import PlanOptions, show_models, show_plan
from partime_async.cli.run import run as run_job
from partime_async.cli.style import errors_told
from partime_async.errors import ConfigurationError
from partime_async.feed import FeedOptions, Overflow
from partime_async.run import OnError

app = typer.Typer(
    help="Run neural networks over live streams, frame by frame, cut into stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str, typer.Option("--model", "-m", help="A name that `partime-async models` lists, or your own 'module:factory'.")
]
Stages = Annotated[str, typer.Option("--stages", "-s", metavar="N|auto", help="How many stages; auto: as many as pay.")]
Balance = Annotated[str | None, typer.Option(metavar="N,N,...", help="Layers per stage, instead of --stages.")]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", "-d", metavar="DEVICE", help="Of each stage in turn: cpu, cuda:0, ... Repeat it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
WithTraceback = Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")]


@app.command()
def run(
    source: Annotated[
        str, typer.Argument(help="A video file, camera, camera:1, scene, or your own 'module:callable'.")
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
        FeedOptions.checked(policy, max_age, 1, 1)  # said before seconds are spent on planning
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
        )
        code = run_job(options, loop=loop, is_json=as_json, with_traceback=traceback)
    raise typer.Exit(code)


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
