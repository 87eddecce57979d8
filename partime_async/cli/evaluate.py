"""`partime-async evaluate`: the same stream, learned by one update rule after another, and the curves side by side."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from partime_async.cli.intake import open_intake, shown
from partime_async.cli.lessons import LearnOptions, parse_rule
from partime_async.cli.options import RunOptions
from partime_async.cli.style import LABEL, counted
from partime_async.errors import ConfigurationError, MissingDependencyError, SinkError
from partime_async.frame import SourceFrame
from partime_async.iteration import AsyncFrames
from partime_async.learning import StageLearner
from partime_async.learning.rules import exact
from partime_async.models import build
from partime_async.offload import in_thread
from partime_async.pipeline import Pipeline

SKIP = "skip"
"""Not an update rule: one device that learns from every N-th frame, N being the number of stages."""

_SMOOTHING = 20


@dataclass(frozen=True, slots=True)
class Curve:
    """How one rule did.

    Attributes:
        rule: As it was typed.
        losses: Of each frame with a target, before it was learned from.
        elapsed_s: Seconds that the stream took.
    """

    rule: str
    losses: tuple[float, ...]
    elapsed_s: float

    @property
    def mean(self) -> float:
        """Mean loss over the whole stream: test, then train; not finite, if one loss is not."""
        return sum(self.losses) / len(self.losses)


def evaluate(options: RunOptions, rules: Sequence[str], *, is_json: bool) -> None:
    """Learn from the source by every rule, show a table, and draw the curves where `options.output` says.

    Raises:
        ConfigurationError: No such rule, or a loss that is not comparable.
        MissingDependencyError: matplotlib is not installed, and a picture is wanted.
        SinkError: The picture cannot be written.
    """
    learning = options.learning
    assert learning is not None
    for rule in rules:
        if rule != SKIP:
            parse_rule(rule)
    if options.output is not None:
        _check_picture(Path(options.output))  # said before minutes are spent
    curves = []
    for rule in rules:
        sys.stderr.write(f"learning by {rule}\n")
        if rule == SKIP:
            curve = asyncio.run(_skipping(options, learning))
        else:
            # Planned once: by the clock, and a rule whose gradients are late learns something else on another cut.
            curve, balance = asyncio.run(_learned(options, learning, rule))
            options = replace(options, cut=replace(options.cut, balance=balance))
        if not curve.losses:
            raise ConfigurationError("no frame had a target. Use --learn next-frame, or a source that gives targets.")
        curves.append(curve)
    if is_json:
        for curve in curves:
            sys.stdout.write(json.dumps(_values(curve), allow_nan=False) + "\n")
    else:
        console = Console(highlight=False)
        console.print(_title(options), style=LABEL, markup=False)
        console.print(_table(curves))
    if options.output is not None:
        _draw(curves, _title(options), Path(options.output))


async def _learned(options: RunOptions, learning: LearnOptions, rule: str) -> tuple[Curve, tuple[int, ...]]:
    """Return how a rule did, and how the network was cut."""
    learner = replace(learning.learner, rule=parse_rule(rule))
    intake = await open_intake(options)
    frames = learning.taught(intake.frames, intake.example)
    try:
        pipeline = Pipeline(
            await in_thread(lambda: _model(options), name="partime model"),
            intake.example,
            stages=None if options.cut.balance else options.cut.stages,
            balance=options.cut.balance,
            devices=options.cut.devices,
            learner=learner,
            on_error=options.on_error,
        )
        async with pipeline:
            began = time.monotonic()
            results = pipeline.stream(_first(frames, options.frames))
            losses = [result.loss async for result in results if result.loss is not None]
            return Curve(rule, tuple(losses), time.monotonic() - began), pipeline.plan.balance
    finally:
        await frames.aclose()
        await in_thread(intake.source.close, name="partime source closing")


async def _first(frames: AsyncFrames[SourceFrame], limit: int | None) -> AsyncIterator[SourceFrame]:
    number = 0
    async for frame in frames:
        yield frame
        number += 1
        if number == limit:
            return


async def _skipping(options: RunOptions, learning: LearnOptions) -> Curve:
    """Predict every frame, learn from every N-th: what one device does that is N times too slow."""
    intake = await open_intake(options)
    frames = learning.taught(intake.frames, intake.example)
    losses: list[float] = []
    try:
        module = await in_thread(lambda: _model(options), name="partime model")
        one = StageLearner(replace(learning.learner, rule=exact()), module, 0, 1)
        number, began = 0, time.monotonic()
        async for frame in _first(frames, options.frames):
            # Nobody else is on this loop.
            one.freeze(number % _stages(options) > 0)
            _, loss = one.forward(number, frame.value, frame.target)
            one.backward(number)
            number += 1
            if loss is not None:
                losses.append(loss)
        return Curve(SKIP, tuple(losses), time.monotonic() - began)
    finally:
        await frames.aclose()
        await in_thread(intake.source.close, name="partime source closing")


def _stages(options: RunOptions) -> int:
    return len(options.cut.balance) if options.cut.balance else options.cut.stages or 1


def _model(options: RunOptions) -> nn.Module:
    torch.manual_seed(options.seed)
    return build(options.model).eval()


def _values(curve: Curve) -> dict[str, object]:
    losses = [loss if math.isfinite(loss) else None for loss in curve.losses]
    mean = curve.mean if math.isfinite(curve.mean) else None
    return {"rule": curve.rule, "mean": mean, "elapsed_s": curve.elapsed_s, "losses": losses}


def _title(options: RunOptions) -> str:
    sizes = options.cut.balance
    cut = "" if sizes is None else f" of {' + '.join(map(str, sizes))} layers"
    return f"{options.model} in {counted(_stages(options), 'stage')}{cut}, learning from {shown(options.source)}"


def _table(curves: Sequence[Curve]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=LABEL)
    for name in ("rule", "mean loss", f"against {curves[0].rule}", "last tenth", "frames/s"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    first = curves[0].mean
    for curve in curves:
        tail = curve.losses[-max(1, len(curve.losses) // 10) :]
        share = curve.mean / first - 1 if first else math.nan
        table.add_row(
            curve.rule,
            _number(curve.mean),
            f"{share:+.1%}" if math.isfinite(share) else "-",
            _number(sum(tail) / len(tail)),
            f"{len(curve.losses) / curve.elapsed_s:.1f}",
        )
    return table


def _number(value: float) -> str:
    return f"{value:.5g}" if math.isfinite(value) else "not finite"


def _check_picture(path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise MissingDependencyError("matplotlib", "plot") from None
    if path.suffix.removeprefix(".").lower() not in FigureCanvasAgg.get_supported_filetypes():
        raise ConfigurationError(f"--output is {str(path)!r}, which is no picture. Give a .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise ConfigurationError(f"--output is {str(path)!r}, and there is no such folder. Create it first.")


def _draw(curves: Sequence[Curve], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="frame", yscale="log")
    axes.set_ylabel(f"loss before learning from it, mean of {_SMOOTHING} frames")
    for curve in curves:
        window = min(_SMOOTHING, len(curve.losses))
        smooth = torch.tensor(curve.losses).unfold(0, window, 1).mean(1)
        at = range(window - 1, len(curve.losses))  # the mean of the frames up to this one
        axes.plot(at, smooth.tolist(), label=f"{curve.rule}   mean {_number(curve.mean)}", linewidth=1.3)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise SinkError(f"{path} cannot be written: {error}. Give a .png in a folder that exists.") from error
