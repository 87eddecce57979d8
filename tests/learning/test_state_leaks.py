"""Nothing but learning changes what a pipeline holds; and learning holds no more than it needs."""

from __future__ import annotations

import asyncio
import copy
import gc
import weakref
from collections.abc import AsyncIterator

import pytest
import torch
import uvloop
from torch import Tensor, nn

import partime_async as pa
from tests.learning.reference import simulate
from tests.learning.school import (
    ADAM,
    MOMENTUM,
    RULES,
    SGD,
    WIDTH,
    assert_same_weights,
    blocks,
    lessons,
    mse,
    plain,
    stage_learners,
)
from tests.nets import assert_same_bits


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH))


@pytest.mark.parametrize("cut", ["planned", "given"])
async def test_entering_and_leaving_changes_nothing(cut: str) -> None:
    """Planning, building, warming up and draining leave weights, statistics, optimiser and random state alone."""
    net, example = _net(), torch.randn(3, WIDTH)
    before = copy.deepcopy((net.state_dict(), example, torch.random.get_rng_state()))
    stages = {"planned": {"stages": 2}, "given": {"balance": [1, 2, 1]}}[cut]
    pipeline = pa.Pipeline(net, example, learner=pa.Learner(mse, ADAM), **stages)  # type: ignore[arg-type]
    for _ in range(2):
        async with pipeline:
            pass
        assert_same_weights(await pipeline.state_dict(), before[0])
        assert [stage.statistics().version for stage in stage_learners(pipeline)] == [0] * len(pipeline.plan.balance)
        assert not any(stage._stepper.memory().optimizer["state"] for stage in stage_learners(pipeline))  # type: ignore[index]
    assert_same_weights(net.state_dict(), before[0])
    assert_same_bits([example, torch.random.get_rng_state()], [*before[1:]])


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_gradients_on_their_way_when_the_pipeline_is_left_are_counted(rule: pa.UpdateRule) -> None:
    """After the last frame nothing more is learned: as many gradients are discarded as the definition leaves over."""
    frames, targets = lessons(9, missing=0.0)
    net, learner = blocks(3), pa.Learner(mse, SGD, rule=rule)
    async with pa.Pipeline(net, frames[0], balance=[1, 1, 1], learner=learner) as pipeline:
        for frame, target in zip(frames, targets, strict=True):
            await pipeline.process(frame, target)
        during = await pipeline.state_dict()
    history = simulate(net, [1, 1, 1], frames, targets, plain(learner))
    assert_same_weights(during, history.weights[-1])
    assert_same_weights(await pipeline.state_dict(), history.weights[-1])
    discarded = [stage.statistics().discarded for stage in stage_learners(pipeline)]
    assert discarded == [rule.lag, rule.lag, 0]
    assert discarded == history.discarded


async def test_trained_state_fits_the_module_that_was_passed_in() -> None:
    """The module itself stays as it was; the state_dict has its keys, and makes it predict what the pipeline does."""
    frames, targets = lessons(8, missing=0.0)
    net = blocks(3)
    before = copy.deepcopy(net.state_dict())
    async with pa.Pipeline(net, frames[0], balance=[1, 1, 1], learner=pa.Learner(mse, SGD)) as pipeline:
        for frame, target in zip(frames, targets, strict=True):
            await pipeline.process(frame, target)
        await pipeline.freeze()
        state = await pipeline.state_dict()
        output = (await pipeline.process(frames[0])).output
    assert_same_weights(net.state_dict(), before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    net.load_state_dict(state)
    assert not torch.equal(state["0.linear.weight"], before["0.linear.weight"])
    assert_same_bits(output, net(frames[0]).detach())


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_pipeline_entered_again_goes_on_where_it_was(rule: pa.UpdateRule) -> None:
    """Weights and optimiser go on; what was on its way is not; frames are numbered from 0 again."""
    frames, targets = lessons(16, missing=0.0)
    net, learner = blocks(3), pa.Learner(mse, MOMENTUM, rule=rule)
    pipeline = pa.Pipeline(net, frames[0], balance=[1, 1, 1], learner=learner)
    for half in (range(8), range(8, 16)):
        async with pipeline:
            for number in half:
                assert (await pipeline.process(frames[number], targets[number])).index == number % 8
    # As if the weights had been replaced in between by what they were.
    first = simulate(net, [1, 1, 1], frames[:8], targets[:8], plain(learner))
    history = simulate(net, [1, 1, 1], frames, targets, plain(learner), replaced={8: first.weights[-1]})
    assert_same_weights(await pipeline.state_dict(), history.weights[-1])


@pytest.mark.parametrize("rule", [*RULES, pa.UpdateRule("stash", 3), pa.UpdateRule("replay", 2)], ids=str)
async def test_passes_kept_are_never_more_than_the_definition_needs(rule: pa.UpdateRule) -> None:
    """A stage keeps the passes of its delay and one more, and under `current` and `exact` the one of the moment."""
    frames, targets = lessons(14)
    most = [0, 0, 0]
    pipelines: list[pa.Pipeline] = []

    def look(stage: int, _: object) -> None:
        most[stage] = max(most[stage], stage_learners(pipelines[0])[stage].statistics().kept + 1)

    learner = pa.Learner(mse, SGD, rule=rule, gradient_hook=look)
    async with pa.Pipeline(blocks(3), frames[0], balance=[1, 1, 1], learner=learner) as pipeline:
        pipelines.append(pipeline)
        for frame, target in zip(frames, targets, strict=True):
            await pipeline.process(frame, target)
        await pipeline.state_dict()
        # The one in use was taken out before the hook was called.
        delays = [0 if rule.graph is pa.Graph.CURRENT else rule.delay(stage, 3) for stage in range(3)]
        assert most == [delay + 1 for delay in delays]
        kept = [stage.learning.kept for stage in pipeline.statistics().stages if stage.learning is not None]
        assert kept == delays


def _tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("rule", [pa.rules.pipedream(), pa.rules.replay()], ids=str)
def test_two_thousand_frames_leave_no_more_than_two_hundred(rule: pa.UpdateRule) -> None:
    """Nothing grows with the length of the stream: neither tensors nor graphs."""
    frame = torch.ones(1, WIDTH)

    async def source(count: int) -> AsyncIterator[tuple[Tensor, Tensor]]:
        for _ in range(count):
            yield frame, frame

    async def scene() -> list[int]:
        learner = pa.Learner(mse, SGD, rule=rule, label_delay=2)
        alive = []
        async with pa.Pipeline(blocks(2), frame, balance=[1, 1], learner=learner) as pipeline:
            for count in (200, 1800):
                async for _ in pipeline.stream(source(count)):
                    pass
                await pipeline.state_dict()
                alive.append(_tensors_alive())
        return alive

    # Many frames: on the faster loop alone, without debug mode.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        early, late = runner.run(scene())
    assert late <= early


async def test_everything_is_let_go_with_the_pipeline() -> None:
    """Left and dropped, a pipeline leaves no tensor behind, whatever was on its way."""
    frames, targets = lessons(6, missing=0.0)
    net = blocks(3)
    pipeline = pa.Pipeline(net, frames[0], balance=[1, 1, 1], learner=pa.Learner(mse, ADAM))
    async with pipeline:
        for frame, target in zip(frames, targets, strict=True):
            await pipeline.process(frame, target)
    held = [weakref.ref(parameter) for stage in stage_learners(pipeline) for parameter in stage._stand_ins.trainable]
    assert len(held) == len(list(net.parameters()))
    del pipeline
    gc.collect()
    assert not any(reference() is not None for reference in held)
