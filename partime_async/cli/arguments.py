"""The options that several commands take, each with the same words."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", "-m", help="A name that `partime-async models` lists, or your own 'module:factory'.")
]
Stages = Annotated[str, typer.Option("--stages", "-s", metavar="N|auto", help="How many stages; auto: as many as pay.")]
Balance = Annotated[str | None, typer.Option(metavar="N,N,...", help="Layers per stage, instead of --stages.")]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", "-d", metavar="DEVICE", help="Of each stage in turn: cpu, cuda:0, ... Repeat it."),
]
Host = Annotated[
    str,
    typer.Option(
        help="Where to listen. Beyond this machine it takes a --token-file, and --tls-cert: browsers give their camera "
        "to pages of https only."
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")]
TokenFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="What clients must know; made if it does not exist.")
]
AllowHost = Annotated[list[str] | None, typer.Option(metavar="NAME", help="A name that the server goes by. Repeat it.")]
IceWay = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="loopback, host, or a JSON file of STUN and TURN servers; default: as --host."),
]
TlsCert = Annotated[
    str | None, typer.Option(metavar="FILE", help="Serve https with this certificate (PEM); a renewed one is noticed.")
]
TlsKey = Annotated[str | None, typer.Option(metavar="FILE", help="Its key, if that is in another file.")]
TlsPasswordFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="The password of that key, if it is encrypted: a file with it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
WithTraceback = Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")]
Loss = Annotated[str, typer.Option(metavar="NAME", help="mse, l1, huber or cross-entropy.")]
Optimizer = Annotated[
    str,
    typer.Option(
        metavar="NAME:K=V,...",
        help="sgd, adam, adamw, rmsprop, adagrad, nadam or radam, with torch's own options: "
        "sgd:lr=0.1,momentum=0.9 or adam:betas=0.9/0.99.",
    ),
]
Rule = Annotated[
    str, typer.Option(metavar="RULE", help="pipedream, partime, replay, exact, or a graph and a lag: stash:2.")
]
Clip = Annotated[float | None, typer.Option(metavar="NORM", help="Clip each stage's gradient to this norm.")]
