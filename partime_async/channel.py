"""A bounded, lossless link between two tasks of one event loop.

Every waiting method is a synchronous core (`put_nowait`, `get_nowait`) plus the wait, so that a task that finds work
ready never yields for it. Loss is never decided here: a feed that drops takes the item out with `evict` and counts it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from partime_async.errors import ConfigurationError, PartimeError

T = TypeVar("T")


class ChannelFull(PartimeError):
    """`put_nowait` found no room."""


class ChannelEmpty(PartimeError):
    """`get_nowait` found nothing."""


class ChannelClosed(PartimeError):
    """The caller put into a channel that was closed before."""


class EndOfChannel(PartimeError):
    """The channel is closed and empty: the normal end."""


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What one channel has seen.

    Attributes:
        capacity: How many items it holds at most.
        waiting: How many it holds now.
        peak: The most it ever held.
        passed: How many were taken out by `get`.
    """

    capacity: int
    waiting: int
    peak: int
    passed: int


class Channel(Generic[T]):
    """A first-in, first-out queue of at most `capacity` items.

    Tasks that wait to put, and tasks that wait to get, are served in the order they came. Not thread-safe.

    Args:
        capacity: At least 1.

    Raises:
        ConfigurationError: `capacity` is below 1.
    """

    __slots__ = ("_capacity", "_getters", "_is_closed", "_items", "_passed", "_peak", "_putters")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ConfigurationError(f"capacity is {capacity}; a channel holds at least 1 item. Pass 1 or more.")
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._putters: deque[asyncio.Future[None]] = deque()
        self._is_closed = False
        self._peak = 0
        self._passed = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def capacity(self) -> int:
        """How many items the channel holds at most."""
        return self._capacity

    @property
    def is_full(self) -> bool:
        """Whether a `put` would wait."""
        return len(self._items) >= self._capacity

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called; items put before can still be taken."""
        return self._is_closed

    def resize(self, capacity: int) -> None:
        """Hold at most this many items from now on, 1 or more; more that are there already stay."""
        self._capacity = capacity
        for _ in range(capacity - len(self._items)):
            _wake_one(self._putters)

    @property
    def getters(self) -> int:
        """How many tasks wait for an item."""
        return len(self._getters)

    def put_nowait(self, item: T) -> None:
        """Put one item, at once.

        Raises:
            ChannelFull: There is no room.
            ChannelClosed: The caller's side closed the channel.
        """
        if self._is_closed:
            raise ChannelClosed("the channel is closed. Do not put after close().")
        if len(self._items) >= self._capacity:
            raise ChannelFull(f"{self._capacity} item(s) wait already. Await put() instead.")
        self._items.append(item)
        if len(self._items) > self._peak:
            self._peak = len(self._items)
        if self._getters:
            _wake_one(self._getters)

    async def put(self, item: T) -> None:
        """Put one item, waiting for room.

        Raises:
            ChannelClosed: The channel was closed, before or during the wait.

        Cancellation: safe; a cancelled put has put nothing.
        """
        is_overtaken = False
        while len(self._items) >= self._capacity and not self._is_closed:
            await _wait_in(self._putters, is_first=is_overtaken)
            is_overtaken = True
        self.put_nowait(item)

    def get_nowait(self) -> T:
        """Take the oldest item, at once.

        Raises:
            ChannelEmpty: Nothing waits.
            EndOfChannel: Nothing waits and the channel is closed.
        """
        if not self._items:
            if self._is_closed:
                raise EndOfChannel("the channel is closed and empty.")
            raise ChannelEmpty("nothing waits. Await get() instead.")
        item = self._items.popleft()
        self._passed += 1
        if self._putters and len(self._items) < self._capacity:
            _wake_one(self._putters)
        return item

    async def get(self) -> T:
        """Take the oldest item, waiting for one.

        Raises:
            EndOfChannel: The channel is closed and empty.

        Cancellation: safe; a cancelled get has taken nothing.
        """
        is_overtaken = False
        while not self._items and not self._is_closed:
            await _wait_in(self._getters, is_first=is_overtaken)
            is_overtaken = True
        return self.get_nowait()

    def evict(self) -> T:
        """Take the oldest item out without counting it as passed: the caller drops it and counts the drop.

        Raises:
            ChannelEmpty: Nothing waits.
        """
        if not self._items:
            raise ChannelEmpty("nothing waits that could be evicted.")
        item = self._items.popleft()
        if self._putters and len(self._items) < self._capacity:
            _wake_one(self._putters)
        return item

    def remove(self, item: T) -> bool:
        """Take this very item out, wherever it stands, and say whether it was there."""
        for position, other in enumerate(self._items):
            if other is item:
                del self._items[position]
                break
        else:
            return False
        if self._putters and len(self._items) < self._capacity:
            _wake_one(self._putters)
        return True

    def peek(self) -> T | None:
        """Return the oldest item without taking it, or None."""
        return self._items[0] if self._items else None

    def close(self) -> None:
        """Accept no more; what waits can still be taken. Idempotent."""
        self._is_closed = True
        for waiters in (self._getters, self._putters):
            while waiters:
                _wake_one(waiters)

    def statistics(self) -> ChannelStatistics:
        """Return what the channel has seen so far."""
        return ChannelStatistics(self._capacity, len(self._items), self._peak, self._passed)


def _wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return


async def _wait_in(waiters: deque[asyncio.Future[None]], *, is_first: bool) -> None:
    """Wait to be woken; first in line after having been woken, and overtaken by a task that did not wait."""
    waiter = asyncio.get_running_loop().create_future()
    if is_first:
        waiters.appendleft(waiter)
    else:
        waiters.append(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        if waiter.done() and not waiter.cancelled():
            # Woken and cancelled in the same step: the wake-up belongs to the next in line.
            _wake_one(waiters)
        else:
            with suppress(ValueError):  # a wake-up came after the cancellation: it passed over this one and took it out
                waiters.remove(waiter)
        raise
