"""One connection: what becomes of each kind of message, and of a client that cannot be answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from partime_async.errors import FrameError
from partime_async.sockets import Kind, Limits, Message, OnBad, wire
from partime_async.sockets.connection import Connection
from partime_async.sockets.link import StreamLink
from partime_async.sockets.reading import Reading
from tests.sockets.peers import WIDTH, check, frame, goodbye, serving, vector
from tests.sockets.test_sensor_server import Device


@asynccontextmanager
async def pair(
    limits: Limits | None = None, reading: Reading | None = None, targets: list[tuple[int, Tensor]] | None = None
) -> AsyncIterator[tuple[Connection, socket.socket]]:
    """Return a connection, and the other end of its socket."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    limits = limits or Limits()

    def late(number: int, target: Tensor) -> None:
        assert targets is not None
        targets.append((number, target))

    connection = Connection(
        StreamLink(reader, writer, limits),
        "binary",
        limits,
        reading or Reading(),
        on_late_target=None if targets is None else late,
    )
    theirs.settimeout(20.0)
    try:
        yield connection, theirs
    finally:
        await connection.link.aclose(1.0)
        theirs.close()


def target(number: int) -> bytes:
    """Return a target as a message."""
    return wire.encode(vector(-number), sequence=number, kind=Kind.TARGET)


async def test_connection_gives_a_target_to_its_frame_or_to_who_takes_late_ones() -> None:
    """Before its frame a target goes with it; behind it, it is handed on; what nobody takes is counted."""
    late: list[tuple[int, Tensor]] = []
    async with pair(targets=late) as (connection, theirs):
        theirs.sendall(target(0) + frame(0) + frame(1) + target(1) + goodbye(2))
        frames = [each async for each in connection]
    assert isinstance(frames[0].target, Tensor)
    assert frames[0].target.shape == (1, WIDTH)
    assert frames[1].target is None
    assert [number for number, _ in late] == [1]
    check(connection.statistics())
    async with pair() as (connection, theirs):
        theirs.sendall(frame(0) + target(0) + goodbye(1))
        assert len([each async for each in connection]) == 1
    check(connection.statistics())
    assert dict(connection.statistics().dropped) == {"target": 1}


async def test_connection_keeps_the_label_of_a_class_a_whole_number() -> None:
    """Cross-entropy takes int64 of shape (batch,); other targets become float32 with the batch dimension."""
    for sent, wanted in ((7, torch.tensor([7])), (np.uint8(7), torch.tensor([7])), ([7.5], torch.tensor([[7.5]]))):
        async with pair() as (connection, theirs):
            theirs.sendall(wire.encode(sent, sequence=0, kind=Kind.TARGET) + frame(0) + goodbye(1))
            [got] = [each.target async for each in connection]
        assert isinstance(got, Tensor)
        assert got.dtype is wanted.dtype
        assert torch.equal(got, wanted)


async def test_connection_keeps_few_targets_whose_frames_never_come() -> None:
    """Memory is bounded: the oldest of too many waiting targets is forgotten."""
    async with pair() as (connection, theirs):
        theirs.sendall(b"".join(map(target, range(100))) + frame(0) + frame(99) + goodbye(100))
        first, last = [each async for each in connection]
        assert len(connection._targets) < 64
    assert (first.target is None, last.target is None) == (True, False)


async def test_connection_drops_frames_of_several_tensors_and_counts_them() -> None:
    """No pipeline behind a socket takes them; the next frame of one tensor is taken."""
    async with pair() as (connection, theirs):
        part = wire.encode(vector(1), sequence=1, has_more=True)
        theirs.sendall(part + part + wire.encode(vector(1), sequence=1) + frame(2) + goodbye(3))
        frames = [each.sequence async for each in connection]
    check(connection.statistics())
    assert (frames, dict(connection.statistics().dropped)) == ([2], {"kind": 3})


