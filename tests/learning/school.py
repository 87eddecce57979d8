"""Small networks that learn, with delays at random, and the pipeline that teaches them beside the reference."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

import partime_async as pa
from partime_async.learning import StageLearner
from tests.learning.reference import History, Lesson, Weights
from tests.nets import TIMEOUT_S, Shared, assert_same_bits

Value = pa.Value
WIDTH = 5
SGD = partial(torch.optim.SGD, lr=0.05)
MOMENTUM = partial(torch.optim.SGD, lr=0.03, momentum=0.9, weight_decay=0.01)
ADAM = partial(torch.optim.Adam, lr=0.01)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": SGD, "momentum": MOMENTUM, "adam": ADAM}
RULES = [pa.UpdateRule(graph, lag) for graph, lag in (("current", 2), ("stash", 1), ("replay", 1), ("stash", 0))]
mse: Callable[..., Tensor] = nn.functional.mse_loss


class Delays(Shared):
    """Holds up whoever passes, every other time, for a random moment; for timing that is never the same."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.is_on = True

    def pass_by(self) -> None:
        """Wait, or do not."""
        if self.is_on and self._random.random() < 0.4:
            time.sleep(self._random.random() * 0.0004)


class _Delayed(torch.autograd.Function):
    """Passes its input on late, and its gradient too."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, delays: Delays) -> Tensor:
        """Return the input."""
        ctx.delays = delays  # type: ignore[attr-defined]
        delays.pass_by()
        return value.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient."""
        ctx.delays.pass_by()  # type: ignore[attr-defined]
        return gradients[0], None


