"""Learning in spare time: which frames are withheld, what becomes of them, and that nothing else changes."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from tests.learning.school import RULES, SGD, WIDTH, assert_same_weights, blocks, lessons, mse, teach
from tests.nets import TIMEOUT_S


class _Slow(nn.Module):
    """Takes a moment for every frame."""

    def forward(self, value: Tensor) -> Tensor:
        time.sleep(0.003)  # on the stage's thread, where it stands for work
        return value


async def _crowded(
    net: nn.Sequential, frames: list[pa.Value], targets: list[pa.Value | None], learner: pa.Learner, every_s: float
) -> tuple[list[pa.Result], pa.LabelStatistics, dict[str, Tensor]]:
    """Teach in spare time, with frames that come so often; return the results, the labels and the weights."""
    results: list[pa.Result] = []
    async with asyncio.timeout(TIMEOUT_S):
        async with pa.Pipeline(net, frames[0], balance=[2, len(net) - 2], learner=learner, devices=["cpu"]) as pipeline:
            async with pipeline.feed(capacity=len(frames), learn="spare") as feed, asyncio.TaskGroup() as group:

                async def read() -> None:
                    results.extend([result async for result in feed])

                group.create_task(read())
                for frame, target in zip(frames, targets, strict=True):
                    await feed.put(frame, target)
                    if every_s:
                        await asyncio.sleep(every_s)
                feed.close()
            statistics = pipeline.statistics().learning
            state = await pipeline.state_dict()
    assert statistics is not None
    assert statistics.labels is not None
    return results, statistics.labels, state


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_frames_withheld_teach_what_frames_without_a_target_do(rule: pa.UpdateRule) -> None:
    """Whichever frames had no spare time, the weights are those of the definition with their targets left out."""
    net, learner = nn.Sequential(_Slow(), *blocks(2)), pa.Learner(mse, SGD, rule=rule)
    frames, targets = lessons(20, missing=0.0)
    results, labels, state = await _crowded(net, frames, targets, learner, 0.0)
    assert labels.withheld > 0
    assert labels.taken > 0
    assert labels.withheld + labels.taken == len(frames)
    versions = [result.weight_versions[-1] for result in results]
    learned = [later > earlier for earlier, later in zip(versions, [*versions[1:], None], strict=True) if later]
    given = [target if has_taught else None for target, has_taught in zip(targets, learned, strict=False)]
    # What became of the last frame shows in the count alone.
    given.append(targets[-1] if labels.taken > sum(learned) else None)
    taught = await teach(net, [2, 1], frames, given, learner)
    assert_same_weights(state, taught.weights[len(frames) - 1])


async def test_frames_withheld_are_measured_all_the_same() -> None:
    """A frame that is not learned from still has its loss, from before anything was learned."""
    net, learner = nn.Sequential(_Slow(), *blocks(2)), pa.Learner(mse, SGD)
    frames, targets = lessons(12, missing=0.0)
    results, labels, _ = await _crowded(net, frames, targets, learner, 0.0)
    assert labels.withheld > 0
    assert all(result.loss is not None for result in results)


async def test_frames_that_find_the_stages_free_all_teach() -> None:
    """Frames that come slowly are all learned from."""
    net, learner = nn.Sequential(_Slow(), *blocks(2)), pa.Learner(mse, SGD)
    frames, targets = lessons(5, missing=0.0)
    _, labels, _ = await _crowded(net, frames, targets, learner, 0.15)
    assert (labels.taken, labels.withheld) == (5, 0)


async def test_late_labels_without_time_are_withheld() -> None:
    """Under a label delay the event that would learn is what has time or not; such a frame has no loss either."""
    net, learner = nn.Sequential(_Slow(), *blocks(2)), pa.Learner(mse, SGD, label_delay=2)
    frames, targets = lessons(20, missing=0.0)
    _, labels, _ = await _crowded(net, frames, targets, learner, 0.0)
    assert labels.withheld > 0
    assert labels.taken + labels.withheld == len(frames) - 2


@pytest.mark.parametrize("learner", [None, pa.Learner(lambda output: output.square().mean(), SGD, unsupervised=True)])
async def test_spare_without_targets_to_withhold_is_refused(learner: pa.Learner | None) -> None:
    """A pipeline with no use for targets says so when the feed is asked for."""
    example = torch.ones(1, WIDTH)
    async with pa.Pipeline(blocks(2), example, balance=[1, 1], learner=learner, devices=["cpu"]) as pipeline:
        with pytest.raises(pa.ConfigurationError, match=r"learn is 'spare'.*Pass a Learner whose loss takes a target"):
            pipeline.feed(learn="spare")


async def test_unknown_choice_of_what_to_learn_from_is_refused() -> None:
    """An unknown value is named, with those there are."""
    async with pa.Pipeline(blocks(2), torch.ones(1, WIDTH), balance=[1, 1], devices=["cpu"]) as pipeline:
        with pytest.raises(pa.ConfigurationError, match=r"learn is 'sometimes'. Use 'always' or 'spare'"):
            pipeline.feed(learn="sometimes")
