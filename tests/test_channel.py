"""A channel keeps every item, its order and the order of those who wait, whoever is cancelled when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from partime_async.channel import (
    Channel,
    ChannelClosed,
    ChannelEmpty,
    ChannelFull,
    ChannelStatistics,
    EndOfChannel,
)
from partime_async.errors import ConfigurationError


async def settled() -> None:
    """Let every task run until all wait."""
    for _ in range(6):
        await asyncio.sleep(0)


async def begun(coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
    """Start a task and let it come to its first wait."""
    task = asyncio.create_task(coroutine)
    await settled()
    return task


def test_channel_capacity_below_one_is_refused() -> None:
    """A channel that can hold nothing is an error of configuration."""
    with pytest.raises(ConfigurationError, match="capacity is 0"):
        Channel[int](0)


def test_channel_full_and_empty_say_what_to_do() -> None:
    """The nowait methods raise errors of their own, with the remedy."""
    channel: Channel[int] = Channel(1)
    with pytest.raises(ChannelEmpty, match=r"Await get\(\)"):
        channel.get_nowait()
    with pytest.raises(ChannelEmpty):
        channel.evict()
    channel.put_nowait(1)
    with pytest.raises(ChannelFull, match=r"1 item\(s\) wait already\. Await put\(\)"):
        channel.put_nowait(2)


def test_channel_closed_refuses_and_still_gives() -> None:
    """After close() nothing goes in, what is in comes out, and then the end is the end."""
    channel: Channel[int] = Channel(2)
    channel.put_nowait(1)
    channel.close()
    channel.close()
    assert channel.is_closed
    with pytest.raises(ChannelClosed):
        channel.put_nowait(2)
    assert channel.get_nowait() == 1
    with pytest.raises(EndOfChannel):
        channel.get_nowait()


def test_statistics_of_evicted_and_removed_items_are_not_passed() -> None:
    """Only what get() took counts as passed; the peak remembers."""
    channel: Channel[str] = Channel(4)
    items = ["a", "b", "c", "d"]
    for item in items:
        channel.put_nowait(item)
    assert channel.evict() == "a"
    assert channel.remove(items[2])
    assert not channel.remove("z")
    assert channel.get_nowait() == "b"
    assert channel.peek() == "d"
    assert channel.statistics() == ChannelStatistics(capacity=4, waiting=1, peak=4, passed=1)
    assert channel.get_nowait() == "d"
    assert channel.peek() is None


def _put_nowait(channel: Channel[int]) -> None:
    channel.put_nowait(7)


GETTER_WAKERS: list[Callable[[Channel[int]], object]] = [_put_nowait, Channel.close]
PUTTER_WAKERS: list[Callable[[Channel[int]], object]] = [
    Channel.get_nowait,
    Channel.evict,
    lambda channel: channel.remove(0),
    Channel.close,
]


@pytest.mark.parametrize("wake", GETTER_WAKERS)
async def test_get_cancelled_before_its_wake_up_is_cancelled(wake: Callable[[Channel[int]], object]) -> None:
    """A get that is cancelled, and woken before it could notice, raises CancelledError and takes nothing."""
    channel: Channel[int] = Channel(1)
    getter = await begun(channel.get())
    getter.cancel()
    wake(channel)
    (outcome,) = await asyncio.gather(getter, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    assert len(channel) == (0 if channel.is_closed else 1)


@pytest.mark.parametrize("wake", GETTER_WAKERS)
async def test_get_cancelled_after_its_wake_up_takes_nothing(wake: Callable[[Channel[int]], object]) -> None:
    """A get that is woken and cancelled in the same step leaves the item to the next who waits."""
    channel: Channel[int] = Channel(1)
    getter, after = await begun(channel.get()), await begun(channel.get())
    wake(channel)
    getter.cancel()
    await settled()
    assert getter.cancelled()
    assert after.done()
    assert isinstance(after.exception(), EndOfChannel) if channel.is_closed else after.result() == 7


@pytest.mark.parametrize("wake", PUTTER_WAKERS)
async def test_put_cancelled_before_its_wake_up_is_cancelled(wake: Callable[[Channel[int]], object]) -> None:
    """A put that is cancelled, and woken before it could notice, raises CancelledError and puts nothing."""
    channel: Channel[int] = Channel(1)
    channel.put_nowait(0)
    putter = await begun(channel.put(1))
    putter.cancel()
    wake(channel)
    (outcome,) = await asyncio.gather(putter, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    assert channel.peek() == (0 if channel.is_closed else None)


@pytest.mark.parametrize("wake", PUTTER_WAKERS)
async def test_put_cancelled_after_its_wake_up_puts_nothing(wake: Callable[[Channel[int]], object]) -> None:
    """A put that is woken and cancelled in the same step leaves the room to the next who waits."""
    channel: Channel[int] = Channel(1)
    channel.put_nowait(0)
    putter, after = await begun(channel.put(1)), await begun(channel.put(2))
    wake(channel)
    putter.cancel()
    await settled()
    assert putter.cancelled()
    assert isinstance(after.exception(), ChannelClosed) if channel.is_closed else channel.peek() == 2


async def test_get_overtaken_keeps_its_place() -> None:
    """A get whose item was taken by somebody quicker is still the first of those who wait."""
    channel: Channel[int] = Channel(1)
    first, second = await begun(channel.get()), await begun(channel.get())
    channel.put_nowait(1)
    assert channel.get_nowait() == 1
    await settled()
    channel.put_nowait(2)
    await settled()
    is_first, is_second = first.done(), second.done()
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert (is_first, is_second) == (True, False)
    assert first.result() == 2


async def test_put_overtaken_keeps_its_place() -> None:
    """A put whose room was taken by somebody quicker is still the first of those who wait."""
    channel: Channel[int] = Channel(1)
    channel.put_nowait(0)
    first, second = await begun(channel.put(1)), await begun(channel.put(2))
    channel.get_nowait()
    channel.put_nowait(9)
    await settled()
    assert channel.get_nowait() == 9
    await settled()
    is_first, is_second = first.done(), second.done()
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert (is_first, is_second) == (True, False)
    assert channel.peek() == 1


async def test_put_waiting_for_more_than_one_to_leave_keeps_its_place() -> None:
    """In a channel that was made smaller than what it holds, the first put to wait is the first to come in."""
    channel: Channel[int] = Channel(2)
    channel.put_nowait(0)
    channel.put_nowait(0)
    channel.resize(1)
    tasks = [await begun(channel.put(1)), await begun(channel.put(2))]
    channel.get_nowait()
    await settled()
    channel.get_nowait()
    await settled()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert channel.peek() == 1


@pytest.mark.parametrize("seed", range(12))
async def test_storm_of_tasks_and_cancellations_loses_nothing_and_leaves_nobody_waiting(seed: int) -> None:
    """Whatever is started, cancelled and taken in one step: every item is accounted for, and no wake-up is lost."""
    choice = random.Random(seed)
    channel: Channel[int] = Channel(choice.randint(1, 3))
    putters: dict[int, asyncio.Task[None]] = {}
    getters: list[asyncio.Task[int]] = []
    placed: list[int] = []
    taken: list[int] = []
    for number in range(400):
        for _ in range(choice.randint(0, 4)):
            step = choice.random()
            if step < 0.3:
                putters[number * 10 + len(putters)] = asyncio.create_task(channel.put(number * 10 + len(putters)))
            elif step < 0.6:
                getters.append(asyncio.create_task(channel.get()))
            elif step < 0.7 and not channel.is_full:
                placed.append(-len(placed) - 1)
                channel.put_nowait(placed[-1])
            elif step < 0.8 and len(channel):
                taken.append(choice.choice([channel.get_nowait, channel.evict])())
            elif tasks := [task for task in (*putters.values(), *getters) if not task.done()]:
                choice.choice(tasks).cancel()
        if choice.random() < 0.5:
            await asyncio.sleep(0)
    await settled()
    is_getter_stuck = len(channel) > 0 and any(not getter.done() for getter in getters)
    is_putter_stuck = not channel.is_full and any(not putter.done() for putter in putters.values())
    while len(channel):
        taken.append(channel.get_nowait())
        await settled()
    for getter in getters:
        getter.cancel()
    outcomes = await asyncio.gather(*putters.values(), *getters, return_exceptions=True)
    assert not is_getter_stuck
    assert not is_putter_stuck
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    put = {item for item, task in putters.items() if not task.cancelled()} | set(placed)
    got = [getter.result() for getter in getters if not getter.cancelled()]
    assert sorted(taken + got) == sorted(put)
