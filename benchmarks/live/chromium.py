"""What a browser sees: Chromium's camera through a network and back, this library beside the usual ways with aiortc."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.live.chromium_contestants import ChromiumSpec, clip_for
from benchmarks.live.contestants import EXECUTOR, NICENESS, OURS, RELAY
from benchmarks.live.fastrtc_peer import FASTRTC_WAYS, is_installed
from benchmarks.live.networks import HEAVY, LIGHT, TINY, Network
from benchmarks.record import BenchmarkError, Report, Round
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, label, table
from benchmarks.workers import Worker

SECONDS = 20.0
_ROUNDS, _EXTRA = 2, 3
_QUICK_SECONDS, _QUICK_WARM_UP_S, _WARM_UP_S = 1.5, 1.0, 4.0
_WAYS = (OURS, EXECUTOR, RELAY, *FASTRTC_WAYS)


@dataclass(frozen=True, slots=True)
class _Mode:
    network: Network
    most_p95_ms: float


MODES = {"light": _Mode(LIGHT, 80.0), "heavy": _Mode(HEAVY, 200.0)}
_LEAST_DECODED_PER_S = 20.0
_COLUMNS = {
    "decoded_per_s": "decoded/s",
    "decoded_p50_ms": "to decoded p50, ms",
    "decoded_p95_ms": "p95, ms",
    "decoded_p99_ms": "p99, ms",
    "shown_p50_ms": "to shown p50, ms",
    "shown_p95_ms": "p95, ms",
    "jitter_buffer_ms": "of it jitter buffer, ms",
    "slope_ms_per_s": "slope, ms/s",
    "lost_per_s": "not shown/s",
}


def run(settings: Settings) -> Outcome:
    """Measure both modes, each turn for 20 s."""
    return measure(settings, list(MODES), seconds=SECONDS, rounds=_ROUNDS)


def measure(settings: Settings, names: Sequence[str], *, seconds: float, rounds: int) -> Outcome:
    """Measure these modes, each turn for so long.

    Raises:
        BenchmarkError: There is no Chromium.
    """
    if shutil.which("chromium") is None:
        raise BenchmarkError("Chromium is not installed. Run: apt-get install chromium.")
    pace = Pace(generations=1, rounds=rounds, extra=_EXTRA, seconds=seconds)
    if settings.is_quick:
        pace = Pace(generations=1, rounds=1, extra=0, seconds=_QUICK_SECONDS)
    found: list[Round] = []
    facts: dict[str, Mapping[str, str]] = {}
    with TemporaryDirectory(prefix="partime-camera-") as folder:
        clip = clip_for(Path(folder), pace.seconds)
        for name in names:
            network = TINY if settings.is_quick else MODES[name].network
            facts[name] = {"network": network.name, "one core, ms": f"{network.one_core_ms():.1f}"}
            say(f"chromium, {name}: {facts[name]['one core, ms']} ms a frame on one core")
            warm_up_s = _QUICK_WARM_UP_S if settings.is_quick else _WARM_UP_S
            spec = partial(ChromiumSpec, network=network, clip=clip, warm_up_s=warm_up_s)
            rounds_of, browser = _mode(name, spec, pace, settings)
            facts[name] = {**facts[name], "chromium": browser}
            found += rounds_of
    return Outcome({**pace.settings(), "niceness": NICENESS}, found, facts)


def tables(report: Report) -> str:
    """Return one table for each mode."""
    return "\n\n".join(_table(report, name) for name in MODES if report.of(name))


def _mode(name: str, spec: partial[ChromiumSpec], pace: Pace, settings: Settings) -> tuple[list[Round], str]:
    with ExitStack() as stack:
        # A process each: thread counts stick to a process. One for all is quicker.
        shared = stack.enter_context(Worker()) if settings.is_quick else None
        # FastRTC's process takes longer to start than a quick turn of all the others together.
        has_fastrtc = is_installed() and not settings.is_quick
        ways = [way for way in _WAYS if has_fastrtc or way not in FASTRTC_WAYS]
        workers = {way: shared or stack.enter_context(Worker()) for way in ways}
        facts = [worker.open(way, spec(way=way)) for way, worker in workers.items()]
        return interleave(workers, pace, group=name), facts[0]["chromium"]


def _table(report: Report, name: str) -> str:
    mode, rounds, facts = MODES[name], report.of(name), report.facts[name]
    version = facts["chromium"].partition(".")[0]
    head = f"Chromium {version}, {label(report, name)}: {facts['network']}, {facts['one core, ms']} ms on one core"
    rows = [_row(rounds, mode, way) for way in _WAYS]
    return table([head, *_COLUMNS.values()], rows)


def _row(rounds: Sequence[Round], mode: _Mode, way: str) -> list[str]:
    if not all(way in each.samples for each in rounds):
        return [way, "not measured", *[""] * (len(_COLUMNS) - 1)]
    return [way, *(_cell(rounds, mode, way, column) for column in _COLUMNS)]


def _cell(rounds: Sequence[Round], mode: _Mode, way: str, column: str) -> str:
    if column == "lost_per_s":
        return Spread.over(
            rounds, lambda each: each.figure(way, "camera_per_s") - each.figure(way, "shown_per_s")
        ).cell()
    spread = Spread.over(rounds, figure(way, column))
    if way != OURS:
        return spread.cell()
    if column == "decoded_per_s":
        return spread.cell(at_least=_LEAST_DECODED_PER_S)
    return spread.cell(at_most=mode.most_p95_ms if column in ("decoded_p95_ms", "shown_p95_ms") else None)