class Block(nn.Module):
    """A layer whose shift is as large as its output: PyTorch gives both the very same gradient."""

    def __init__(self, delays: Delays | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.shift = nn.Parameter(torch.zeros(1, WIDTH))
        self.delays = delays

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, bent a little."""
        if self.delays is not None:
            value = _Delayed.apply(value, self.delays)  # type: ignore[no-untyped-call]
        return value + torch.tanh(self.linear(value)) + self.shift


def blocks(count: int, delays: Delays | None = None) -> nn.Sequential:
    """Build a net of some blocks."""
    return nn.Sequential(*(Block(delays) for _ in range(count)))


def lessons(count: int, *, missing: float = 0.2, seed: int = 1) -> tuple[list[Value], list[Value | None]]:
    """Make frames, and targets that some of them lack."""
    generator = torch.Generator().manual_seed(seed)
    frames: list[Value] = [torch.randn(1, WIDTH, generator=generator) for _ in range(count)]
    lacking = torch.rand(count, generator=generator) < missing
    targets: list[Value | None] = [
        None if is_lacking else torch.randn(1, WIDTH, generator=generator) for is_lacking in lacking
    ]
    return frames, targets


def plain(learner: pa.Learner) -> Lesson:
    """Return the learner as the reference understands it."""
    return Lesson(
        graph=str(learner.rule.graph),
        lag=learner.rule.lag,
        optimizer=learner.optimizer,
        loss=learner.loss,
        unsupervised=learner.unsupervised,
        scheduler=learner.scheduler,
        clip_norm=learner.clip_norm,
        hook=learner.gradient_hook,
        label_delay=learner.label_delay,
    )


@dataclass
class Taught:
    """What a pipeline did with its frames."""

    results: list[pa.Result] = field(default_factory=list)
    updates: list[pa.Update] = field(default_factory=list)
    weights: dict[int, Weights] = field(default_factory=dict)
    stages: list[pa.LearningStatistics] = field(default_factory=list)
    learning: pa.TeachingStatistics | None = None


async def teach(
    net: nn.Module,
    balance: Sequence[int],
    frames: Sequence[Value],
    targets: Sequence[Value | None],
    learner: pa.Learner,
    *,
    frozen: Collection[int] = (),
    replaced: Mapping[int, Weights] | None = None,
    looked_at: Collection[int] = (),
    capacity: int = 2,
    depth: int | None = None,
) -> Taught:
    """Teach a net by a pipeline, all frames as fast as it takes them.

    Args:
        net: What to teach; the pipeline takes a copy.
        balance: Layers per stage.
        frames: In their order.
        targets: One for each.
        learner: How.
        frozen: The frames during which learning is frozen.
        replaced: New weights, by the frame before which they come.
        looked_at: The frames behind which the weights are noted; the last one always is.
        capacity: The pipeline's.
        depth: The pipeline's.
    """
    replaced, taught = replaced or {}, Taught()
    learner = _watched(learner, taught.updates)
    edges = [t for t in range(1, len(frames)) if (t in frozen) != (t - 1 in frozen)]
    starts = sorted({0, *edges, *replaced, *(t + 1 for t in looked_at if t + 1 < len(frames))})
    async with asyncio.timeout(TIMEOUT_S):
        pipeline = pa.Pipeline(net, frames[0], balance=list(balance), learner=learner, capacity=capacity, depth=depth)
        async with pipeline:
            for start, stop in zip(starts, [*starts[1:], len(frames)], strict=True):
                if start in replaced:
                    await pipeline.load_state_dict(replaced[start])
                await (pipeline.freeze() if start in frozen else pipeline.thaw())
                source = _paired(frames[start:stop], targets[start:stop])
                taught.results += [result async for result in pipeline.stream(source)]
                if stop - 1 in looked_at:
                    taught.weights[stop - 1] = await pipeline.state_dict()
            await pipeline.state_dict()  # behind all that the last frame teaches
            taught.learning = pipeline.statistics().learning
        taught.weights[len(frames) - 1] = await pipeline.state_dict()
    taught.stages = [stage.statistics() for stage in stage_learners(pipeline)]
    return taught


async def _paired(frames: Sequence[Value], targets: Sequence[Value | None]) -> AsyncIterator[pa.SourceFrame]:
    for frame, target in zip(frames, targets, strict=True):
        yield pa.SourceFrame(frame, target=target)


def _watched(learner: pa.Learner, updates: list[pa.Update]) -> pa.Learner:
    return pa.Learner(
        learner.loss,
        learner.optimizer,
        rule=learner.rule,
        scheduler=learner.scheduler,
        clip_norm=learner.clip_norm,
        gradient_hook=learner.gradient_hook,
        label_delay=learner.label_delay,
        unsupervised=learner.unsupervised,
        non_finite=learner.non_finite,
        on_update=updates.append,
    )


def stage_learners(pipeline: pa.Pipeline) -> list[StageLearner]:
    """Return the learners of a pipeline's stages, also when it was left."""
    assembly = pipeline._assembly
    assert assembly is not None
    return [part.learner for part in assembly.parts if part.learner is not None]


def assert_as_defined(taught: Taught, history: History) -> None:
    """Assert that a pipeline did what the reference did, bit for bit."""
    found = sorted(
        (each.stage, each.event, each.graph_frame, each.loss_frame, each.graph_version, each.weight_version)
        for each in taught.updates
    )
    assert found == sorted(history.trace)
    for frame, weights in taught.weights.items():
        assert_same_weights(weights, history.weights[frame], f"after frame {frame}")
    assert [result.loss for result in taught.results] == history.losses
    assert [result.weight_versions for result in taught.results] == history.versions
    for result, output in zip(taught.results, history.outputs, strict=True):
        if output is None:
            assert result.error is not None
        else:
            assert_same_bits(result.output, output)
    assert [stage.discarded for stage in taught.stages] == history.discarded
    assert [stage.skipped for stage in taught.stages] == history.skipped


def assert_same_weights(found: Weights, expected: Weights, where: str = "") -> None:
    """Assert that two states are equal bit for bit."""
    assert found.keys() == expected.keys()
    different = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not different, f"{where} these differ: {different}"
