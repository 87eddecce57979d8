"""What breaks while learning: every fault is told with its stage and frame, nothing hangs, and nothing else is hurt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

import partime_async as pa
from tests.learning.reference import simulate
from tests.learning.school import (
    MOMENTUM,
    RULES,
    SGD,
    WIDTH,
    Delays,
    assert_as_defined,
    assert_same_weights,
    blocks,
    lessons,
    mse,
    plain,
    teach,
)
from tests.nets import TIMEOUT_S, Gate


class Broken(Exception):
    """What the tests' own functions raise."""


class Fussy(nn.Module):
    """Raises on frames whose first number is above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, value: Tensor) -> Tensor:
        """Return the input."""
        if float(value.detach().flatten()[0].abs()) > self.limit:
            raise ValueError("too large")
        return value + 0.0


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_frame_that_fails_in_a_stage_teaches_nothing_and_hurts_no_other(rule: pa.UpdateRule, stage: int) -> None:
    """Its result carries the error; the updates of all other frames are as defined."""
    delays = Delays()
    layers = list(blocks(3, delays))
    layers.insert(stage, Fussy(1.2))
    net, balance = nn.Sequential(*layers), [2 if number == stage else 1 for number in range(3)]
    frames, targets = lessons(24, missing=0.1)
    learner = pa.Learner(mse, MOMENTUM, rule=rule)
    taught = await teach(net, balance, frames, targets, learner)
    delays.is_on = False
    errors = [result.error for result in taught.results if result.error is not None]
    assert 2 <= len(errors) <= 16
    assert {error.stage for error in errors} == {stage}
    assert_as_defined(taught, simulate(net, balance, frames, targets, plain(learner)))


def _raise(*_: object) -> Any:
    raise Broken("as told")


class BreakingSGD(torch.optim.SGD):
    """An optimiser that raises when it steps."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Raise."""
        raise Broken("as told")


class BreakingSchedule(torch.optim.lr_scheduler.LRScheduler):
    """A schedule that raises after the first step."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate as it is, once."""
        if self.last_epoch > 0:
            raise Broken("as told")
        return [0.1 for _ in self.optimizer.param_groups]


class _BreaksBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        raise Broken("as told")


class BreaksBack(nn.Module):
    """Passes everything on, and raises on the way back."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the input."""
        passed: Tensor = _BreaksBack.apply(value)  # type: ignore[no-untyped-call]
        return passed


def _breaking_in(stage: int) -> Callable[[int, object], None]:
    return lambda number, _: _raise() if number == stage else None


FAULTS: dict[str, tuple[Callable[[], pa.Learner], int]] = {
    "a hook in the first stage": (lambda: pa.Learner(mse, SGD, gradient_hook=_breaking_in(0)), 0),
    "a hook in the last stage": (lambda: pa.Learner(mse, SGD, gradient_hook=_breaking_in(2)), 2),
    "the optimiser": (lambda: pa.Learner(mse, partial(BreakingSGD, lr=0.1)), 2),
    "the schedule": (lambda: pa.Learner(mse, SGD, scheduler=BreakingSchedule), 2),
    "a trace": (lambda: pa.Learner(mse, SGD, on_update=_raise), 2),
    "the way back": (lambda: pa.Learner(mse, SGD), 1),
    "a late loss": (lambda: pa.Learner(_raise, SGD, label_delay=1), 2),
    "a loss that is no number": (lambda: pa.Learner(lambda output, target: output, SGD, label_delay=1), 2),
    "a loss of nothing": (lambda: pa.Learner(lambda output, target: torch.ones(()), SGD), 2),
}


