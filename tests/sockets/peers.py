"""What the tests of sockets share: a small pipeline, and clients that talk raw bytes."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import numpy as np
import torch
from torch import nn

import partime_async as pa
from partime_async.sockets import (
    ClientStatistics,
    ConnectedSource,
    Limits,
    ListeningSource,
    SensorServer,
    SocketFrame,
    SocketSink,
    wire,
)

Source = ListeningSource | ConnectedSource

WIDTH = 4

PATIENT = Limits(close_s=20.0)
"""For a sink that is left at once: what it was given goes out on a busy machine, too."""


def network() -> nn.Sequential:
    """Return a network that doubles what it gets."""
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.eye_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(2.0)
    return nn.Sequential(layer)


def small(**options: object) -> pa.Pipeline:
    """Return a pipeline of one stage over vectors."""
    return pa.Pipeline(network(), torch.zeros(1, WIDTH), stages=1, **options)  # type: ignore[arg-type]


def slow(milliseconds: int, width: int = WIDTH) -> pa.Pipeline:
    """Return a pipeline whose only stage takes a while over each frame."""
    network = nn.Sequential(nn.Identity())
    return pa.Pipeline(network, torch.zeros(1, width), devices=[f"simulated:{milliseconds}ms"])


@asynccontextmanager
async def serving(
    url: str = "tcp://127.0.0.1:0", *, pipeline: pa.Pipeline | None = None, **options: object
) -> AsyncIterator[SensorServer]:
    """Run a pipeline and a server in front of it."""
    async with pipeline or small() as running, SensorServer(running, url, **options) as server:  # type: ignore[arg-type]
        yield server


def vector(number: float) -> np.ndarray:
    """Return a frame that can be told from others."""
    return np.full(WIDTH, number, np.float32)


def frame(number: int, *, wants_reply: bool = False) -> bytes:
    """Return a frame of this number as a message."""
    return wire.encode(vector(number), sequence=number, captured_at=time.monotonic(), wants_reply=wants_reply)


def goodbye(sent: int) -> bytes:
    """Return the message that ends a connection of so many frames."""
    return wire.encode(None, sequence=sent, kind=wire.Kind.BYE)


async def until(is_so: Callable[[], bool], *, within_s: float = 20.0) -> None:
    """Wait for something that another side does, which no event of this side tells."""
    async with asyncio.timeout(within_s):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def collected(source: Source) -> list[SocketFrame]:
    """Return all frames of a source."""
    async with asyncio.timeout(20.0):
        return [each async for each in source]


async def until_pushed_back(writer: asyncio.StreamWriter) -> int:
    """Send frames of 40 kB until the other side holds this one back, and return how many were sent."""
    payload, sent = wire.encode(np.zeros(10_000, np.float32), sequence=0), 0
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while sent < 1000:
                writer.write(payload[:8] + sent.to_bytes(8, "little") + payload[16:])
                sent += 1
                await writer.drain()
    assert sent < 900
    return sent


async def next_of(source: Source, sink: SocketSink) -> SocketFrame:
    """Return the next frame of a source, to which a sink sends again and again until one arrives."""
    taking, number = asyncio.create_task(anext(source)), 0
    async with asyncio.timeout(20.0):
        while not taking.done():
            number += 1
            await sink.write(vector(number))
            await asyncio.sleep(0.01)
    return await taking


async def knocks(server: SensorServer, turns: int) -> list[socket.socket]:
    """Connect five times, say nothing, and let the server take so many turns of the loop."""
    found = [socket.create_connection(("127.0.0.1", port_of(server.url))) for _ in range(5)]
    for _ in range(turns):
        await asyncio.sleep(0)
    return found


def assert_shut(found: Iterable[socket.socket]) -> None:
    """Assert that connections were ended by the other side, with a word, an end or a reset, and close them."""
    for each in found:
        each.settimeout(20.0)
        with suppress(ConnectionError):
            while each.recv(1000):
                continue
        each.close()


async def all_left(server: SensorServer, count: int) -> tuple[ClientStatistics, ...]:
    """Wait until so many clients have come and gone, and return their accounts."""
    await until(lambda: server.statistics().arrived >= count and not server.statistics().connected)
    return tuple(server.statistics().clients)


def check(client: ClientStatistics) -> None:
    """Assert that a client's accounts add up."""
    kinds = client.frames + client.targets + client.signals
    assert client.messages == kinds + sum(client.malformed.values()) + sum(client.dropped.values())
    assert client.sequence.distinct == client.frames
    assert client.sequence.numbered == client.sequence.distinct + client.sequence.missing
    if client.feed is not None:
        counts = client.feed.frames
        there = counts.waiting + counts.in_flight + counts.unread + counts.delivered + counts.failed
        assert counts.offered == there + counts.dropped_total


def port_of(url: str) -> int:
    """Return the port in a URL."""
    return int(url.partition("?")[0].rpartition(":")[2].partition("/")[0])


async def read_message(reader: asyncio.StreamReader) -> wire.Message:
    """Return the next binary message of a stream."""
    prefix = await reader.readexactly(wire.PREFIX_BYTES)
    return wire.decode(prefix + await reader.readexactly(int.from_bytes(prefix, "little")))
