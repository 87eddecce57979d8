"""Whatever a client does, it harms nobody else, is counted, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partime_async.sockets import Limits, OnBad, SensorServer, wire
from partime_async.sockets.connection import Connection
from partime_async.sockets.link import StreamLink
from partime_async.sockets.reading import Reading
from tests.sockets.peers import (
    all_left,
    assert_shut,
    check,
    frame,
    goodbye,
    knocks,
    port_of,
    read_message,
    serving,
    until,
)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(server: SensorServer) -> Streams:
    """Connect over TCP."""
    return await asyncio.open_connection("127.0.0.1", port_of(server.url))


async def is_served(server: SensorServer) -> bool:
    """Whether a good client gets its answer."""
    reader, writer = await connected(server)
    writer.write(frame(0, wants_reply=True))
    async with asyncio.timeout(20.0):
        answer = await read_message(reader)
    writer.write(goodbye(1))
    writer.close()
    return answer.kind is wire.Kind.RESULT


async def test_rubbish_costs_its_sender_only() -> None:
    """A browser, a scanner and a stream of noise are shown out with a word; a good client beside them is served."""
    async with serving() as server:
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", random.Random(3).randbytes(100_000), b"\xff" * 8):
            reader, writer = await connected(server)
            writer.write(rubbish)
            note = await read_message(reader)
            assert note.note["closed"] == "malformed"
            writer.close()
        assert await is_served(server)
        clients = await all_left(server, 4)
    for client in clients:
        check(client)
    assert [client.closed for client in clients] == ["malformed", "malformed", "malformed", "bye"]


async def test_length_of_four_gigabytes_is_refused_before_anything_is_kept() -> None:
    """The number alone is enough: the connection ends, and nothing was allocated for it."""
    async with serving() as server:
        reader, writer = await connected(server)
        writer.write(b"\xff\xff\xff\xffpt" + bytes(1000))
        assert "and 1048576 are allowed" in str((await read_message(reader)).note["error"])
        assert await reader.read() == b""
        writer.close()
        [client] = await all_left(server, 1)
    assert dict(client.malformed) == {"too_long": 1}


async def test_bad_message_between_good_ones_costs_that_message() -> None:
    """What is framed and makes no sense is counted by its cause, told, and the next frame is served."""
    bad = bytearray(frame(1))
    bad[24] = 77  # there is no such dtype
    async with serving() as server:
        reader, writer = await connected(server)
        writer.write(frame(0) + bad + frame(2, wants_reply=True))
        assert "dtype 77" in str((await read_message(reader)).note["error"])
        assert (await read_message(reader)).sequence == 2
        writer.write(goodbye(3))
        writer.close()
        [client] = await all_left(server, 1)
    check(client)
    assert (client.frames, dict(client.malformed), client.sequence.missing) == (2, {"dtype": 1}, 1)


@pytest.mark.parametrize("limits", [Limits(on_bad=OnBad.DROP_CLIENT), Limits(bad_messages=3)])
async def test_bad_messages_cost_the_client_by_policy(limits: Limits) -> None:
    """One is enough, or as many as the limit says."""
    bad = bytearray(frame(1))
    bad[24] = 77
    async with serving(limits=limits) as server:
        reader, writer = await connected(server)
        writer.write(bytes(bad) * 5)
        notes = [(await read_message(reader)).note]
        while "closed" not in notes[-1]:
            notes.append((await read_message(reader)).note)
        writer.close()
        [client] = await all_left(server, 1)
    wanted = 1 if limits.on_bad == OnBad.DROP_CLIENT else 3
    assert (len(notes), client.malformed["dtype"], client.closed) == (wanted, wanted, "malformed")


async def test_drip_of_single_bytes_is_cut_in_time_and_others_are_served() -> None:
    """A slowloris keeps its place no longer than a message may take, however often it sends a byte."""
    async with serving(limits=Limits(message_s=0.3)) as server:
        reader, writer = await connected(server)

        async def drip() -> None:
            for byte in frame(0):
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await is_served(server)
        async with asyncio.timeout(20.0):
            note = await read_message(reader)
        dripping.cancel()
        await asyncio.wait([dripping])
        writer.close()
        await until(lambda: not server.statistics().connected)
        slowest = next(client for client in server.statistics().clients if client.client == 0)
    assert note.note["closed"] == "slow"
    check(slowest)
    assert slowest.closed == "slow"


async def test_silence_ends_a_connection_and_a_hello_keeps_it() -> None:
    """A half-open connection is idle, and its place is given back; one that says hello stays."""
    for idle_s in (0.4, 2.0, 10.0):  # where the test itself is held up, hellos come late: once more, with more time
        async with serving(limits=Limits(idle_s=idle_s)) as server:
            _, silent = await connected(server)
            _, greeting = await connected(server)
            longest_s, said_at = 0.0, time.monotonic()
            while not any(client.closed for client in server.statistics().clients):
                greeting.write(wire.encode(None, sequence=0, kind=wire.Kind.HELLO))
                longest_s, said_at = max(longest_s, time.monotonic() - said_at), time.monotonic()
                await asyncio.sleep(0.05)
            closed = [client.closed for client in server.statistics().clients]
            silent.close()
            greeting.close()
            await all_left(server, 2)
        if max(longest_s, time.monotonic() - said_at) < 0.5 * idle_s:
            break
    assert sorted(closed, key=str) == [None, "idle"]


async def test_crash_in_the_middle_of_a_message_is_counted() -> None:
    """A client that resets its connection halfway loses that message; those before are finished."""
    async with serving() as server:
        with socket.create_connection(("127.0.0.1", port_of(server.url))) as found:
            found.sendall(frame(0) + frame(1)[:20])
            await until(lambda: any(client.frames for client in server.statistics().clients))
            # Closed with a reset, as by a power cut: the other side gets no end.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        [client] = await all_left(server, 1)
    check(client)
    assert (client.frames, dict(client.malformed), client.closed) == (1, {"cut_off": 1}, "cut_off")
    assert client.feed is not None
    assert client.feed.frames.delivered == 1


async def test_clients_that_come_and_go_and_send_anything_leave_nothing() -> None:
    """Forty clients of every kind at once: accounts add up, and tasks, sockets and places are all given back."""
    rng = random.Random(7)
    async with serving(limits=Limits(clients=40)) as server:

        async def guest(number: int) -> None:
            _, writer = await connected(server)
            for count in range(rng.randrange(20)):
                message = bytearray(frame(count, wants_reply=rng.random() < 0.5))
                if rng.random() < 0.1:
                    message[rng.randrange(len(message))] ^= 0xFF
                writer.write(message)
                await asyncio.sleep(0)
            if number % 4 == 0:
                writer.write(frame(0)[: rng.randrange(1, 40)])
            if number % 4 == 1:
                writer.write(goodbye(20))
            if number % 4 == 2:
                writer.transport.abort()
            writer.close()

        await asyncio.gather(*map(guest, range(40)))
        clients = await all_left(server, 40)
        assert await is_served(server)
        await all_left(server, 41)
    for client in clients:
        check(client)
        assert client.closed in ("bye", "end", "reset", "cut_off", "malformed")


@pytest.mark.parametrize("turns", range(6))
async def test_clients_that_come_while_the_server_is_left_are_closed_too(turns: int) -> None:
    """Whatever step of coming in they are at, nothing of them stays behind."""
    async with serving() as server:
        found = await knocks(server, turns)
    assert_shut(found)


async def test_datagrams_of_rubbish_are_counted_and_the_next_one_is_read() -> None:
    """No datagram spoils another; goodbyes of strangers open nothing."""
    async with serving("udp://127.0.0.1:0") as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
            address = ("127.0.0.1", port_of(server.url))
            found.sendto(goodbye(5), address)
            for data in (b"", b"x", frame(0)[:-1], frame(1), random.Random(1).randbytes(500), frame(2)):
                found.sendto(data, address)
            await until(lambda: sum(client.messages for client in server.statistics().clients) == 5)
            for _ in range(3):
                found.sendto(goodbye(3), address)
            [client] = await all_left(server, 1)
            await asyncio.sleep(0.05)
        assert server.statistics().arrived == 1
    check(client)
    assert (client.frames, client.sequence.missing) == (2, 0)
    assert sum(client.malformed.values()) == 3


chunks = st.lists(st.binary(max_size=64) | st.just(frame(1)) | st.just(frame(2)[:17]), max_size=12)


@given(chunks)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_connection_of_any_bytes_ends_in_order(data: list[bytes]) -> None:
    """Whatever comes out of a socket, the iteration ends, nothing is raised, and the account adds up."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        connection = Connection(StreamLink(reader, writer, Limits()), "binary", Limits(), Reading())
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()

        async def send() -> None:
            for chunk in data:
                await loop.sock_sendall(theirs, chunk)
                await asyncio.sleep(0)
            theirs.shutdown(socket.SHUT_WR)

        sending = asyncio.create_task(send())
        frames = [each async for each in connection]
        await asyncio.wait([sending])
        sending.exception()  # it cannot send on if it was shown out
        await connection.link.aclose(1.0)
        theirs.close()
        statistics = connection.statistics()
        check(statistics)
        assert statistics.frames == len(frames)
        assert statistics.closed in ("end", "cut_off", "malformed", "bye")

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(run())
