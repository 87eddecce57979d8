"""One device beside the pipeline that learns from every N-th frame: its figures, and that it disturbs nobody."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.clock import MonotonicClock
from partime_async.devices import DeviceEvent, Notifier
from partime_async.learning.skip import SkipLearner
from tests.learning.school import ADAM, SGD, WIDTH, blocks, lessons, mse
from tests.nets import Gate, Gated

EXAMPLE = torch.zeros(1, WIDTH)
LEARNER = pa.Learner(mse, ADAM, compare_to_skip=True)


@asynccontextmanager
async def skipping(
    module: nn.Module, every: int, learner: pa.Learner = LEARNER
) -> AsyncIterator[tuple[SkipLearner, list[BaseException]]]:
    """Make a skip learner with a thread of its own, and a list of its errors."""
    notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())
    stream = pa.CpuDevice().open_stream("partime skip", notifier=notifier, clock=MonotonicClock())
    skip = SkipLearner(learner, module, every, stream=stream, draws=None)
    errors: list[BaseException] = []
    skip.on_error = errors.append
    try:
        yield skip, errors
    finally:
        await stream.aclose(10.0)


async def caught_up(skip: SkipLearner) -> None:
    """Wait until all that was given to it is done."""
    done = asyncio.Event()
    skip.stream.enqueue(lambda value: value, pa.devices.ready(()), lambda _: done.set())
    await done.wait()


def recent_of(numbers: Sequence[float]) -> float:
    """Return the mean as it is defined: even at first, over some 50 in the end."""
    mean = 0.0
    for count, number in enumerate(numbers, start=1):
        mean += (number - mean) * max(0.02, 1.0 / count)
    return mean


def every_nth(module: nn.Module, pairs: Sequence[tuple[Tensor, Tensor | None]], every: int) -> list[float]:
    """Return the losses of an ordinary training loop on every N-th frame that has a target."""
    own = copy.deepcopy(module)
    optimizer = ADAM(own.parameters())
    losses = []
    for frame, target in pairs[::every]:
        if target is None:
            continue
        optimizer.zero_grad()
        loss: Tensor = mse(own(frame), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def noted(skip: SkipLearner, count: int, *, pipeline: float, skip_loss: float = 1.0) -> None:
    """Have the same two losses come out of many frames in a row."""
    for _ in range(count):
        skip._note(pipeline, skip_loss)


def pairs_of(count: int, *, missing: float = 0.2) -> list[tuple[Tensor, Tensor | None]]:
    """Return frames with their targets, if they have any."""
    frames, targets = lessons(count, missing=missing)
    return [
        (torch.as_tensor(frame), None if target is None else torch.as_tensor(target))
        for frame, target in zip(frames, targets, strict=True)
    ]


async def test_figures_are_those_of_a_training_loop_on_every_nth_frame() -> None:
    """It predicts first and learns afterwards, and is compared on the frames that both saw."""
    module, pairs = blocks(2), pairs_of(60)
    async with skipping(copy.deepcopy(module), 3) as (skip, errors):
        losses = []
        for index, (frame, target) in enumerate(pairs):
            skip.keep(index, frame)
            if target is not None:
                skip.compare(index, target, 0.1 * index, learns=True)
                if index % 3 == 0:
                    losses.append(0.1 * index)
            await caught_up(skip)
        statistics = skip.statistics()
    expected = every_nth(module, pairs, 3)
    assert not errors
    assert (statistics.pairs, statistics.missed) == (len(expected), 0)
    assert statistics.skip == pytest.approx(recent_of(expected), rel=1e-6)
    assert statistics.pipeline == pytest.approx(recent_of(losses), rel=1e-6)


async def test_frames_that_come_while_it_is_behind_are_missed_and_counted() -> None:
    """It never makes the pipeline wait, and what it misses it misses for good."""
    gate = Gate()
    async with skipping(nn.Sequential(Gated(gate), *blocks(1)), 1) as (skip, _):
        gate.close()
        for index in range(20):
            skip.keep(index, EXAMPLE)
            skip.compare(index, EXAMPLE, 1.0, learns=True)
        gate.open()
        await caught_up(skip)
        await asyncio.sleep(0)
        statistics = skip.statistics()
        assert statistics.pairs + statistics.missed == 20
        assert statistics.pairs <= 5
        skip.keep(20, EXAMPLE)
        skip.compare(20, EXAMPLE, 1.0, learns=True)
        await caught_up(skip)
        assert skip.statistics().pairs == statistics.pairs + 1


async def test_frames_that_nobody_labels_are_not_kept_for_ever() -> None:
    """Copies wait for a target only as long as one may come."""
    learner = pa.Learner(mse, ADAM, compare_to_skip=True, label_delay=40)
    async with skipping(blocks(1), 2, learner) as (skip, _):
        for index in range(2000):
            skip.keep(index, EXAMPLE)
        assert len(skip._inputs) <= 40 // 2 + 64
        skip.compare(1990, EXAMPLE, 1.0, learns=True)
        assert list(skip._inputs) == [1992, 1994, 1996, 1998]


async def test_advice_is_given_once_when_the_pipeline_does_worse_for_long() -> None:
    """Two hundred frames in a row on which the recent loss is the larger one."""
    async with skipping(blocks(1), 4) as (skip, _):
        noted(skip, 300, pipeline=1.0, skip_loss=0.99)
        noted(skip, 100, pipeline=2.0)
        noted(skip, 200, pipeline=0.5)
        noted(skip, 60, pipeline=2.0)  # until the mean is back above
        with pytest.warns(pa.PartimeWarning, match=r"multiple of 4 .*Use fewer stages") as caught:
            noted(skip, 600, pipeline=2.0)
        assert len(caught) == 1


async def test_error_in_its_thread_is_told() -> None:
    """What it raises does not get lost with the thread."""

    class Breaks(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            raise ValueError("broken")

    async with skipping(nn.Sequential(*blocks(1), Breaks()), 1) as (skip, errors):
        skip.keep(0, EXAMPLE)
        skip.compare(0, EXAMPLE, 1.0, learns=True)
        await caught_up(skip)
        assert [str(error) for error in errors] == ["broken"]


# -- beside a pipeline --------------------------------------------------------------------------------------------


async def taught(
    module: nn.Module, learner: pa.Learner, source: Sequence[object], *, balance: Sequence[int]
) -> tuple[dict[str, Tensor], pa.TeachingStatistics]:
    """Return the weights and the figures after a stream."""
    torch.manual_seed(3)
    pipeline = pa.Pipeline(module, EXAMPLE, balance=balance, devices=["cpu"], learner=learner)
    async with pipeline:
        async for _ in pipeline.stream(source):
            pass
        weights = await pipeline.state_dict()
        if (skip := pipeline._built().skip) is not None:
            await caught_up(skip)
        statistics = pipeline.statistics().learning
    assert statistics is not None
    return weights, statistics


@pytest.mark.parametrize("delay", [0, 4])
async def test_comparison_changes_no_bit_of_the_pipeline(delay: int) -> None:
    """With and without it, also with random numbers drawn in both, the same weights come out."""
    module = nn.Sequential(*blocks(2), nn.Dropout(0.3), *blocks(2))
    source = [frame if target is None else (frame, target) for frame, target in pairs_of(50)]
    found = []
    for is_compared in (False, True):
        learner = pa.Learner(mse, ADAM, compare_to_skip=is_compared, label_delay=delay)
        weights, statistics = await taught(module, learner, source, balance=[2, 2, 1])
        found.append(weights)
        assert (statistics.skip is not None) == is_compared
        if statistics.skip is not None:
            due = [target for _, target in pairs_of(50)[: 50 - delay : 3] if target is not None]
            assert statistics.skip.pairs + statistics.skip.missed == len(due)
            assert statistics.skip.pairs > 0
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


async def test_one_stage_has_nobody_to_be_compared_with() -> None:
    """One device that learns from every frame is what a pipeline of one stage is."""
    _, statistics = await taught(blocks(2), LEARNER, [(EXAMPLE, EXAMPLE)], balance=[2])
    assert statistics.skip is None


async def test_nothing_is_learned_beside_the_pipeline_while_that_is_frozen() -> None:
    """Both stand still, so that their losses can be compared."""
    learner = pa.Learner(mse, partial(torch.optim.SGD, lr=0.1), compare_to_skip=True)
    async with pa.Pipeline(blocks(2), EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        await pipeline.freeze()
        for _ in range(8):
            await pipeline.process(EXAMPLE + 0.1, EXAMPLE + 1.0)
        skip = pipeline._built().skip
        assert skip is not None
        await caught_up(skip)
        statistics = skip.statistics()
    assert statistics.pairs > 0
    assert statistics.skip == pytest.approx(statistics.pipeline, rel=1e-6)


async def test_replaced_weights_start_the_comparison_over_from_them() -> None:
    """Otherwise it would compare two networks that have nothing to do with each other."""
    learner = pa.Learner(mse, partial(torch.optim.SGD, lr=0.0), compare_to_skip=True)
    async with pa.Pipeline(blocks(2), EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        skip = pipeline._built().skip
        assert skip is not None
        for _ in range(4):
            await pipeline.process(EXAMPLE, EXAMPLE)
        state = {name: torch.full_like(tensor, 0.3) for name, tensor in (await pipeline.state_dict()).items()}
        await pipeline.load_state_dict(state)
        await caught_up(skip)
        before = skip.statistics()
        for _ in range(4):
            await pipeline.process(EXAMPLE, EXAMPLE)
        await pipeline.state_dict()
        await caught_up(skip)
        after = skip.statistics()
    assert before.pairs == 0
    assert math.isnan(before.skip)
    assert after.pairs == 2
    assert after.skip == pytest.approx(after.pipeline, rel=1e-6)
    assert after.skip > 0.1


async def test_module_with_layers_that_remember_is_refused() -> None:
    """On every N-th frame they would remember something else."""

    class Sum(pa.Stateful):
        def initial_state(self) -> Tensor:
            return torch.zeros(1, WIDTH)

        def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
            return value, state

    module = nn.Sequential(*blocks(1), Sum())
    with pytest.raises(pa.ConfigurationError, match="compare_to_skip"):
        async with pa.Pipeline(module, EXAMPLE, balance=[1, 1], devices=["cpu"], learner=LEARNER):
            pass


async def test_error_beside_the_pipeline_stops_it() -> None:
    """Who asked for the comparison gets to know why there is none."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if threading.current_thread().name == "partime skip":
            raise ValueError("only here")
        return nn.functional.mse_loss(output, target)

    learner = pa.Learner(loss, SGD, compare_to_skip=True)
    with pytest.raises(ValueError, match="only here"):
        await taught(blocks(2), learner, [(EXAMPLE, EXAMPLE)] * 50, balance=[1, 1])
