"""How long a frame takes beyond the computation itself, and how old results get when frames come too fast."""

from __future__ import annotations

from benchmarks import nets
from benchmarks.arrivals import ArrivalSpec, CameraSpec, OverloadSpec
from benchmarks.record import Report, Round
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, table
from benchmarks.workers import Spec, Worker

GROUP = "latency"
IDLE, SATURATED = "idle", "both cores saturated by a second pipeline in the same loop"
CAMERA, OVERLOAD = "camera", "overload"

_RATE_HZ = 50.0
_CAMERA_HZ, _STAGES, _SERVICE_S = 30.0, 8, 0.002
_EXCESS = 3.0
_PACE = Pace(generations=1, rounds=5, extra=5, seconds=5.0)
_QUICK = Pace(generations=1, rounds=1, extra=0, seconds=0.4)

_PARTS = {
    "arrival to start of work": "start",
    "between the stages": "hops",
    "end of work to reader": "delivery",
    "all overhead": "overhead",
    "loop lag": "lag",
}


def run(settings: Settings) -> Outcome:
    """Measure all contestants in turns."""
    device = settings.device
    small, large = (nets.TINY, nets.TINY) if settings.is_quick else (nets.CONV_16, nets.CONV_32)
    specs: dict[str, Spec] = {
        IDLE: ArrivalSpec(small, _RATE_HZ, None, device),
        SATURATED: ArrivalSpec(small, _RATE_HZ, large, device),
        CAMERA: CameraSpec(_STAGES, _SERVICE_S, _CAMERA_HZ),
        OVERLOAD: OverloadSpec(large, _EXCESS, device),
    }
    pace = _QUICK if settings.is_quick else _PACE
    say("latency")
    with Worker() as worker:
        for name, spec in specs.items():
            worker.open(name, spec)
        rounds = interleave(dict.fromkeys(specs, worker), pace, group=GROUP)
    constants = {"rate_hz": _RATE_HZ, "camera_hz": _CAMERA_HZ, "service_s": _SERVICE_S, "excess": _EXCESS}
    return Outcome({**pace.settings(), **constants, "stages": _STAGES, "net": small.name, "load": large.name}, rounds)


def tables(report: Report) -> str:
    """Return the tables: overheads, a camera before eight stages, and a live source that is too fast."""
    rounds = report.of(GROUP)
    overheads = table(
        ["milliseconds", "idle: p50", "idle: p99", "saturated: p50", "saturated: p99"],
        [
            [
                part,
                *(_cell(rounds, each, f"{key}_{share}_ms") for each in (IDLE, SATURATED) for share in ("p50", "p99")),
            ]
            for part, key in _PARTS.items()
        ],
    )
    lock_step_ms = 1e3 * _STAGES / _CAMERA_HZ
    camera = table(
        [f"{_CAMERA_HZ:g} frames/s through {_STAGES} stages of {1e3 * _SERVICE_S:g} ms", "latency p50, ms", "p99, ms"],
        [
            ["this library", *(_cell(rounds, CAMERA, f"latency_{share}_ms") for share in ("p50", "p99"))],
            ["sum of the stages", *[f"{1e3 * _STAGES * _SERVICE_S:g}"] * 2],
            ["one stage per frame period (lock-step), computed", *[f"{lock_step_ms:.0f}"] * 2],
        ],
    )
    return f"{overheads}\n\n{camera}\n\n{_overload(rounds, str(report.settings['load']))}"


def _overload(rounds: list[Round], net: str) -> str:
    figures = ("latency_p50_ms", "latency_p99_ms", "bound_ms", "p50_per_bound", "p99_per_bound")
    rates = ("live_frames_per_s", "lossless_frames_per_s")
    return table(
        [
            f"`latest`, source {_EXCESS:g} times too fast",
            "age p50, ms",
            "age p99, ms",
            "stages + one service, ms",
            "p50 ÷ that",
            "p99 ÷ that",
            "frames/s, live",
            "frames/s, lossless",
        ],
        [[net, *(_cell(rounds, OVERLOAD, name) for name in (*figures, *rates))]],
    )


def _cell(rounds: list[Round], contestant: str, name: str) -> str:
    return Spread.over(rounds, figure(contestant, name)).cell()
