"""Waiting for a peer, also by a program that is held up itself."""

from __future__ import annotations

import asyncio
import time

import pytest

from partime_async.sockets.patience import received_within


async def test_what_comes_in_time_is_returned() -> None:
    """Without end, too."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    asyncio.get_running_loop().call_later(0.01, queue.put_nowait, 1)
    assert await received_within(None, queue.get) == 1
    asyncio.get_running_loop().call_later(0.01, queue.put_nowait, 2)
    assert await received_within(60.0, queue.get) == 2


async def test_what_does_not_come_is_a_timeout() -> None:
    """Nothing that comes later is lost by it."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    with pytest.raises(TimeoutError):
        await received_within(0.01, queue.get)
    queue.put_nowait(3)
    assert await received_within(0.01, queue.get) == 3


async def test_what_came_while_the_program_was_held_up_counts() -> None:
    """The time was over before the loop could read it."""
    reader, loop = asyncio.StreamReader(), asyncio.get_running_loop()

    def hold_up() -> None:
        time.sleep(0.05)
        loop.call_soon(reader.feed_data, b"here")

    loop.call_soon(hold_up)
    assert await received_within(0.02, lambda: reader.read(4)) == b"here"