@pytest.mark.parametrize("rule", [pa.rules.pipedream(), pa.rules.partime()], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_in_learning_stops_the_pipeline_and_names_its_stage(fault: str, rule: pa.UpdateRule) -> None:
    """All callers get one StageError with the stage, the frame and the cause; nothing hangs, and weights can be had."""
    make, stage = FAULTS[fault]
    learner = make()
    object.__setattr__(learner, "rule", rule)
    frames, targets = lessons(12, missing=0.0)
    first, second, third = blocks(3)
    net = nn.Sequential(first, second, *([BreaksBack()] if fault == "the way back" else []), third)
    balance = [1, len(net) - 2, 1]
    pipeline = pa.Pipeline(net, frames[0], balance=balance, learner=learner)
    told: list[pa.StageError] = []

    async def scene() -> None:
        async with asyncio.timeout(TIMEOUT_S), pipeline:
            try:
                await asyncio.gather(*(pipeline.process(*each) for each in zip(frames, targets, strict=True)))
                await pipeline.state_dict()  # if the last frame's fault is the first
            except pa.StageError as error:
                told.append(error)

    with pytest.raises(pa.StageError) as caught:
        await scene()
    assert told == [caught.value]
    assert caught.value.stage == stage
    assert caught.value.index is not None
    assert isinstance(caught.value.__cause__, Broken | pa.ConfigurationError)
    assert (await pipeline.state_dict()).keys() == net.state_dict().keys()


async def test_loss_that_raises_on_a_frame_fails_this_frame_alone() -> None:
    """A target that does not fit is its frame's fault: the error is its result's, and the others teach as defined."""

    def picky(output: Tensor, target: Tensor) -> Tensor:
        if float(target.flatten()[0]) < -0.5:
            raise ValueError("no such target")
        return mse(output, target)

    frames, targets = lessons(12, missing=0.0)
    net, learner = blocks(2), pa.Learner(picky, SGD)
    taught = await teach(net, [1, 1], frames, targets, learner)
    failed = [result.index for result in taught.results if result.error is not None]
    is_bad = [float(target[0].flatten()[0]) < -0.5 for target in targets if target is not None]
    assert failed == [index for index, bad in enumerate(is_bad) if bad]
    assert 1 <= len(failed) <= 9
    kept = [None if bad else target for bad, target in zip(is_bad, targets, strict=True)]
    history = simulate(net, [1, 1], frames, kept, plain(pa.Learner(mse, SGD)))
    assert_same_weights(taught.weights[11], history.weights[-1])


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda output, target: output, r"a tensor of shape \(1, 5\)"),
        (lambda output, target: 1.0, "the loss gave float"),
    ],
)
async def test_loss_that_is_no_number_is_refused_with_what_it_gave(loss: Callable[..., Tensor], told: str) -> None:
    """The error of the frame says what came instead of a tensor with one number."""
    frames, targets = lessons(1, missing=0.0)
    async with pa.Pipeline(blocks(1), frames[0], stages=1, learner=pa.Learner(loss, SGD)) as pipeline:
        with pytest.raises(pa.StageError, match=told) as caught:
            await pipeline.process(frames[0], targets[0])
    assert isinstance(caught.value.__cause__, pa.ConfigurationError)


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_pipeline_left_by_an_error_in_the_middle_of_learning_leaves_nothing_behind(rule: pa.UpdateRule) -> None:
    """The caller's own error comes through; what was enqueued is dropped and is nobody's fault."""
    frames, targets = lessons(12, missing=0.0)
    net = blocks(3, Delays())
    pipeline = pa.Pipeline(net, frames[0], balance=[1, 1, 1], learner=pa.Learner(mse, SGD, rule=rule))

    async def scene() -> None:
        async with pipeline, pipeline.feed() as feed:
            for frame, target in zip(frames[:6], targets[:6], strict=True):
                await feed.put(frame, target)
            raise Broken

    with pytest.raises(Broken):
        await scene()
    assert (await pipeline.state_dict()).keys() == net.state_dict().keys()


async def test_caller_cancelled_in_the_middle_of_learning_changes_no_update() -> None:
    """A frame whose caller has gone was admitted all the same: it teaches as defined."""
    frames, targets = lessons(8, missing=0.0)
    net, gate, learner = blocks(2), Gate(), pa.Learner(mse, SGD)
    watched = pa.Learner(mse, SGD, gradient_hook=lambda *_: gate.go_through())
    async with pa.Pipeline(net, frames[0], balance=[1, 1], learner=watched) as pipeline:
        for frame, target in zip(frames[:4], targets[:4], strict=True):
            await pipeline.process(frame, target)
        await pipeline.state_dict()
        gate.close()
        await pipeline.process(frames[4], targets[4])
        await gate.reached()
        caller = asyncio.ensure_future(pipeline.process(frames[5], targets[5]))
        for _ in range(10):  # turns of the loop: the frame is admitted by then
            await asyncio.sleep(0)
        assert pipeline.statistics().frames.in_flight == 1
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.open()
        for frame, target in zip(frames[6:], targets[6:], strict=True):
            await pipeline.process(frame, target)
    history = simulate(net, [1, 1], frames, targets, plain(learner))
    assert_same_weights(await pipeline.state_dict(), history.weights[-1])


async def test_net_without_trainable_weights_is_refused_on_entering() -> None:
    """A learner that could never step is a mistake, told before the first frame."""
    frame = torch.ones(1, WIDTH)
    frozen = blocks(2).requires_grad_(False)
    with pytest.raises(pa.ConfigurationError, match="no trainable weights"):
        async with pa.Pipeline(frozen, frame, stages=1, learner=pa.Learner(mse, SGD)):
            pass
