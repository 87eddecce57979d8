"""The clients of the benchmark `clients`, in a process of their own: ``python -m benchmarks.guests URL PLAN SECONDS``.

``fair`` is eight programs at once: five send at fixed rates, two as fast as results come back, and so does the eighth,
which, with ``stalled``, sends as fast as its socket takes frames instead, and never reads. ``soak`` is clients that
come, go, crash and send rubbish, some at a time, until the time is up. The last line written is what they saw, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from benchmarks.workers import event_loop
from partime_async.client import Kind, decode, encode
from partime_async.errors import SourceError
from partime_async.webrtc import Description, Peer, PictureTrack
from partime_async.webrtc.closing import ice_transports

WIDTH = 16
RATES = (5.0, 10.0, 15.0, 20.0, 25.0)
GREEDY = 3
WINDOW = 4
"""Frames that a greedy client has on their way."""

_FRAME = np.zeros(WIDTH, np.float32)
_AT_A_TIME = 12
_WARM_UP_S = 0.5

# Refused, cut off, too late: what the server does to visitors such as these.
_EXPECTED = (aiohttp.ClientError, SourceError, OSError, RuntimeError, AssertionError, TypeError, KeyError)


# -- eight at once -------------------------------------------------------------------------------------------------


async def fair(url: str, seconds: float, *, is_stalled: bool) -> dict[str, object]:
    """Run the eight, and return how many results each got, and how old they were."""
    counts = [0] * (len(RATES) + GREEDY)
    ages: list[float] = []
    begin = time.monotonic() + _WARM_UP_S
    end = begin + seconds

    def note(place: int, sent_at: float) -> None:
        now = time.monotonic()
        if begin <= now < end:
            counts[place] += 1
            if place < len(RATES):
                ages.append(now - sent_at)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for place in range(len(counts)):
            if place == len(counts) - 1 and is_stalled:
                tasks.create_task(_stalled(url, end))
            elif place < len(RATES):
                tasks.create_task(_paced(session, url, end, place, note))
            else:
                tasks.create_task(_greedy(session, url, end, place, note))
    return {"counts": counts, "ages_ms": [round(1e3 * age, 3) for age in ages]}


async def _paced(
    session: aiohttp.ClientSession, url: str, end: float, place: int, note: Callable[[int, float], None]
) -> None:
    async with session.ws_connect(f"{url}api/stream") as socket:
        reading = asyncio.create_task(_read(socket, place, note))
        began, number = time.monotonic() + random.random() / RATES[place], 0
        while time.monotonic() < end:
            await asyncio.sleep(began + number / RATES[place] - time.monotonic())
            await socket.send_bytes(encode(_FRAME, sequence=number, captured_at=time.monotonic()))
            number += 1
        reading.cancel()
        await asyncio.wait({reading})


async def _read(socket: aiohttp.ClientWebSocketResponse, place: int, note: Callable[[int, float], None]) -> None:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            sent_at = decode(message.data).captured_at
            assert sent_at is not None
            note(place, sent_at)


async def _greedy(
    session: aiohttp.ClientSession, url: str, end: float, place: int, note: Callable[[int, float], None]
) -> None:
    async with session.ws_connect(f"{url}api/stream") as socket:
        for number in range(WINDOW):
            await socket.send_bytes(encode(_FRAME, sequence=number, captured_at=time.monotonic()))
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                note(place, 0.0)
                number += 1
                await socket.send_bytes(encode(_FRAME, sequence=number, captured_at=time.monotonic()))
            if time.monotonic() >= end:
                return


async def _stalled(url: str, end: float) -> None:
    _, writer = await _upgraded(url)
    frame = encode(_FRAME, sequence=0)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(end - time.monotonic()):
            while True:
                writer.write(_masked(0x82, frame))
                await writer.drain()
    writer.transport.abort()


async def _connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _upgraded(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a WebSocket by hand: one that is never read, and breaks off anywhere."""
    reader, writer = await _connected(url)
    writer.write(
        b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with asyncio.timeout(5.0):
        await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def _masked(opcode: int, payload: bytes) -> bytes:
    """Return a message as a client has to send it, with a mask that changes nothing."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([opcode]) + length + bytes(4) + payload


# -- all sorts -----------------------------------------------------------------------------------------------------

SORTS = (
    *("program", "program that crashes", "program that never reads", "program of rubbish", "raw bytes"),
    *("camera", "camera that crashes", "offer alone", "offer of rubbish"),
)
"""Of visits."""


class Crowd:
    """Visits of all sorts, at random.

    Args:
        session: For HTTP and WebSockets.
        url: The server.
        seed: Of the choices.
        longest_s: How long one that never reads stays at most, and for half of that on average.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, seed: int, *, longest_s: float = 3.0) -> None:
        self.counts: Counter[str] = Counter()
        self._session = session
        self._url = url
        self._random = random.Random(seed)
        self._longest_s = longest_s
        visits: tuple[Callable[[], Awaitable[None]], ...] = (
            *(self._program, self._crash, self._deaf, self._rubbish, self._raw),
            *(self._camera, self._camera_crash, self._offer_alone, self._offer_rubbish),
        )
        self._sorts = dict(zip(SORTS, visits, strict=True))

    async def run(self, seconds: float) -> None:
        """Come and go, some at a time, until the time is up."""
        end = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end:
                await self.visit(self._random.choice(SORTS))

        await asyncio.gather(*(one() for _ in range(_AT_A_TIME)))

    async def visit(self, sort: str) -> None:
        """Come once, as one of `SORTS`, and go."""
        self.counts[sort] += 1
        with suppress(*_EXPECTED):
            await self._sorts[sort]()

    async def _program(self) -> None:
        async with self._session.ws_connect(f"{self._url}api/stream") as socket:
            await socket.receive(timeout=5)
            for number in range(self._random.randint(1, 60)):
                await socket.send_bytes(encode(_FRAME, sequence=number))
                while (message := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                    continue  # telemetry
                assert decode(message.data).kind is Kind.RESULT

    async def _crash(self) -> None:
        _, writer = await _upgraded(self._url)
        frame = encode(_FRAME, sequence=0)
        whole = _masked(0x82, frame)
        writer.write(whole[: self._random.randint(0, len(whole))])
        await asyncio.sleep(self._random.random() * 0.05)
        writer.transport.abort()

    async def _deaf(self) -> None:
        _, writer = await _upgraded(self._url)
        text = json.dumps({"values": [0.0] * WIDTH}).encode()
        end = time.monotonic() + self._random.random() * self._longest_s
        try:
            while time.monotonic() < end:
                writer.write(_masked(0x81, text))
                async with asyncio.timeout(1.0):
                    await writer.drain()
                await asyncio.sleep(0)
        finally:
            writer.transport.abort()

    async def _rubbish(self) -> None:
        async with self._session.ws_connect(f"{self._url}api/stream") as socket:
            for _ in range(self._random.randint(1, 15)):
                raw = self._random.choice(
                    [
                        os.urandom(self._random.randint(0, 200)),
                        encode(np.zeros(3, np.float32), sequence=1),
                        encode(_FRAME, sequence=1)[:-1],
                        encode(None, sequence=1),
                    ]
                )
                await socket.send_bytes(raw)
                await socket.send_str(self._random.choice(["{", "[[[", "null", '{"type": 1}', '{"values": "x"}']))

    async def _raw(self) -> None:
        _, writer = await _connected(self._url)
        writer.write(
            self._random.choice(
                [
                    os.urandom(500),
                    b"GET / HTTP/1.1\r\n",
                    b"POST /api/offer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n{",
                    b"POST /api/bye HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                ]
            )
        )
        await asyncio.sleep(self._random.random() * 0.2)
        writer.transport.abort()

    async def _camera(self) -> None:
        async with Peer() as peer:
            visit = await self._joined(peer)
            await asyncio.sleep(self._random.random())
            if self._random.random() < 0.5:
                async with self._session.post(f"{self._url}api/bye", json={"id": visit}):
                    pass

    async def _camera_crash(self) -> None:
        async with Peer() as peer:
            await self._joined(peer)
            for transport in ice_transports(peer._connection):
                for protocol in transport._connection._protocols:
                    protocol.transport.abort()

    async def _offer_alone(self) -> None:
        async with Peer() as peer:
            await self._offered(peer)

    async def _offer_rubbish(self) -> None:
        async with Peer() as peer:
            peer.send_video(PictureTrack())
            sdp = (await peer.offer()).sdp
            lines = sdp.splitlines()
            for _ in range(self._random.randint(1, 5)):
                lines[self._random.randrange(len(lines))] = os.urandom(20).hex()
            body = {"sdp": "\r\n".join(lines), "type": self._random.choice(["offer", "answer", "x"])}
            async with self._session.post(f"{self._url}api/offer", json=body):
                pass

    async def _offered(self, peer: Peer) -> dict[str, str]:
        peer.send_video(PictureTrack())
        peer.open_channel("control")
        offer = await peer.offer()
        async with self._session.post(f"{self._url}api/offer", json={"sdp": offer.sdp, "type": offer.type}) as response:
            answer: dict[str, str] = await response.json()
        assert "sdp" in answer
        return answer

    async def _joined(self, peer: Peer) -> str:
        answer = await self._offered(peer)
        await peer.accept(Description(answer["sdp"], answer["type"]))
        async with asyncio.timeout(10.0):
            await peer.connected()
        return answer["id"]


async def soak(url: str, seconds: float) -> dict[str, object]:
    """Come and go until the time is up, and return how many came of each sort."""
    async with aiohttp.ClientSession() as session:
        crowd = Crowd(session, url, seed=1)
        await crowd.run(seconds)
        return {"visits": dict(crowd.counts)}


def main(arguments: list[str]) -> int:
    """Do what the arguments say."""
    url, plan, seconds = arguments[0], arguments[1], float(arguments[2])
    with asyncio.Runner(loop_factory=event_loop) as runner:
        if plan == "soak":
            seen = runner.run(soak(url, seconds))
        else:
            seen = runner.run(fair(url, seconds, is_stalled=plan == "stalled"))
    print(json.dumps(seen), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
