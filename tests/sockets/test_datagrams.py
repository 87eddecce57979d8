"""UDP: what cannot be received in time is lost, and every loss is counted somewhere."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from partime_async.sockets import Limits, listen
from partime_async.sockets.datagram import QueueLink, kernel_drops
from tests.sockets.peers import check, frame, goodbye, port_of, serving, slow, until


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell how many datagrams they dropped")
async def test_datagrams_that_the_kernel_dropped_are_counted_exactly() -> None:
    """While the loop is held up the kernel's buffer overflows: received and dropped are all that were sent."""
    async with serving("udp://127.0.0.1:0", overflow="latest") as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
            found.connect(("127.0.0.1", port_of(server.url)))
            found.send(frame(0))
            await until(lambda: server.statistics().connected == 1)
            count, data, dropped = 1, bytearray(frame(0)), 0
            while not dropped:  # blocks this test's loop, on purpose, not the library's
                assert count < 100_000
                for _ in range(1000):
                    data[8:16] = count.to_bytes(8, "little")
                    found.send(data)
                    count += 1
                dropped = server.statistics().kernel_drops or 0
            await until(lambda: server.statistics().clients[0].messages + dropped >= count)
            found.send(goodbye(count))
            await until(lambda: not server.statistics().connected)
        [client] = server.statistics().clients
        assert server.statistics().kernel_drops == dropped
    check(client)
    assert client.sequence.numbered == count
    assert client.sequence.missing == dropped + client.dropped.get("full", 0)
    assert client.messages + dropped == count + 1


async def test_datagrams_beyond_what_may_wait_are_dropped_and_counted() -> None:
    """A lossless feed cannot push back on datagrams: those that find no room are counted, memory is bounded."""
    limits = Limits(waiting_bytes=2000)
    async with serving("udp://127.0.0.1:0", pipeline=slow(20), limits=limits) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
            found.connect(("127.0.0.1", port_of(server.url)))
            for number in range(100):
                found.send(frame(number))
                await asyncio.sleep(0)
            found.send(goodbye(100))
            await until(lambda: not server.statistics().connected or bool(server.statistics().clients[0].dropped))
            [client] = server.statistics().clients
    check(client)
    assert client.dropped["full"] > 50


async def test_datagrams_lost_on_the_way_show_as_gaps() -> None:
    """What never came is missing, also at the end, where only the goodbye tells."""
    async with serving("udp://127.0.0.1:0") as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
            found.connect(("127.0.0.1", port_of(server.url)))
            for number in (0, 1, 4, 3, 3, 7):
                found.send(frame(number))
            found.send(goodbye(10))
            await until(lambda: server.statistics().arrived == 1 and not server.statistics().connected)
        [client] = server.statistics().clients
    check(client)
    counts = client.sequence
    assert (counts.numbered, counts.distinct, counts.missing) == (10, 5, 5)
    assert (counts.reordered, counts.repeated, client.dropped["repeated"]) == (1, 1, 1)


async def test_datagrams_of_a_silent_address_give_its_place_to_another() -> None:
    """Nobody hears a datagram socket close: silence is its end."""
    async with listen("udp://127.0.0.1:0", limits=Limits(clients=1, idle_s=0.2)) as source:
        for number in range(2):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
                found.connect(("127.0.0.1", port_of(source.url)))
                found.send(frame(number))
                assert (await anext(source)).sequence == number
            await until(lambda: not source.statistics().connected)


async def test_queue_link_that_is_full_keeps_the_oldest() -> None:
    """Those that have waited are nearer to their turn; empty datagrams are nothing."""
    link = QueueLink("somewhere", Limits(waiting_bytes=200))
    for data in (b"", b"a" * 30, b"b" * 30, b"c" * 30):
        link.deliver(data)
    assert link.overflowed == 1
    assert [await link.receive(), await link.receive(), link.receive_nowait()] == [b"a" * 30, b"b" * 30, None]
    link.end()
    assert await link.receive() == b""


def test_kernel_drops_of_an_idle_socket_is_zero_or_unknown() -> None:
    """It is asked of the system, which may not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        assert kernel_drops(found) in (0, None)
    assert kernel_drops(found) is None  # closed
