"""Frames/s of two stages on two cores, one frame at a time, against plain loops and a pipeline written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from benchmarks import nets
from benchmarks.contestants import ByHandSpec, LoopSpec, PipelineSpec
from benchmarks.load import busy_process
from benchmarks.nets import Net
from benchmarks.record import Report, Round
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, label, ratio, short, table
from benchmarks.workers import Worker

ONE, TWO, BY_HAND, STAGES, PLANNED = "1 thread", "2 threads", "by hand", "2 stages", "planned"
_ALL = (ONE, TWO, BY_HAND, STAGES, PLANNED)
IDLE, LOADED = "idle", "beside a busy process"
RATE = "frames_per_s"

_PACE = Pace(generations=2, rounds=3, extra=2, seconds=0.6)
_QUICK = Pace(generations=1, rounds=2, extra=0, seconds=0.05)
_LOADED_NETS = (nets.TINY, nets.CONV_16, nets.CONV_32, nets.CONV_64, nets.RESNET_50)
_LARGE_NETS = (nets.CONV_32, nets.CONV_64)
"""The nets for which two stages are to reach 1.7 times the frames of one thread."""


def run(settings: Settings) -> Outcome:
    """Measure every net, alone on the machine and beside a busy process."""
    pace = _QUICK if settings.is_quick else _PACE
    facts: dict[str, dict[str, str]] = {}
    rounds: list[Round] = []
    for net in (nets.TINY,) if settings.is_quick else nets.ALL:
        for generation in range(pace.generations):
            say(f"throughput: {net.name}, processes {generation + 1} of {pace.generations}")
            with ExitStack() as stack:
                workers = _start(stack, is_shared=settings.is_quick)
                for name, found in _open(net, workers):
                    facts.setdefault(net.name, {})[f"{name} {generation}"] = found
                rounds += interleave(workers, pace, group=net.name, condition=IDLE, generation=generation)
                if net in _LOADED_NETS:
                    del workers[PLANNED]
                    with busy_process():
                        rounds += interleave(workers, pace, group=net.name, condition=LOADED, generation=generation)
    return Outcome(pace.settings(), rounds, facts)


def _start(stack: ExitStack, *, is_shared: bool) -> dict[str, Worker]:
    """Start a process for each contestant; what is only to be seen to run may share one."""
    if is_shared:
        return dict.fromkeys(_ALL, stack.enter_context(Worker()))
    workers = {name: stack.enter_context(Worker()) for name in _ALL}
    for worker in workers.values():
        worker.wait_until_ready()  # or their start would disturb the planner
    return workers


def _open(net: Net, workers: Mapping[str, Worker]) -> Iterator[tuple[str, str]]:
    """Set up one after the other, so that nothing disturbs the planner; yield what was planned."""
    planned = workers[PLANNED].open(PLANNED, PipelineSpec(net, None))
    yield PLANNED, f"{planned['stages']} of {planned['threads']} thread(s), {planned['balance']} layers"
    stages = workers[STAGES].open(STAGES, PipelineSpec(net, 2))
    yield STAGES, f"{stages['stages']} of {stages['threads']} thread(s), {stages['balance']} layers"
    first, second = map(int, stages["balance"].split("+"))
    # The very cut: the comparison is about running the stages, not about where to cut.
    workers[BY_HAND].open(BY_HAND, ByHandSpec(net, (first, second)))
    for name, threads in ((ONE, 1), (TWO, 2)):
        workers[name].open(name, LoopSpec(net, threads))


def tables(report: Report) -> str:
    """Return the tables: alone on the machine, and beside a busy process."""
    alone = table(
        [
            *("frames/s", *_ALL),
            "2 stages ÷ by hand",
            "2 stages ÷ 1 thread",
            "planned ÷ better loop",
            "planned: stages of threads",
        ],
        [_alone(report, net) for net in report.groups],
    )
    beside = table(
        [
            *("frames/s beside a busy process", ONE, TWO, BY_HAND, STAGES),
            "2 threads ÷ 1 thread",
            "2 stages ÷ 1 thread",
            "2 stages ÷ by hand",
        ],
        [_beside(report, net) for net in report.groups if report.of(net, LOADED)],
    )
    return f"{alone}\n\n{beside}"


def _alone(report: Report, net: str) -> list[str]:
    rounds = report.of(net, IDLE)
    is_large = net in [large.name for large in _LARGE_NETS]
    plans = [plan for name, plan in report.facts.get(net, {}).items() if name.startswith(PLANNED)]
    return [
        label(report, net, IDLE),
        *(short(Spread.over(rounds, figure(name, RATE)).median) for name in _ALL),
        Spread.over(rounds, ratio(STAGES, BY_HAND, RATE)).cell(at_least=1.0),
        Spread.over(rounds, ratio(STAGES, ONE, RATE)).cell(at_least=1.7 if is_large else None),
        Spread.over(rounds, _planned_share).cell(at_least=0.95),
        ", ".join(dict.fromkeys(plan.partition(" thread")[0] for plan in plans)),
    ]


def _beside(report: Report, net: str) -> list[str]:
    rounds = report.of(net, LOADED)
    rates = [Spread.over(rounds, figure(name, RATE)) for name in (ONE, TWO, BY_HAND, STAGES)]
    pairs = ((TWO, ONE), (STAGES, ONE), (STAGES, BY_HAND))
    ratios = [Spread.over(rounds, ratio(name, other, RATE)) for name, other in pairs]
    return [label(report, net, LOADED), *(short(rate.median) for rate in rates), *(each.cell() for each in ratios)]


def _planned_share(each: Round) -> float:
    return each.figure(PLANNED, RATE) / max(each.figure(ONE, RATE), each.figure(TWO, RATE))
