"""How connections end: how soon everything is given back, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.live.call import Caller, calling
from benchmarks.machine import resident_bytes
from benchmarks.record import BenchmarkError, Measurement, Report
from benchmarks.rounds import Pace, interleave, say
from benchmarks.settings import Outcome, Settings
from benchmarks.summary import Spread, figure, table
from benchmarks.workers import Contestant, Worker
from partime_async.webrtc import Description, Peer, PictureTrack

GROUP, NAME = "live-ends", "connections"
CYCLES = 50
_QUICK_CYCLES = 3
_CLIENTS = 3
_WARM_UP_CYCLES = 40
_PATIENCE_S = 20.0
_ROOT = Path(__file__).parents[2]
_PICTURE = np.zeros((240, 320, 3), np.uint8)

_ROWS = {
    "left_s": ("told that the tab closes: freed after, s", 0.5),
    "hung_up_s": ("the other side closes the connection: freed after, s", 0.5),
    "silent_s": ("killed without a word: freed after, s", 3.0),
    "ctrl_c_s": (f"Ctrl-C with {_CLIENTS} live clients: process gone after, s", 2.0),
    "ctrl_c_status": ("its exit status", 0.0),
    "cycle_ms": ("one of the cycles of connect and close, ms", None),
    "descriptors": ("descriptors left after them", 0.0),
    "tasks": ("tasks left", 0.0),
    "threads": ("threads left", 0.0),
    "kb_per_cycle": ("memory left, KB a cycle", None),
}


@dataclass(frozen=True, slots=True)
class EndsSpec:
    """Connections that end in every way.

    Attributes:
        cycles: How many are made and closed again one after the other.
    """

    cycles: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Need nothing."""
        yield _Ends(self.cycles)


class _Ends:
    def __init__(self, cycles: int) -> None:
        self.facts: Mapping[str, str] = {"cycles": str(cycles)}
        self._cycles = cycles

    async def run(self, seconds: float) -> Measurement:
        """Do everything once; how long it may take is not asked."""
        found = {
            "left_s": await _freed_after(_told),
            "hung_up_s": await _freed_after(_hung_up),
            "silent_s": await _freed_after(_killed),
            **await _interrupted(),
            **await _cycles(self._cycles),
        }
        return Measurement(found)


def run(settings: Settings) -> Outcome:
    """Measure."""
    cycles = _QUICK_CYCLES if settings.is_quick else CYCLES
    pace = Pace(generations=1, rounds=1 if settings.is_quick else 3, extra=0 if settings.is_quick else 3, seconds=0.0)
    say(GROUP)
    with Worker() as worker:
        facts = {GROUP: worker.open(NAME, EndsSpec(cycles))}
        rounds = interleave({NAME: worker}, pace, group=GROUP)
    return Outcome({**pace.settings(), "cycles": float(cycles), "clients": float(_CLIENTS)}, rounds, facts)


def tables(report: Report) -> str:
    """Return the table."""
    rounds = report.of(GROUP)
    rows = [
        [text, Spread.over(rounds, figure(NAME, name)).cell(at_most=limit), "" if limit is None else f"{limit:g}"]
        for name, (text, limit) in _ROWS.items()
    ]
    return table([f"ends of connections; {report.settings['cycles']:g} cycles", "measured", "at most"], rows)


async def _freed_after(end: Callable[[Caller, Peer], Awaitable[float]]) -> float:
    """Return the seconds from a caller's end until its peer has given everything back."""
    async with Peer() as peer:
        peer.send_video(PictureTrack())
        async with calling(0, peer.answer) as caller:
            await peer.connected()
            await (await peer.video).recv()
            began = await end(caller, peer)
            async with asyncio.timeout(_PATIENCE_S):
                await peer.closed()
            return time.monotonic() - began


async def _told(caller: Caller, peer: Peer) -> float:
    """End as a page does that says goodbye: the server closes."""
    began = time.monotonic()
    await peer.close()
    return began


async def _hung_up(caller: Caller, peer: Peer) -> float:
    """End as a program does that closes its connection: interrupted, it closes on its way out."""
    began = time.monotonic()
    caller.process.send_signal(signal.SIGINT)
    return began


async def _killed(caller: Caller, peer: Peer) -> float:
    began = time.monotonic()
    caller.process.kill()
    return began


async def _interrupted() -> dict[str, float]:
    """Return how a program with live clients takes Ctrl-C."""
    host = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.live.host"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=_ROOT,
        limit=2**20,
    )
    turn = asyncio.Lock()

    async def answer(offer: Description) -> Description:
        assert host.stdin is not None
        assert host.stdout is not None
        async with turn:
            host.stdin.write(json.dumps({"sdp": offer.sdp, "type": offer.type}).encode() + b"\n")
            line = await host.stdout.readline()
        if not line:
            raise BenchmarkError("the host ended. Run it by hand: python -m benchmarks.live.host")
        return Description(**json.loads(line))

    try:
        async with AsyncExitStack() as stack:
            for _ in range(_CLIENTS):
                await stack.enter_async_context(calling(0, answer))
            await asyncio.sleep(2.0)  # pictures go there and back
            began = time.monotonic()
            host.send_signal(signal.SIGINT)
            async with asyncio.timeout(_PATIENCE_S):
                status = await host.wait()
            return {"ctrl_c_s": time.monotonic() - began, "ctrl_c_status": float(abs(status))}
    finally:
        if host.returncode is None:
            host.kill()
            await host.wait()


async def _cycles(count: int) -> dict[str, float]:
    """Connect two peers, exchange a picture, close; over and over; return what is left."""
    for _ in range(_WARM_UP_CYCLES):
        await _cycle()
    before, began = await _left(), time.monotonic()
    for _ in range(count):
        await _cycle()
    cycle_ms = 1e3 * (time.monotonic() - began) / count
    after = await _left()
    found = {name: after[name] - before[name] for name in ("descriptors", "tasks", "threads")}
    return {**found, "cycle_ms": cycle_ms, "kb_per_cycle": (after["bytes"] - before["bytes"]) / count / 2**10}


async def _cycle() -> None:
    async with Peer() as here, Peer() as there:
        camera = PictureTrack()
        here.send_video(camera)
        here.open_channel("control")
        await here.accept(await there.answer(await here.offer()))
        video = await there.video
        await there.connected()
        camera.show(_PICTURE.copy())
        await video.recv()
        await (await there.channel("control")).opened()


async def _left() -> dict[str, float]:
    # Two turns of the loop for callbacks of what was closed last, and cycles are for the collector.
    await asyncio.sleep(0.3)
    gc.collect()
    return {
        "descriptors": float(len(os.listdir("/proc/self/fd"))),  # noqa: PTH208 - names of open files, not a folder of ours
        "tasks": float(len(asyncio.all_tasks())),
        "threads": float(threading.active_count()),
        "bytes": float(resident_bytes()),
    }
