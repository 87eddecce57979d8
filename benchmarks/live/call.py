"""The server's side of a caller: start it, let it be answered, and make figures of what it measured."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from numpy.polynomial import Polynomial

from benchmarks.record import BenchmarkError, Measurement
from benchmarks.summary import percentile
from partime_async.webrtc import Description

_LINE_BYTES = 2**24
_PATIENCE_S = 30.0
CALLER = Path(__file__).with_name("caller.py")

Answer = Callable[[Description], Awaitable[Description]]


@dataclass(frozen=True, slots=True)
class Record:
    """What a caller measured; times are of `time.monotonic`, which all processes of a machine share.

    Attributes:
        made_at: When each picture was made, by its number.
        returned: Number and time of each picture that came back.
        unreadable: How many pictures came back whose number could not be read.
        round_trips_s: Of messages on a data channel.
    """

    made_at: Sequence[float]
    returned: Sequence[tuple[int, float]]
    unreadable: int
    round_trips_s: Sequence[float]

    def latencies(self, begin: float, end: float) -> list[tuple[float, float]]:
        """Return arrival and latency of the pictures that came back for the first time between two moments."""
        seen: set[int] = set()
        found = []
        for number, came_at in self.returned:
            if number not in seen and number < len(self.made_at):
                seen.add(number)
                if begin <= came_at <= end:
                    found.append((came_at, came_at - self.made_at[number]))
        return found


class Caller:
    """A caller's process, answered."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def record(self) -> Record:
        """Wait until its time is up, and return what it measured."""
        content = json.loads(await self._line("its record", None))
        return Record(**content)

    async def meet(self, answer: Answer) -> None:
        """Read its offer, and give it the answer."""
        offer = json.loads(await self._line("its offer", _PATIENCE_S))
        answered = await answer(Description(offer["sdp"], offer["type"]))
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"sdp": answered.sdp, "type": answered.type}).encode() + b"\n")
        await self.process.stdin.drain()

    async def _line(self, what: str, timeout_s: float | None) -> bytes:
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_s):
            line = await self.process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the caller ended without {what}. Run it by hand: python {CALLER} 5")
        return line


@asynccontextmanager
async def calling(seconds: float, answer: Answer) -> AsyncIterator[Caller]:
    """Start a caller, answer it, and end it with the block.

    Args:
        seconds: How long it calls; 0: until it is ended.
        answer: Answers its offer.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CALLER),
        str(seconds),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    caller = Caller(process)
    try:
        await caller.meet(answer)
        yield caller
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        # Its pipes close with the transport; without a turn of the loop they would be closed by the collector.
        await asyncio.sleep(0)


def figures(record: Record, begin: float, end: float) -> Measurement:
    """Return rate, latencies and their slope over a stretch of time.

    Raises:
        BenchmarkError: Next to nothing came back.
    """
    seen = record.latencies(begin, end)
    if len(seen) < 3:
        raise BenchmarkError(f"{len(seen)} pictures came back, {record.unreadable} were unreadable. Give it more time.")
    latencies = [latency for _, latency in seen]
    found = {
        "frames_per_s": len(seen) / (end - begin),
        "latency_p50_ms": 1e3 * percentile(latencies, 0.5),
        "latency_p99_ms": 1e3 * percentile(latencies, 0.99),
        "latency_last_ms": 1e3 * latencies[-1],
        "slope_ms_per_s": 1e3 * slope([came_at for came_at, _ in seen], latencies),
        "unreadable": float(record.unreadable),
        "sent_per_s": sum(begin <= at <= end for at in record.made_at) / (end - begin),
    }
    if record.round_trips_s:
        found["round_trip_p50_ms"] = 1e3 * percentile(record.round_trips_s, 0.5)
        found["round_trip_p99_ms"] = 1e3 * percentile(record.round_trips_s, 0.99)
    return Measurement(found, {"latency_s": latencies, "came_at_s": [at - begin for at, _ in seen]})


def recovery_s(record: Record, begin: float, stall_at: float, stall_s: float) -> float:
    """Return how long after a stall a picture first came back as quickly as before it; if none did, how long none did.

    As quickly as before: within the 99th percentile of the latencies from `begin` to the stall.
    """
    before = [latency for _, latency in record.latencies(begin, stall_at)]
    usual = percentile(before, 0.99)
    over = stall_at + stall_s
    back = [at - over for at, latency in record.latencies(over, float("inf")) if latency <= usual]
    last = max((at for _, at in record.returned), default=over)
    return back[0] if back else max(stall_s, last - over)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the slope of the line that fits best."""
    return float(Polynomial.fit(xs, ys, 1).convert().coef[1])


def merged(*these: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of several sources in one."""
    return {name: value for each in these for name, value in each.items()}
