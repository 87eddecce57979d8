"""One network learning one course by one rule in a real pipeline, and the search for the rate it learns best at."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import fmean

import torch
from torch import Tensor, nn

import partime_async as pa
from benchmarks.learning.courses import COURSES, STAGES, Course, Lecture
from benchmarks.record import BenchmarkError, Measurement
from benchmarks.workers import event_loop
from partime_async.errors import PartimeWarning
from partime_async.learning import rules

EXACT, PIPEDREAM, SKIP = "exact", "pipedream", "skip"
RULES: Mapping[str, pa.UpdateRule | None] = {
    EXACT: rules.exact(),
    PIPEDREAM: rules.pipedream(),
    "stash, lag 2": pa.UpdateRule("stash", 2),
    "replay": rules.replay(),
    "current, lag 1": pa.UpdateRule("current", 1),
    "partime": rules.partime(),
    SKIP: None,
}
"""By the names in tables; `skip` is no rule: one device that learns from every fourth frame and predicts them all."""

TUNING_SEED = 103
HOPELESS = 1e4
"""A loss from which nothing is to be hoped; the mean loss of a trial that came to it."""

_MOST_STEPS = 12
_BINS = 50


@dataclass(frozen=True, slots=True)
class Study:
    """What came of one course in one order under one rule.

    Attributes:
        rate: The learning rate that was best in the search.
        tried: Mean loss by learning rate, with the seed of the search.
        by_seed: What was measured with this rate.
    """

    rate: float
    tried: Mapping[float, float]
    by_seed: Mapping[int, Measurement]


@dataclass(frozen=True, slots=True)
class Task:
    """A study to be made; travels to a worker process.

    Attributes:
        course: Its name.
        order: Of the frames.
        rule: Its name in `RULES`.
        seeds: Of the networks and orders to be measured.
        frames: How many; None: as many as the course has.
        is_tuned: Whether to search for the learning rate, with a seed of its own; otherwise the first one is taken.
    """

    course: str
    order: str
    rule: str
    seeds: Sequence[int]
    frames: int | None = None
    is_tuned: bool = True

    def study(self) -> Study:
        """Search for the learning rate, then measure."""
        torch.set_num_threads(1)
        # That some streams do not suit `current` is what is to be seen here.
        warnings.simplefilter("ignore", PartimeWarning)
        course = COURSES[self.course]
        tried: dict[float, float] = {}

        def loss_at(exponent: int) -> float:
            rate = course.first_rate * 2.0**exponent
            tried[rate] = self._learn(rate, TUNING_SEED).figures["online_loss"]
            return tried[rate]

        rate = course.first_rate * 2.0 ** (downhill(loss_at) if self.is_tuned else 0)
        return Study(rate, tried, {seed: self._learn(rate, seed) for seed in self.seeds})

    def _learn(self, rate: float, seed: int) -> Measurement:
        course = COURSES[self.course]
        lecture = course.lecture(self.order, self.frames or course.frames, seed)
        with asyncio.Runner(loop_factory=event_loop) as runner:
            return runner.run(learned(course, lecture, self.rule, rate, seed))


def downhill(loss_at: Callable[[int], float]) -> int:
    """Return the whole number from which neither step leads to less, coming from 0.

    So every rule searches the same endless grid, and none can end at its edge.

    Args:
        loss_at: What to make small; asked once for each number.

    Raises:
        BenchmarkError: It goes on and on.
    """
    known = cache(loss_at)
    best = 0
    for _ in range(_MOST_STEPS):
        # Where all three are hopeless, the first one: a smaller rate.
        better = min((best - 1, best, best + 1), key=known)
        if better == best and known(best) < HOPELESS:
            return best
        best = better
    raise BenchmarkError(f"no learning rate is best after {_MOST_STEPS} doublings. Let the search start elsewhere.")


async def learned(course: Course, lecture: Lecture, rule: str, rate: float, seed: int) -> Measurement:
    """Let a new network learn from the frames, and say how well it predicted each before it learned from it.

    Args:
        course: What is learned.
        lecture: The frames.
        rule: Name in `RULES`.
        rate: Learning rate.
        seed: Of the network's first weights.
    """
    torch.manual_seed(seed)
    module = course.module()
    found = RULES[rule]
    balance = list(course.balance) if found is not None else [len(module)]
    learner = pa.Learner(course.loss, partial(torch.optim.SGD, lr=rate), rule=found or rules.exact())
    score = _Score(course, lecture)
    async with pa.Pipeline(module, lecture.frames[0], balance=balance, devices=["cpu"], learner=learner) as pipeline:
        async for result in pipeline.stream(_pairs(lecture, score, every=1 if found is not None else STAGES)):
            score.take(result.output)
        module.load_state_dict(await pipeline.state_dict())
    return score.measurement(module, rate)


def _pairs(lecture: Lecture, score: _Score, *, every: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Give each frame, every so many with their target, until there is no hope."""
    for index, (frame, target) in enumerate(zip(lecture.frames, lecture.targets, strict=True)):
        if score.is_hopeless:
            return
        yield frame, target if index % every == 0 else None


@dataclass(slots=True)
class _Score:
    course: Course
    lecture: Lecture
    losses: list[float] = field(default_factory=list)
    right: int = 0
    is_hopeless: bool = False

    def take(self, output: pa.Value) -> None:
        """Score the next output."""
        assert isinstance(output, Tensor)
        target = self.lecture.targets[len(self.losses)]
        loss = self.course.loss(output, target).item()
        self.losses.append(loss if loss < HOPELESS else HOPELESS)  # one that is no number, too
        self.right += self.lecture.held_out is not None and int(output.argmax()) == int(target)
        self.is_hopeless |= self.losses[-1] == HOPELESS

    def measurement(self, module: nn.Module, rate: float) -> Measurement:
        figures = {
            "online_loss": HOPELESS if self.is_hopeless else fmean(self.losses),
            "rate": rate,
            "naive": self.lecture.naive,
        }
        if self.lecture.held_out is not None:
            images, classes = self.lecture.held_out
            with torch.no_grad():
                is_right = module(images).argmax(dim=1) == classes
            figures["accuracy"] = self.right / len(self.losses)
            figures["held_out_accuracy"] = is_right.float().mean().item()
        return Measurement(figures, {"loss": binned(self.losses)})


def binned(losses: Sequence[float]) -> Sequence[float]:
    """Return means over at most 50 stretches of equal length; what is left over at the end joins the last one."""
    count = min(_BINS, len(losses))
    size = len(losses) // count
    starts = range(0, size * count, size)
    return [fmean(losses[start : start + size if start < starts[-1] else len(losses)]) for start in starts]
