"""A caller's pictures through a network and back, in four modes, this library beside the usual ways with aiortc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from benchmarks.live.contestants import EXECUTOR, IN_RECV, NICENESS, OURS, OURS_UNENDED, RELAY, LiveSpec
from benchmarks.live.fastrtc_peer import FASTRTC, FASTRTC_SKIPPING, is_installed
from benchmarks.live.networks import HEAVY, LIGHT, LIGHT_STALLING, TINY, TINY_STALLING, Network
from benchmarks.record import Report, Round
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, label, table
from benchmarks.workers import Worker

OVERLOAD, LIGHT_LOAD, LEARNING, STALL = "overload", "light", "learning", "stall"
SECONDS, STALL_S = 20.0, 2.0
_ROUNDS, _EXTRA = 2, 4
_QUICK_SECONDS, _QUICK_WARM_UP_S, _QUICK_STALL_S = 1.5, 0.7, 0.3


@dataclass(frozen=True, slots=True)
class Mode:
    """What the contestants of a group do.

    Attributes:
        network: What runs.
        ways: Who takes part.
        limits: Targets of this library: at least for frames and steps a second, at most for all else.
        is_learning: Whether the network learns.
        stall_s: How long it stalls once.
    """

    network: Network
    ways: Sequence[str]
    limits: Mapping[str, float]
    is_learning: bool = False
    stall_s: float = 0.0


_FASTRTC_WAYS = (FASTRTC, FASTRTC_SKIPPING)
_ALL_WAYS = (OURS, OURS_UNENDED, IN_RECV, EXECUTOR, RELAY, *_FASTRTC_WAYS)
_EVERYWHERE = {"lag_p99_ms": 6.0, "round_trip_p50_ms": 2.0}

MODES = {
    OVERLOAD: Mode(
        HEAVY,
        _ALL_WAYS,
        {**_EVERYWHERE, "frames_per_s": 22.0, "latency_p50_ms": 160.0, "latency_p99_ms": 230.0, "slope_ms_per_s": 1.0},
    ),
    LIGHT_LOAD: Mode(
        LIGHT, _ALL_WAYS, {**_EVERYWHERE, "frames_per_s": 29.5, "latency_p50_ms": 60.0, "latency_p99_ms": 75.0}
    ),
    LEARNING: Mode(
        LIGHT,
        (OURS, OURS_UNENDED),
        {**_EVERYWHERE, "frames_per_s": 29.5, "latency_p99_ms": 95.0, "steps_per_s": 15.0},
        is_learning=True,
    ),
    STALL: Mode(LIGHT_STALLING, (OURS, EXECUTOR, RELAY), {"recovery_s": 0.5}, stall_s=STALL_S),
}
_COLUMNS = {
    "frames_per_s": "frames/s",
    "latency_p50_ms": "latency p50, ms",
    "latency_p99_ms": "p99, ms",
    "latency_last_ms": "at the end, ms",
    "slope_ms_per_s": "slope, ms/s",
    "lag_p99_ms": "loop lag p99, ms",
    "round_trip_p50_ms": "data channel there and back p50, ms",
}
_AT_LEAST = ("frames_per_s", "steps_per_s")
_EXTRA_COLUMNS = {LEARNING: {"steps_per_s": "training steps/s"}, STALL: {"recovery_s": "late for, s"}}


def run(settings: Settings) -> Outcome:
    """Measure every mode, each turn for 20 s."""
    return measure(settings, SECONDS, list(MODES))


def measure(settings: Settings, seconds: float, names: Sequence[str]) -> Outcome:
    """Measure these modes, each turn for so long."""
    pace = Pace(generations=1, rounds=_ROUNDS, extra=_EXTRA, seconds=seconds)
    if settings.is_quick:
        pace = Pace(generations=1, rounds=1, extra=0, seconds=_QUICK_SECONDS)
    rounds: list[Round] = []
    facts: dict[str, Mapping[str, str]] = {}
    for name in names:
        mode = MODES[name]
        network = _tiny(mode.network) if settings.is_quick else mode.network
        facts[name] = {"network": network.name, "one core, ms": f"{network.one_core_ms():.1f}"}
        say(f"{name}: {facts[name]['one core, ms']} ms a frame on one core")
        rounds += _mode(name, mode, network, pace, settings)
    return Outcome({**pace.settings(), "niceness": NICENESS, "stall_s": STALL_S}, rounds, facts)


def tables(report: Report) -> str:
    """Return one table for each mode."""
    return "\n\n".join(_table(report, name) for name in MODES if report.of(name))


def _mode(name: str, mode: Mode, network: Network, pace: Pace, settings: Settings) -> list[Round]:
    with ExitStack() as stack:
        # A process each: thread counts, and what a way leaves behind, stick to a process. One for all is quicker.
        shared = stack.enter_context(Worker()) if settings.is_quick else None
        ways = [way for way in mode.ways if is_installed() or way not in _FASTRTC_WAYS]
        workers = {way: shared or stack.enter_context(Worker()) for way in ways}
        for way, worker in workers.items():
            spec = LiveSpec(way, network, is_learning=mode.is_learning, stall_s=mode.stall_s)
            if settings.is_quick:
                spec = replace(spec, stall_s=min(spec.stall_s, _QUICK_STALL_S), warm_up_s=_QUICK_WARM_UP_S)
            worker.open(way, spec)
        return interleave(workers, pace, group=name)


def _tiny(network: Network) -> Network:
    return TINY_STALLING if network.can_stall else TINY


def _table(report: Report, name: str) -> str:
    mode, rounds = MODES[name], report.of(name)
    columns = {**_COLUMNS, **_EXTRA_COLUMNS.get(name, {})}
    facts = report.facts[name]
    head = f"{label(report, name)}: {facts['network']}, {facts['one core, ms']} ms on one core"
    rows = [_row(rounds, mode, way, list(columns)) for way in mode.ways]
    return table([head, *columns.values()], rows)


def _row(rounds: Sequence[Round], mode: Mode, way: str, columns: Sequence[str]) -> list[str]:
    if not all(way in each.samples for each in rounds):
        return [way, "not installed", *[""] * (len(columns) - 1)]
    return [way, *(_cell(rounds, mode, way, column) for column in columns)]


def _cell(rounds: Sequence[Round], mode: Mode, way: str, column: str) -> str:
    spread = Spread.over(rounds, figure(way, column))
    limit = mode.limits.get(column) if way == OURS else None
    return spread.cell(at_least=limit) if column in _AT_LEAST else spread.cell(at_most=limit)
