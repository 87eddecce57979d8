"""`partime-async doctor`: what this machine has, what is missing, and whether a pipeline works on it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from partime_async.cli.style import GOOD, LABEL, WARN, rate
from partime_async.devices import cuda_device_count, usable_cores
from partime_async.models import deep_conv
from partime_async.offload import in_thread
from partime_async.pipeline import Pipeline

_TEST_S = 2.0
_ENCODERS = ("libx264", "mpeg4", "libvpx")
_DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg")


class Verdict(StrEnum):
    """What a finding means."""

    GOOD = "ok"
    OPTIONAL = "optional"  # works without it
    BAD = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What.
        verdict: Whether it is as it should be.
        detail: What was found.
        remedy: What to do, if anything.
    """

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def show_doctor(*, is_json: bool) -> int:
    """Look at the machine, print the findings, and return the exit code: 1 if something needed is missing."""
    console = Console(highlight=False)
    if is_json:
        findings = list(examine())
        is_fit = all(finding.verdict is not Verdict.BAD for finding in findings)
        told = {"type": "doctor", "ok": is_fit, "findings": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        with console.status("looking, and running a pipeline for two seconds ..."):
            findings = list(examine())
        is_fit = all(finding.verdict is not Verdict.BAD for finding in findings)
        console.print(_table(findings))
        console.print(
            Text("Everything needed is here.", style=GOOD)
            if is_fit
            else Text("Something needed is missing.", style="bold red")
        )
    return 0 if is_fit else 1


def _table(findings: list[Finding]) -> Table:
    marks = {Verdict.GOOD: ("ok", GOOD), Verdict.OPTIONAL: ("--", WARN), Verdict.BAD: ("!!", "bold red")}
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style=LABEL, no_wrap=True)
    table.add_column()
    for finding in findings:
        detail = Text(finding.detail)
        if finding.remedy:
            detail.append(f"\n{finding.remedy}", style=marks[finding.verdict][1])
        table.add_row(Text(*marks[finding.verdict]), finding.name, detail)
    return table


def examine() -> Iterator[Finding]:
    """Look at one thing after another; the last takes two seconds."""
    yield Finding("python", Verdict.GOOD, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("torch", Verdict.GOOD, f"{torch.__version__}, {torch.get_num_threads()} intra-op threads by default")
    yield _event_loop()
    yield _cores()
    yield _cuda()
    yield Finding("cli", Verdict.GOOD, f"typer {version_of('typer')}, rich {version_of('rich')}")
    yield from _video()
    yield _self_test()


def version_of(package: str) -> str:
    """Return the version of an installed package, in words."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _event_loop() -> Finding:
    if find_spec("uvloop") is None:
        remedy = "" if sys.platform == "win32" else "pip install uvloop makes the event loop faster"
        return Finding("event loop", Verdict.OPTIONAL, "asyncio", remedy)
    return Finding("event loop", Verdict.GOOD, f"uvloop {version_of('uvloop')}")


def _cores() -> Finding:
    usable, present = usable_cores(), os.cpu_count() or 1
    of_all = "" if usable == present else f" of {present}"
    if usable == 1:
        return Finding(
            "cores", Verdict.OPTIONAL, f"1 usable{of_all}", "stages on the CPU only run at the same time on several"
        )
    return Finding("cores", Verdict.GOOD, f"{usable} usable{of_all}: up to {usable} stages on the CPU pay")


def _cuda() -> Finding:
    count = cuda_device_count()
    if count:
        return Finding("cuda", Verdict.GOOD, ", ".join(f"cuda:{index}" for index in range(count)))
    if torch.version.cuda is None:
        return Finding("cuda", Verdict.OPTIONAL, "none: this torch is a build without CUDA")
    return Finding("cuda", Verdict.OPTIONAL, f"none: torch is built for CUDA {torch.version.cuda}, but finds no device")


def _video() -> Iterator[Finding]:
    if find_spec("av") is None:
        remedy = "pip install 'partime-async[video]' reads and writes videos and cameras"
        yield Finding("video", Verdict.OPTIONAL, "PyAV is not installed", remedy)
        return
    import av

    def has(name: str, mode: str) -> bool:
        try:
            av.codec.Codec(name, mode)  # type: ignore[arg-type]
        except ValueError:
            return False
        return True

    yield Finding("video", Verdict.GOOD, f"PyAV {av.__version__}")
    written = [name for name in _ENCODERS if has(name, "w")]
    yield Finding(
        "  writes",
        Verdict.GOOD if written else Verdict.OPTIONAL,
        ", ".join(written) or "none of the usual codecs",
        "" if written else "use a build of PyAV from PyPI for --output",
    )
    yield Finding("  reads", Verdict.GOOD, ", ".join(name for name in _DECODERS if has(name, "r")))


def _self_test() -> Finding:
    try:
        outcome = asyncio.run(_race())
    except Exception as error:
        return Finding("self-test", Verdict.BAD, f"{type(error).__name__}: {error}", "report this with the lines above")
    if not outcome.is_equal:
        return Finding(
            "self-test",
            Verdict.BAD,
            "two stages gave other numbers than the network in one piece",
            "report this with the lines above",
        )
    detail = (
        f"two stages give the same numbers as the network in one piece, at {rate(outcome.throughput)} "
        f"({outcome.throughput / outcome.alone:.2f}x one core)"
    )
    return Finding("self-test", Verdict.GOOD, detail)


@dataclass(frozen=True, slots=True)
class _Outcome:
    is_equal: bool
    throughput: float
    alone: float


async def _race() -> _Outcome:
    """Run the same frames through the network and through two stages of it."""
    torch.manual_seed(0)
    module = deep_conv(layers=10).eval()
    frames = [torch.rand(1, 3, 32, 32) for _ in range(8)]
    expected, alone = await in_thread(lambda: _alone(module, frames), name="doctor")
    async with Pipeline(module, frames[0], stages=2, devices=["cpu"]) as pipeline:
        is_equal, count, began = True, 0, time.perf_counter()
        async for result in pipeline.stream(_repeated(frames, _TEST_S)):
            assert isinstance(result.output, Tensor)
            is_equal = is_equal and torch.equal(result.output, expected[result.sequence % len(frames)])
            count += 1
        return _Outcome(is_equal, count / (time.perf_counter() - began), alone)


def _repeated(frames: Sequence[Tensor], seconds: float) -> Iterator[Tensor]:
    end = time.perf_counter() + seconds
    for frame in itertools.cycle(frames):
        if time.perf_counter() > end:
            return
        yield frame


def _alone(module: nn.Module, frames: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """Return the outputs of the network in one piece, and its frames/s on one core."""
    # Both are the calling thread's own; reading the count back is what pins it.
    torch.set_num_threads(1)
    torch.get_num_threads()
    with torch.no_grad():
        expected = [module(frame) for frame in frames]
        count, began = 0, time.perf_counter()
        for frame in _repeated(frames, _TEST_S / 4):
            module(frame)
            count += 1
        return expected, count / (time.perf_counter() - began)
