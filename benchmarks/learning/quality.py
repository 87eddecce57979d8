"""How well each update rule learns: its predictions against those of `exact` and of learning from fewer frames."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from benchmarks.learning import charts
from benchmarks.learning.courses import COURSES, DIGITS, SENSOR, VIDEO, Course
from benchmarks.learning.trial import EXACT, HOPELESS, PIPEDREAM, RULES, SKIP, TUNING_SEED, Study, Task
from benchmarks.machine import usable_cores
from benchmarks.record import Report, Round, Sample
from benchmarks.rounds import say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, ratio, short, table

LOSS = "online_loss"
TARGETS = {VIDEO.name: 1.10, SENSOR.name: 1.12}
"""At most so many times the loss of `exact` is wanted of `pipedream`."""

_SEEDS = (0, 1, 2)
_QUICK_FRAMES = 40


def run(settings: Settings) -> Outcome:
    """Let every rule learn every course, as many at a time as there are cores: no figure depends on the time."""
    quick = settings.is_quick
    seeds, frames = ((0,), _QUICK_FRAMES) if quick else (_SEEDS, None)
    places = [(course, order) for course in COURSES.values() for order in course.orders[: 1 if quick else None]]
    tasks = [
        Task(course.name, order, rule, seeds, frames, is_tuned=not quick) for course, order in places for rule in RULES
    ]
    began = time.perf_counter()
    studies = _studied(tasks)
    seconds = time.perf_counter() - began
    facts = {
        f"{course.name}, {order}": {rule: _described(studies[course.name, order, rule]) for rule in RULES}
        for course, order in places
    }
    rounds = [
        _round(course, order, seed, {rule: studies[course.name, order, rule] for rule in RULES})
        for course, order in places
        for seed in seeds
    ]
    return Outcome({"tuning_seed": TUNING_SEED, "optimizer": "SGD", "seconds": round(seconds)}, rounds, facts)


def _studied(tasks: Sequence[Task]) -> dict[tuple[str, str, str], Study]:
    studies = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(usable_cores()), mp_context=context) as pool:
        asked = {pool.submit(task.study): task for task in tasks}
        try:
            for done in as_completed(asked):
                task = asked[done]
                studies[task.course, task.order, task.rule] = done.result()
                say(f"  learning-quality {len(studies)} of {len(tasks)}: {task.course}, {task.order}, {task.rule}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return studies


def _described(study: Study) -> str:
    tried = ", ".join(f"{rate:g}: {loss:.4g}" for rate, loss in sorted(study.tried.items()))
    return f"learning rate {study.rate:g}" + (f"; mean loss by rate {tried}" if tried else "")


def _round(course: Course, order: str, seed: int, studies: Mapping[str, Study]) -> Round:
    samples = {rule: Sample(study.by_seed[seed], 0.0, None) for rule, study in studies.items()}
    return Round(course.name, order, 0, seed, os.getloadavg()[0], False, samples)


def tables(report: Report) -> str:
    """Return the tables, losses and accuracies, and draw the charts."""
    places = list(_places(report))
    losses = table(
        [
            *("mean loss over the whole stream", "the same again", EXACT),
            *(f"{rule} ÷ exact" for rule in RULES if rule != EXACT),
            "pipedream ÷ skip",
        ],
        [_losses(report, *place) for place in places],
    )
    accuracies = table(
        ["right, in % (online / held out afterwards)", "the last class again", *RULES],
        [_accuracies(report, *place) for place in places if place[0] == DIGITS.name],
    )
    rates = table(
        ["learning rate", *RULES],
        [[_label(*place), *(_rate(report.of(*place), rule) for rule in RULES)] for place in places],
    )
    pictures = "\n".join(charts.quality(report, places))
    return f"{losses}\n\n{accuracies}\n\n{rates}\n\n{pictures}"


def _places(report: Report) -> Iterator[tuple[str, str]]:
    yield from dict.fromkeys((each.group, each.condition) for each in report.rounds)


def _label(course: str, order: str) -> str:
    return f"{course}: {order}"


def _losses(report: Report, course: str, order: str) -> list[str]:
    rounds = report.of(course, order)
    target = TARGETS.get(course)
    is_labelled = course == DIGITS.name
    return [
        _label(course, order),
        "" if is_labelled else short(Spread.over(rounds, figure(EXACT, "naive")).median),
        short(Spread.over(rounds, figure(EXACT, LOSS)).median),
        *(
            _ratio(rounds, rule, EXACT, at_most=target if rule == PIPEDREAM else None)
            for rule in RULES
            if rule != EXACT
        ),
        _ratio(rounds, PIPEDREAM, SKIP, at_most=1.0),
    ]


def _ratio(rounds: Sequence[Round], rule: str, other: str, *, at_most: float | None) -> str:
    if Spread.over(rounds, figure(rule, LOSS)).median >= HOPELESS:
        return "diverges"
    return Spread.over(rounds, ratio(rule, other, LOSS)).cell(at_most=at_most)


def _accuracies(report: Report, course: str, order: str) -> list[str]:
    rounds = report.of(course, order)
    return [
        _label(course, order),
        f"{100 * Spread.over(rounds, figure(EXACT, 'naive')).median:.0f}",
        *(
            " / ".join(
                f"{100 * Spread.over(rounds, figure(rule, name)).median:.0f}"
                for name in ("accuracy", "held_out_accuracy")
            )
            for rule in RULES
        ),
    ]


def _rate(rounds: Sequence[Round], rule: str) -> str:
    return f"{rounds[0].figure(rule, 'rate'):g}"
