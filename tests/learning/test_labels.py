"""Targets with the frame, later, too late and never; and losses that need none."""

from __future__ import annotations

import asyncio

import pytest
import torch
from torch import Tensor

import partime_async as pa
from partime_async.labels import LabelBook
from tests.learning.reference import simulate
from tests.learning.school import (
    MOMENTUM,
    RULES,
    SGD,
    Taught,
    Value,
    assert_as_defined,
    assert_same_weights,
    blocks,
    lessons,
    mse,
    plain,
    stage_learners,
    teach,
)

TARGET = torch.ones(1)


def test_label_book_without_a_delay_takes_what_comes_with_the_frame() -> None:
    """A frame learns from the target that came along; one without a target is counted as missing."""
    book = LabelBook(0)
    assert book.admit(0, TARGET) == (TARGET, True)
    assert book.admit(1, None) == (None, False)
    assert book.statistics() == pa.LabelStatistics(taken=1, missing=1, withheld=0, refused=0)


def test_label_book_with_a_delay_gives_a_target_to_the_event_that_many_frames_later() -> None:
    """Whether a target came with its frame or later, the same event learns from it."""
    book = LabelBook(2)
    assert book.admit(0, TARGET) == (None, False)
    other = torch.zeros(1)
    assert book.admit(1, None) == (None, False)
    book.label(1, other)
    assert book.admit(2, None) == (TARGET, True)
    assert book.admit(3, None) == (other, True)
    assert book.admit(4, None) == (None, False)
    assert book.statistics() == pa.LabelStatistics(taken=2, missing=1, withheld=0, refused=0)


def test_label_book_without_time_withholds_nine_in_a_row() -> None:
    """What finds no time is measured and not learned from, but a tenth is, however little time there is."""
    book = LabelBook(0)
    learned = [book.admit(index, TARGET, has_time=False)[1] for index in range(25)]
    assert [index for index, is_lesson in enumerate(learned) if is_lesson] == [9, 19]
    assert book.admit(25, TARGET) == (TARGET, True)
    assert book.statistics() == pa.LabelStatistics(taken=3, missing=0, withheld=23, refused=0)


def test_label_book_at_the_last_moment_takes_a_label_and_then_no_more() -> None:
    """A label is in time until the event that learns from its frame is admitted."""
    book = LabelBook(2)
    for index in range(3):
        book.admit(index, None)
    book.label(1, TARGET)
    with pytest.raises(pa.LabelError, match=r"frame 0 cannot be labelled: frame 2 was .* before frame 2 is") as caught:
        book.label(0, TARGET)
    assert (caught.value.index, caught.value.latest, caught.value.delay) == (0, 2, 2)
    assert book.statistics().refused == 1


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_label_book_refuses_a_label_for_a_frame_that_was_not_admitted(index: int) -> None:
    """There is nothing to label before the first frame or behind the last."""
    book = LabelBook(4)
    for admitted in range(3):
        book.admit(admitted, None)
    with pytest.raises(pa.LabelError):
        book.label(index, TARGET)


def test_label_book_given_two_targets_for_a_frame_keeps_the_later() -> None:
    """A correction in time takes the place of the first target."""
    book = LabelBook(1)
    book.admit(0, torch.zeros(1))
    book.label(0, TARGET)
    assert book.admit(1, None) == (TARGET, True)


def test_label_book_over_many_frames_holds_no_more_than_the_delay() -> None:
    """Targets that were learned from are let go."""
    book = LabelBook(3)
    for index in range(1000):
        book.admit(index, TARGET)
        assert len(book._targets) <= 4


DELAY = 3
"""A label may come until 2 frames after its own were admitted."""


async def _labelled(
    stages: int, learner: pa.Learner, lateness: list[int | None], frames: list[Value], targets: list[Value]
) -> tuple[Taught, pa.LabelStatistics]:
    """Give every frame its target: with it (-1), so many frames later, or never (None)."""
    taught = Taught()
    async with pa.Pipeline(blocks(3), frames[0], balance=_BALANCES[stages], learner=learner) as pipeline:
        for t, frame in enumerate(frames):
            taught.results.append(await pipeline.process(frame, targets[t] if lateness[t] == -1 else None))
            for index in range(t + 1):
                late = lateness[index]
                if late is not None and index + late == t:
                    if late < DELAY:
                        await pipeline.label(index, targets[index])
                    else:
                        with pytest.raises(pa.LabelError):
                            await pipeline.label(index, targets[index])
        learning = pipeline.statistics().learning
        assert learning is not None
        assert learning.labels is not None
    taught.weights[len(frames) - 1] = await pipeline.state_dict()
    taught.stages = [stage.statistics() for stage in stage_learners(pipeline)]
    return taught, learning.labels


_BALANCES = {1: [3], 3: [1, 1, 1]}