async def test_connection_ignores_what_comes_behind_a_goodbye() -> None:
    """The end is the end."""
    async with pair() as (connection, theirs):
        theirs.sendall(frame(0) + goodbye(1) + frame(1))
        assert [each.sequence async for each in connection] == [0]
        with pytest.raises(StopAsyncIteration):
            await anext(connection)
    assert connection.closed == "bye"


async def test_connection_with_a_frame_that_has_no_values_or_that_is_refused_says_so() -> None:
    """An empty frame, and one that the caller's function does not take, are malformed."""

    def to_value(message: Message) -> Tensor:
        if message.sequence == 1:
            raise FrameError("not this one.")
        return torch.ones(1, 1)

    async with pair(reading=Reading(to_value=to_value)) as (connection, theirs):
        theirs.sendall(wire.encode(None, sequence=0) + frame(1) + frame(2) + goodbye(3))
        assert [each.sequence async for each in connection] == [2]
    assert dict(connection.statistics().malformed) == {"empty": 1, "value": 1}
    check(connection.statistics())


async def test_connection_that_broke_is_told_from_one_that_ended_and_is_not_answered() -> None:
    """A reset between messages loses none; answers to it are counted as unsent."""
    async with pair() as (connection, theirs):
        theirs.sendall(frame(0))
        assert (await anext(connection)).sequence == 0
        connection.link._reader.set_exception(ConnectionResetError())  # type: ignore[attr-defined]
        with pytest.raises(StopAsyncIteration):
            await anext(connection)
        assert connection.closed == "reset"
        answer = Message(vector(0), 0, kind=Kind.RESULT)
        assert not await connection.reply([answer, answer], is_lossy=False)
    assert connection.statistics().unsent == 2


async def test_connection_that_reads_nothing_loses_answers_or_its_place() -> None:
    """Under a live feed answers are skipped while too many wait; under a lossless one the client is shown out."""
    limits = Limits(unsent_bytes=1 << 12, stalled_s=0.05)
    answer = Message(np.zeros(1 << 13, np.float32), 0, kind=Kind.RESULT)
    for is_lossy in (True, False):
        async with pair(limits) as (connection, theirs):
            while await connection.reply([answer], is_lossy=is_lossy):
                pass
            assert connection.closed in ("stalled", None) if is_lossy else connection.closed == "stalled"
            assert connection.statistics().unsent == 1
            theirs.close()


@pytest.mark.parametrize("policy", list(OnBad))
async def test_frame_that_does_not_fit_costs_by_policy(policy: OnBad) -> None:
    """A shape that the pipeline does not take is told; by policy the client may stay."""
    async with serving(limits=Limits(on_bad=policy)) as server, Device(server.url) as device:
        await device.send(wire.encode([1.0], sequence=0))
        note = (await device.receive()).note
        await device.send(goodbye(1))
        await server.all_left()
        [client] = server.statistics().clients
    assert "expected a tensor" in str(note["error"])
    assert client.closed == ("malformed" if policy is OnBad.DROP_CLIENT else "bye")


async def test_feed_that_fails_when_full_drops_and_goes_on() -> None:
    """The policy `fail` is told to nobody over a socket: the frame is refused, and counted by the feed."""
    async with serving(overflow="fail", capacity=1) as server, Device(server.url) as device:
        await device.send(b"".join(map(frame, range(300))) + goodbye(300))
        await server.all_left()
        [client] = server.statistics().clients
    check(client)
    assert client.feed is not None
    assert client.feed.frames.dropped["refused"] > 0


async def test_late_target_without_a_learner_is_refused_and_harms_nothing() -> None:
    """A device may send targets to a pipeline that does not learn."""
    async with serving() as server, Device(server.url) as device:
        await device.send(frame(0, wants_reply=True))
        await device.receive()
        await device.send(target(0))
        for number in (1, 2):
            await device.send(frame(number, wants_reply=True))
            await device.receive()
        await device.send(goodbye(3))
        await server.all_left()
        [client] = server.statistics().clients
    check(client)
    assert (client.targets, dict(client.dropped), client.frames, client.closed) == (0, {"target": 1}, 3, "bye")
