"""Test, then train: the loss and the metrics of every prediction, before anything is learned from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.learning.examiner import Examiner, ExplosionWatch
from tests.learning.school import SGD, WIDTH, blocks, lessons, mse

EXAMPLE = torch.zeros(1, WIDTH)


def distance(output: pa.Value, target: pa.Value) -> Tensor:
    """Return the largest error, as a tensor."""
    return (torch.as_tensor(output) - torch.as_tensor(target)).abs().max()


def sign(output: pa.Value, target: pa.Value) -> float:
    """Return how many signs are right, as a number."""
    return float((torch.as_tensor(output).sign() == torch.as_tensor(target).sign()).float().mean())


async def streamed(pipeline: pa.Pipeline, source: Sequence[object]) -> list[pa.Result]:
    """Return the results of a stream."""
    async with pipeline:
        return [result async for result in pipeline.stream(source)]


METRICS: Mapping[str, pa.Metric] = {"distance": distance, "sign": sign}


def recent_of(numbers: list[float]) -> float:
    """Return the exponential mean as it is defined."""
    mean = numbers[0]
    for number in numbers[1:]:
        mean += 0.05 * (number - mean)
    return mean


@pytest.mark.parametrize("graph", ["stash", "current", "replay"])
@pytest.mark.parametrize("delay", [0, 3])
async def test_measures_are_of_the_outputs_that_were_handed_out(graph: str, delay: int) -> None:
    """Means over all frames with a target, of the very outputs in the results, also when the targets come late."""
    learner = pa.Learner(mse, SGD, rule=pa.UpdateRule(graph, 1), metrics=METRICS, label_delay=delay)
    frames, targets = lessons(20)
    source = [frame if target is None else (frame, target) for frame, target in zip(frames, targets, strict=True)]
    async with pa.Pipeline(blocks(3), EXAMPLE, balance=[1, 1, 1], devices=["cpu"], learner=learner) as pipeline:
        results = [result async for result in pipeline.stream(source)]
        await pipeline.state_dict()  # behind the last frame's lesson
        learning = pipeline.statistics().learning
    assert learning is not None
    known = [
        (result.output, target)
        for result, target in list(zip(results, targets, strict=True))[: len(results) - delay]
        if target is not None
    ]
    expected = {
        "loss": [float(mse(output, target)) for output, target in known],
        "distance": [float(distance(output, target)) for output, target in known],
        "sign": [sign(output, target) for output, target in known],
    }
    for name, numbers in expected.items():
        found = learning.loss if name == "loss" else learning.metrics[name]
        assert found.count == len(numbers)
        assert found.mean == pytest.approx(sum(numbers) / len(numbers))
        assert found.recent == pytest.approx(recent_of(numbers))


async def test_measures_go_on_while_learning_is_frozen() -> None:
    """A network that does not learn is still tested."""
    learner = pa.Learner(mse, SGD, metrics=METRICS)
    frames, targets = lessons(8, missing=0.0)
    async with pa.Pipeline(blocks(2), EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        await pipeline.freeze()
        for frame, target in zip(frames, targets, strict=True):
            await pipeline.process(frame, target)
        learning = pipeline.statistics().learning
    assert learning is not None
    assert learning.loss.count == learning.metrics["sign"].count == 8


async def test_metrics_of_an_unsupervised_learner_use_the_targets_that_its_loss_does_not() -> None:
    """Labels may come along for measuring alone."""

    def loss(output: Tensor) -> Tensor:
        return output.square().mean()

    learner = pa.Learner(loss, SGD, unsupervised=True, metrics=METRICS)
    frames, targets = lessons(10)
    async with pa.Pipeline(blocks(2), EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        for frame, target in zip(frames, targets, strict=True):
            await pipeline.process(frame, target)
        learning = pipeline.statistics().learning
    assert learning is not None
    assert learning.loss.count == 10
    assert learning.metrics["distance"].count == sum(target is not None for target in targets)


async def test_metric_that_raises_fails_its_frame_which_then_teaches_nothing() -> None:
    """A metric is treated as the loss is: the frame fails, with the metric's own error, and the stream goes on."""

    def picky(output: pa.Value, target: pa.Value) -> float:
        if float(torch.as_tensor(target)[0, 0]) > 1.0:
            raise ValueError("not this one")
        return 1.0

    learner = pa.Learner(mse, SGD, rule=pa.rules.exact(), metrics={"picky": picky})
    async with pa.Pipeline(blocks(2), EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        await pipeline.process(EXAMPLE, EXAMPLE)
        before = await pipeline.state_dict()
        with pytest.raises(pa.StageError, match="not this one"):
            await pipeline.process(EXAMPLE, torch.full((1, WIDTH), 2.0))
        after = await pipeline.state_dict()
        await pipeline.process(EXAMPLE, EXAMPLE)
        learning = pipeline.statistics().learning
    assert learning is not None
    assert learning.metrics["picky"].count == 2
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_metric_that_is_not_finite_is_left_out_of_the_means() -> None:
    """One number that is none does not spoil a mean for ever."""
    numbers = iter([1.0, math.nan, 3.0, math.inf])
    examiner = Examiner(pa.Learner(mse, SGD, metrics={"odd": lambda output, target: next(numbers)}))
    for frame in range(4):
        examiner.note(frame, torch.tensor(0.5), EXAMPLE, EXAMPLE)
    _, metrics = examiner.statistics()
    assert (metrics["odd"].count, metrics["odd"].mean) == (2, 2.0)


def test_statistics_before_the_first_loss_are_nan() -> None:
    """Nothing seen is not zero."""
    loss, metrics = Examiner(pa.Learner(mse, SGD, metrics=METRICS)).statistics()
    assert loss.count == 0
    assert math.isnan(loss.mean)
    assert math.isnan(metrics["sign"].recent)


def test_metric_that_is_no_function_is_refused() -> None:
    """What cannot be called is said by name when the learner is made."""
    with pytest.raises(pa.ConfigurationError, match="'accuracy' is float"):
        pa.Learner(mse, SGD, metrics={"accuracy": 0.5})  # type: ignore[dict-item]


@pytest.mark.parametrize("factor", [1.0, 0.0, -3.0, math.inf, math.nan])
def test_explosion_factor_of_one_or_less_is_refused(factor: float) -> None:
    """Every second loss would explode."""
    with pytest.raises(pa.ConfigurationError, match="explosion_factor"):
        pa.Learner(mse, SGD, explosion_factor=factor)


def test_explosion_watch_lets_the_first_twenty_losses_pass() -> None:
    """Before there is a mean to speak of, nothing is too much."""
    watch = ExplosionWatch(2.0)
    assert not any(watch.exceeds(10.0**number) for number in range(20))


def test_explosion_watch_follows_a_stream_that_has_changed() -> None:
    """A lasting change is refused at first and taken for granted in the end; a single outlier hardly counts."""
    watch = ExplosionWatch(5.0)
    for _ in range(100):
        assert not watch.exceeds(1.0)
    assert watch.exceeds(1e9)
    assert watch.exceeds(6.0)
    refused = sum(watch.exceeds(50.0) for _ in range(500))
    assert 20 < refused < 60
    assert not watch.exceeds(50.0)


def test_explosion_watch_has_no_opinion_on_losses_below_zero() -> None:
    """There is no factor between numbers of different signs."""
    watch = ExplosionWatch(2.0)
    assert not any(watch.exceeds(number) for number in [-1.0] * 30 + [1e6])


async def test_loss_that_explodes_teaches_nothing_and_is_counted() -> None:
    """With a stated factor an outlier among the losses is skipped as if it were not finite."""
    learner = pa.Learner(mse, partial(torch.optim.SGD, lr=0.001), rule=pa.rules.exact(), explosion_factor=50.0)
    frames, targets = lessons(40, missing=0.0)
    targets[30] = torch.full((1, WIDTH), 1000.0)
    module = blocks(2)
    async with pa.Pipeline(module, EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner) as pipeline:
        for frame, target in zip(frames, targets, strict=True):
            await pipeline.process(frame, target)
        await pipeline.state_dict()  # behind the last frame's lesson
        statistics = pipeline.statistics().stages[-1].learning
    assert statistics is not None
    assert (statistics.skipped, statistics.updates) == (1, 39)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.001)
    for number, (frame, target) in enumerate(zip(frames, targets, strict=True)):
        if number == 30:
            continue
        optimizer.zero_grad()
        nn.functional.mse_loss(module(frame), torch.as_tensor(target)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = await pipeline.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


async def test_loss_that_explodes_stops_the_pipeline_if_that_is_the_policy() -> None:
    """The policy for numbers not finite holds for those that are much too large."""
    learner = pa.Learner(mse, SGD, explosion_factor=50.0, non_finite="stop")
    pipeline = pa.Pipeline(blocks(2), EXAMPLE, balance=[1, 1], devices=["cpu"], learner=learner)
    source = [(EXAMPLE + 0.1, torch.full((1, WIDTH), 1000.0 if number == 50 else 0.3)) for number in range(60)]
    with pytest.raises(pa.NonFiniteError, match="more than 50 times"):
        await streamed(pipeline, source)