@pytest.mark.parametrize("stages", _BALANCES)
@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_labels_that_come_late_teach_as_defined(rule: pa.UpdateRule, stages: int) -> None:
    """With the frame, late, too late or never: the weights are the reference's for the targets that were in time."""
    count = 16
    frames, _ = lessons(count)
    targets: list[Value] = [*torch.randn(count, 1, frames[0][0].numel())]
    lateness = [-1, 0, 1, 2, None, 3, 0, 4, 2, 2, -1, 1, 0, 2, 1, 0]
    updates: list[pa.Update] = []
    learner = pa.Learner(mse, MOMENTUM, rule=rule, label_delay=DELAY, on_update=updates.append)
    random_state = torch.random.get_rng_state()
    taught, labels = await _labelled(stages, learner, lateness, frames, targets)
    taught.updates = updates
    in_time = [
        target if late is not None and late < DELAY else None for target, late in zip(targets, lateness, strict=True)
    ]
    torch.random.set_rng_state(random_state)
    history = simulate(blocks(3), _BALANCES[stages], frames, in_time, plain(learner))
    assert {update.stage for update in updates} == set(range(stages))
    assert_as_defined(taught, history)
    events = count - DELAY
    assert labels.taken == sum(target is not None for target in in_time[:events])
    assert labels.missing == events - labels.taken
    assert labels.refused == 2


async def test_late_losses_are_counted_in_the_mean() -> None:
    """A result cannot carry a loss that is not known yet; the statistics have it once it is."""
    frames, targets = lessons(8, missing=0.0)
    late = await teach(blocks(1), [1], frames, targets, pa.Learner(mse, SGD, rule=pa.rules.exact(), label_delay=2))
    assert [result.loss for result in late.results] == [None] * 8
    assert late.learning is not None
    assert late.learning.loss.count == 6


async def test_losses_are_counted_before_anything_is_learned_from_them() -> None:
    """The mean loss is that of the results: every frame is predicted first."""
    frames, targets = lessons(8)
    taught = await teach(blocks(2), [1, 1], frames, targets, pa.Learner(mse, SGD))
    losses = [result.loss for result in taught.results if result.loss is not None]
    assert taught.learning is not None
    assert taught.learning.loss.count == len(losses)
    assert taught.learning.loss.mean == pytest.approx(sum(losses) / len(losses))


def _told_apart(output: Tensor, target: Tensor | None = None) -> Tensor:
    """Be a loss that could be called either way."""
    return (output**2).mean() if target is None else mse(output, target)


@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_unsupervised_learner_calls_the_loss_with_the_output_alone(rule: pa.UpdateRule) -> None:
    """Every frame teaches, with a target or without, and the target plays no part."""
    frames, targets = lessons(8)
    learner = pa.Learner(_told_apart, SGD, rule=rule, unsupervised=True)
    taught = await teach(blocks(2), [1, 1], frames, targets, learner)
    torch.manual_seed(20210)
    assert_as_defined(taught, simulate(blocks(2), [1, 1], frames, [None] * 8, plain(learner)))


async def test_supervised_learner_without_a_target_never_calls_the_loss() -> None:
    """What a function could take says nothing: without a target there is no loss, and nothing is learned."""
    frames, _ = lessons(4)
    net = blocks(2)
    taught = await teach(net, [1, 1], frames, [None] * 4, pa.Learner(_told_apart, SGD))
    assert [result.loss for result in taught.results] == [None] * 4
    assert not taught.updates
    assert_same_weights(taught.weights[3], net.state_dict())


async def test_label_without_a_use_for_it_is_refused() -> None:
    """A pipeline that does not learn, or not from labels, says so."""
    frames, _ = lessons(1)
    unsupervised = pa.Learner(_told_apart, SGD, unsupervised=True)
    for learner in (None, unsupervised):
        async with pa.Pipeline(blocks(1), frames[0], stages=1, learner=learner) as pipeline:
            result = await pipeline.process(frames[0])
            with pytest.raises(pa.ConfigurationError, match="no use for labels"):
                await pipeline.label(result.index, frames[0])


@pytest.mark.parametrize("target", [3, [torch.ones(1)], (torch.ones(1), 2), ()], ids=repr)
async def test_target_that_is_no_tensor_is_refused_where_it_enters(target: pa.Value) -> None:
    """With the frame or as a label: it never comes to a stage, and the frame is counted as invalid."""
    frames, _ = lessons(1)
    learner = pa.Learner(mse, SGD, label_delay=5)
    async with pa.Pipeline(blocks(1), frames[0], stages=1, learner=learner) as pipeline:
        with pytest.raises(pa.FrameError, match="the target is a"):
            await pipeline.process(frames[0], target)
        assert pipeline.statistics().frames.dropped == {"invalid": 1}
        result = await pipeline.process(frames[0])
        with pytest.raises(pa.FrameError, match="the target is a"):
            await pipeline.label(result.index, target)


async def test_caller_who_reuses_its_tensors_behind_the_result_changes_nothing() -> None:
    """Once a result is there, its frame, target and output are the caller's: the passes that are kept have copies."""
    frames, targets = lessons(12, missing=0.0)
    for rule in RULES:
        torch.manual_seed(3)
        net, learner = blocks(3), pa.Learner(mse, SGD, rule=rule)
        history = simulate(net, [1, 1, 1], frames, targets, plain(learner))
        frame, target = torch.empty(1, 5), torch.empty(1, 5)
        async with pa.Pipeline(net, frame, balance=[1, 1, 1], learner=learner) as pipeline:
            for given, wanted in zip(frames, targets, strict=True):
                assert isinstance(given, Tensor)
                assert isinstance(wanted, Tensor)
                frame.copy_(given)
                target.copy_(wanted)
                output = (await pipeline.process(frame, target)).output
                for tensor in (frame, target, output):
                    assert isinstance(tensor, Tensor)
                    tensor.fill_(torch.nan)
                await asyncio.sleep(0)
        assert_same_weights(await pipeline.state_dict(), history.weights[-1], f"{rule}:")
