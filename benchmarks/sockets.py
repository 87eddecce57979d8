"""Many devices at once: how many small frames get through, how soon they are submitted, and that losses are counted."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import partime_async as pa
from benchmarks import senders
from benchmarks.record import BenchmarkError, Measurement, Report
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, percentile, table
from benchmarks.workers import Contestant, Spec, Worker
from partime_async.sockets import Limits, SensorServer, SocketFrame

GROUP = "sockets"
TRANSPORTS = ("tcp", "ws", "udp")
CLIENTS = (1, 10, 100)

_PACED_HZ = 1000.0
"""Of all devices together: what one loop takes without any waiting."""

_IDLE_S = 3.0
# The devices' processes end within a turn, and what they took then counts as other programs': no round is discarded.
_PACE = Pace(generations=1, rounds=3, extra=0, seconds=1.5, most_foreign_share=100.0)
_QUICK = Pace(generations=1, rounds=1, extra=0, seconds=0.6)


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """Devices of one transport, each a feed of one small pipeline.

    Attributes:
        transport: ``tcp``, ``ws`` or ``udp``.
        clients: How many devices.
    """

    transport: str
    clients: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Enter the pipeline."""
        network = nn.Sequential(nn.Linear(senders.VALUES, senders.VALUES))
        async with pa.Pipeline(network, torch.zeros(1, senders.VALUES), stages=1) as pipeline:
            yield _Sockets(pipeline, self)


class _Sockets:
    def __init__(self, pipeline: pa.Pipeline, spec: SocketSpec) -> None:
        self.facts: Mapping[str, str] = {}
        self._pipeline, self._spec = pipeline, spec

    async def run(self, seconds: float) -> Measurement:
        """Half the time as fast as it goes, half the time at a rate that is easy."""
        flood = await self._phase(seconds / 2, 0.0)
        paced = await self._phase(seconds / 2, _PACED_HZ)
        return Measurement(
            {
                "frames_per_s": flood["frames_per_s"],
                "sent": flood["sent"] + paced["sent"],
                "lost": flood["lost"] + paced["lost"],
                "uncounted": flood["uncounted"] + paced["uncounted"],
                "submission_p50_ms": paced["p50_ms"],
                "submission_p99_ms": paced["p99_ms"],
            }
        )

    async def _phase(self, seconds: float, rate_hz: float) -> dict[str, float]:
        delays: list[float] = []
        times: list[float] = []

        async def submitted(frames: AsyncIterable[pa.SourceFrame]) -> AsyncIterator[pa.SourceFrame]:
            async for frame in frames:
                # Both processes read the same monotonic clock, so the stamp is used as it is.
                now = time.monotonic()
                assert isinstance(frame, SocketFrame)
                assert frame.position_s is not None
                delays.append(now - frame.position_s)
                times.append(now)
                yield frame

        path = "/frames" if self._spec.transport == "ws" else ""
        url = f"{self._spec.transport}://127.0.0.1:0{path}"
        async with SensorServer(self._pipeline, url, prepare=submitted, limits=Limits(idle_s=_IDLE_S)) as server:
            sent = await _send(server.url, self._spec.clients, seconds, rate_hz)
            await server.all_left()
            clients = server.statistics().clients
        got = sum(client.frames for client in clients)
        counted = sum(client.sequence.missing for client in clients)
        return {
            "frames_per_s": (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0,
            "sent": float(sent),
            "lost": float(sent - got),
            "uncounted": float(abs(sent - got - counted)),
            "p50_ms": 1e3 * percentile(delays, 0.5),
            "p99_ms": 1e3 * percentile(delays, 0.99),
        }


async def _send(url: str, clients: int, seconds: float, rate_hz: float) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(senders.__file__)),
        url,
        str(clients),
        str(seconds),
        str(rate_hz),
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    if process.returncode:
        raise BenchmarkError(f"the devices failed with exit status {process.returncode}. See their output above.")
    return int(json.loads(told)["sent"])


def run(settings: Settings) -> Outcome:
    """Measure all transports with all numbers of devices, in turns."""
    clients = CLIENTS[:2] if settings.is_quick else CLIENTS
    specs: dict[str, Spec] = {
        f"{transport} {count}": SocketSpec(transport, count) for transport in TRANSPORTS for count in clients
    }
    pace = _QUICK if settings.is_quick else _PACE
    say(GROUP)
    with Worker() as worker:
        for name, spec in specs.items():
            worker.open(name, spec)
        rounds = interleave(dict.fromkeys(specs, worker), pace, group=GROUP)
    constants = {"paced_hz": _PACED_HZ, "values": senders.VALUES}
    return Outcome({**pace.settings(), **constants}, rounds)


def tables(report: Report) -> str:
    """Return the table: one row for each transport and number of devices."""
    rounds = report.of(GROUP)
    heads = [
        f"frames of {4 * senders.VALUES} bytes",
        "devices",
        "frames/s, as fast as it goes",
        f"sent to submitted at {_PACED_HZ:,.0f}/s: p50, ms",
        "p99, ms",
        "sent",
        "lost",
        "lost and not counted",
    ]
    rows = []
    for name in rounds[0].samples if rounds else ():
        transport, _, clients = name.partition(" ")
        lost = sum(each.figure(name, "lost") for each in rounds)
        uncounted = sum(each.figure(name, "uncounted") for each in rounds)
        is_missed = uncounted > 0 or (lost > 0 and transport != "udp")
        rows.append(
            [
                {"tcp": "TCP", "ws": "WebSocket", "udp": "UDP"}[transport],
                clients,
                Spread.over(rounds, figure(name, "frames_per_s")).cell(),
                Spread.over(rounds, figure(name, "submission_p50_ms")).cell(),
                Spread.over(rounds, figure(name, "submission_p99_ms")).cell(),
                f"{sum(each.figure(name, 'sent') for each in rounds):,.0f}",
                f"{lost:,.0f}",
                f"**{uncounted:,.0f} missed**" if is_missed else f"{uncounted:,.0f}",
            ]
        )
    return table(heads, rows)
