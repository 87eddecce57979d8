"""`partime-async evaluate`: the same stream, learned by one update rule after another, and the curves side by side."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from partime_async.cli.intake import open_intake
from partime_async.cli.lessons import LearnOptions, parse_rule
from partime_async.cli.options import RunOptions
from partime_async.cli.style import LABEL
from partime_async.errors import ConfigurationError, MissingDependencyError, SinkError
from partime_async.feed import Feed
from partime_async.frame import SourceFrame, Value
from partime_async.iteration import AsyncFrames
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
        elapsed_s: Seconds it took.
    """

    rule: str
    losses: tuple[float, ...]
    elapsed_s: float

    @property
    def mean(self) -> float:
        """Mean loss over the whole stream: test, then train."""
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
        _pyplot()  # said before minutes are spent
    stages = options.cut.stages or len(options.cut.balance or ()) or 4
    curves = []
    for rule in rules:
        sys.stderr.write(f"learning by {rule}\n")
        job = _skipping(options, learning, stages) if rule == SKIP else _learned(options, learning, rule, stages)
        began = time.monotonic()
        losses = asyncio.run(job)
        if not losses:
            raise ConfigurationError("no frame had a target. Use --learn next-frame, or a source that gives targets.")
        curves.append(Curve(rule, tuple(losses), time.monotonic() - began))
    if is_json:
        for curve in curves:
            values = {"rule": curve.rule, "mean": curve.mean, "elapsed_s": curve.elapsed_s, "losses": curve.losses}
            sys.stdout.write(json.dumps(values) + "\n")
    else:
        Console().print(_table(curves))
    if options.output is not None:
        _draw(curves, Path(options.output))


async def _learned(options: RunOptions, learning: LearnOptions, rule: str, stages: int) -> list[float]:
    learner = replace(learning.learner, rule=parse_rule(rule))
    intake = await open_intake(options)
    pipeline = Pipeline(
        await in_thread(lambda: _model(options), name="partime model"),
        intake.example,
        stages=None if options.cut.balance else stages,
        balance=options.cut.balance,
        devices=options.cut.devices,
        learner=learner,
    )
    frames = learning.taught(intake.frames)

    async def put(feed: Feed) -> None:
        try:
            async for number, item in _numbered(frames, options.frames):
                assert isinstance(item, SourceFrame)
                await feed.put(item.value, item.target, context=number)
        finally:
            feed.close()

    try:
        async with pipeline, pipeline.feed() as feed, asyncio.TaskGroup() as tasks:
            tasks.create_task(put(feed))
            return [result.loss async for result in feed if result.loss is not None]
    finally:
        await frames.aclose()
        await in_thread(intake.source.close, name="partime source closing")


async def _numbered(frames: AsyncFrames[object], limit: int | None) -> AsyncIterator[tuple[int, object]]:
    number = 0
    async for item in frames:
        yield number, item
        number += 1
        if number == limit:
            return


async def _skipping(options: RunOptions, learning: LearnOptions, stages: int) -> list[float]:
    """Predict every frame, learn from every N-th: what one device does that is N times too slow."""
    intake = await open_intake(options)
    module = await in_thread(lambda: _model(options), name="partime model")
    optimizer = learning.learner.optimizer(module.parameters())
    losses: list[float] = []

    def step(value: Value, target: Value, number: int) -> None:
        optimizer.zero_grad()
        loss = learning.learner.loss(module(value), target)
        losses.append(float(loss.detach()))
        if number % stages == 0:
            torch.autograd.backward(loss)
            optimizer.step()

    frames = learning.taught(intake.frames)
    try:
        async for number, item in _numbered(frames, options.frames):
            assert isinstance(item, SourceFrame)
            if item.target is not None:
                # Nobody else is on this loop.
                step(item.value, item.target, number)
    finally:
        await frames.aclose()
        await in_thread(intake.source.close, name="partime source closing")
    return losses


def _model(options: RunOptions) -> nn.Module:
    torch.manual_seed(options.seed)
    return build(options.model).eval()


def _table(curves: Sequence[Curve]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=LABEL)
    for name in ("rule", "mean loss", f"against {curves[0].rule}", "last tenth", "frames/s"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for curve in curves:
        tail = curve.losses[-max(1, len(curve.losses) // 10) :]
        table.add_row(
            curve.rule,
            f"{curve.mean:.5g}",
            f"{curve.mean / curves[0].mean - 1:+.1%}" if curves[0].mean else "-",
            f"{sum(tail) / len(tail):.5g}",
            f"{len(curve.losses) / curve.elapsed_s:.1f}",
        )
    return table


def _pyplot() -> object:
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError("matplotlib", "plot") from None
    return matplotlib


def _draw(curves: Sequence[Curve], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="frame", ylabel="loss before learning from it", yscale="log")
    for curve in curves:
        smooth = torch.tensor(curve.losses).unfold(0, min(_SMOOTHING, len(curve.losses)), 1).mean(1)
        axes.plot(smooth.tolist(), label=f"{curve.rule}   mean {curve.mean:.4g}", linewidth=1.3)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise SinkError(f"{path} cannot be written: {error}. Give a .png in a folder that exists.") from error
