"""Boundaries between two frames: freeze, thaw, other weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import partime_async as pa
from tests.learning.reference import Weights, simulate
from tests.learning.school import (
    ADAM,
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

LATE = [*RULES, pa.UpdateRule("current", 3), pa.UpdateRule("replay", 3)]


@pytest.mark.parametrize("rule", LATE, ids=str)
@pytest.mark.parametrize("frozen", [{8}, {0, 1, 2, 7, 9, 10}], ids=str)
async def test_learning_frozen_and_thawed_in_between_goes_as_defined(rule: pa.UpdateRule, frozen: set[int]) -> None:
    """Frames before a boundary teach nothing behind it, however short the freeze and whatever the rule."""
    delays = Delays()
    net, learner = blocks(3, delays), pa.Learner(mse, MOMENTUM, rule=rule)
    frames, targets = lessons(20, missing=0.1)
    taught = await teach(net, [1, 1, 1], frames, targets, learner, frozen=frozen)
    delays.is_on = False
    assert_as_defined(taught, simulate(net, [1, 1, 1], frames, targets, plain(learner), frozen=frozen))
    assert not {update.event for update in taught.updates} & frozen
    assert {update.stage for update in taught.updates if update.event > max(frozen)} == {0, 1, 2}


def _other_weights(net: nn.Module) -> Weights:
    return {name: (tensor * 0.5 + 0.1).to(tensor.dtype) for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("rule", LATE, ids=str)
@pytest.mark.parametrize("layer", [nn.BatchNorm1d, lambda _: nn.Linear(WIDTH, WIDTH).requires_grad_(False)])
async def test_weights_replaced_while_learning_take_no_gradient_of_the_old_ones(
    rule: pa.UpdateRule, layer: type[nn.Module]
) -> None:
    """Gradients on their way are let go; the optimiser keeps what it knows; versions count the replacement."""
    net = nn.Sequential(*blocks(1), layer(WIDTH), *blocks(2)).eval()
    learner, replaced = pa.Learner(mse, ADAM, rule=rule), {8: _other_weights(net)}
    frames, targets = lessons(18, missing=0.1)
    taught = await teach(net, [1, 2, 1], frames, targets, learner, replaced=replaced)
    assert_as_defined(taught, simulate(net, [1, 2, 1], frames, targets, plain(learner), replaced=replaced))


async def test_thaw_while_learning_and_freeze_while_frozen_change_nothing() -> None:
    """A boundary is where something changes: asking twice is no boundary."""
    frames, targets = lessons(12, missing=0.0)
    net, learner = blocks(3), pa.Learner(mse, SGD)
    async with pa.Pipeline(net, frames[0], balance=[1, 1, 1], learner=learner) as pipeline:
        for frame, target in zip(frames[:8], targets[:8], strict=True):
            await pipeline.process(frame, target)
            await pipeline.thaw()
        await pipeline.freeze()
        for frame, target in zip(frames[8:], targets[8:], strict=True):
            await pipeline.process(frame, target)
            await pipeline.freeze()
    history = simulate(net, [1, 1, 1], frames, targets, plain(learner), frozen=range(8, 12))
    assert_same_weights(await pipeline.state_dict(), history.weights[-1])


async def test_frozen_pipeline_goes_on_predicting_and_keeps_nothing() -> None:
    """Results come with their losses, at one weight version, and no forward pass is kept to come back to."""
    frames, targets = lessons(10, missing=0.0)
    async with pa.Pipeline(blocks(2), frames[0], balance=[1, 1], learner=pa.Learner(mse, SGD)) as pipeline:
        for frame, target in zip(frames[:5], targets[:5], strict=True):
            await pipeline.process(frame, target)
        await pipeline.freeze()
        results = [await pipeline.process(*each) for each in zip(frames[5:], targets[5:], strict=True)]
        learning = [stage.learning for stage in pipeline.statistics().stages]
    assert all(result.loss is not None for result in results)
    assert {result.weight_versions for result in results} == {(4, 5)}
    assert all(stage is not None and stage.is_frozen and not stage.kept for stage in learning)


async def test_batch_norm_of_a_frozen_pipeline_goes_on_counting() -> None:
    """What is frozen is learning: a net in training mode still keeps its statistics, as under `no_grad`."""
    net = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
    frames = [torch.randn(3, WIDTH) for _ in range(4)]
    async with pa.Pipeline(net, frames[0], stages=1, learner=pa.Learner(mse, SGD)) as pipeline:
        await pipeline.freeze()
        for frame in frames:
            await pipeline.process(frame, frame)
        state = await pipeline.state_dict()
    assert int(state["0.num_batches_tracked"]) == 4
    assert torch.equal(state["1.weight"], net.state_dict()["1.weight"])


async def test_frozen_pipeline_that_is_entered_again_is_still_frozen() -> None:
    """Whether it learns belongs to the pipeline, like its weights, until it is told otherwise."""
    frames, targets = lessons(4, missing=0.0)
    pipeline = pa.Pipeline(blocks(1), frames[0], stages=1, learner=pa.Learner(mse, SGD))
    async with pipeline:
        await pipeline.freeze()
    async with pipeline:
        for frame, target in zip(frames, targets, strict=True):
            assert (await pipeline.process(frame, target)).weight_versions == (0,)


async def test_freeze_of_a_pipeline_that_does_not_learn_is_refused() -> None:
    """Without a learner there is nothing to freeze or thaw."""
    frames, _ = lessons(1)
    async with pa.Pipeline(blocks(1), frames[0], stages=1) as pipeline:
        for action in (pipeline.freeze, pipeline.thaw):
            with pytest.raises(pa.ConfigurationError, match="does not learn"):
                await action()
