"""A channel and a model of it, driven through the same random histories."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from partime_async.channel import Channel, ChannelClosed, ChannelEmpty, ChannelFull, ChannelStatistics, EndOfChannel


async def settled() -> None:
    """Let every task run until all wait."""
    for _ in range(6):
        await asyncio.sleep(0)


@dataclass
class Waiter:
    """A task of the model that waits."""

    task: asyncio.Task[int | None]
    item: int = -1


@dataclass
class Model:
    """What a channel is, without tasks."""

    capacity: int
    items: deque[int] = field(default_factory=deque)
    putters: deque[Waiter] = field(default_factory=deque)
    getters: deque[Waiter] = field(default_factory=deque)
    is_closed: bool = False
    peak: int = 0
    passed: int = 0

    def move(self) -> tuple[list[Waiter], list[tuple[Waiter, int]]]:
        """Let those in who fit and give to those who wait, in order; return who has put and who has got what."""
        put: list[Waiter] = []
        got: list[tuple[Waiter, int]] = []
        while True:
            if self.putters and len(self.items) < self.capacity:
                put.append(self.putters.popleft())
                self.items.append(put[-1].item)
            elif self.getters and self.items:
                got.append((self.getters.popleft(), self.items.popleft()))
                self.passed += 1
            else:
                return put, got
            self.peak = max(self.peak, len(self.items))


class ChannelMachine(RuleBasedStateMachine):
    """Drives a channel and a model through the same history, and lets all tasks run after each step."""

    new_loop: Callable[[], asyncio.AbstractEventLoop] = staticmethod(asyncio.new_event_loop)

    def __init__(self) -> None:
        super().__init__()
        self.loop = self.new_loop()
        self.model = Model(2)
        self.channel: Channel[int] = Channel(2)
        self.made = 0

    def teardown(self) -> None:
        """Cancel whoever waits; nobody refuses."""
        waiting = [waiter.task for waiter in (*self.model.putters, *self.model.getters)]
        for task in waiting:
            task.cancel()
        self._settle()
        self.loop.close()
        assert all(task.cancelled() for task in waiting)

    @rule()
    def put(self) -> None:
        """A task puts, and waits if it must."""
        waiter = Waiter(self.loop.create_task(self._put(self.made)), self.made)
        self.made += 1
        if self.model.is_closed:
            self._settle()
            assert isinstance(waiter.task.exception(), ChannelClosed)
        else:
            self.model.putters.append(waiter)
            self._compare()

    @rule()
    def get(self) -> None:
        """A task gets, and waits if it must."""
        waiter = Waiter(self.loop.create_task(self._get()))
        if self.model.is_closed and not self.model.items:
            self._settle()
            assert isinstance(waiter.task.exception(), EndOfChannel)
        else:
            self.model.getters.append(waiter)
            self._compare()

    @rule()
    def put_nowait(self) -> None:
        """Somebody puts at once, or is refused."""
        if self.model.is_closed or len(self.model.items) >= self.model.capacity:
            with pytest.raises(ChannelClosed if self.model.is_closed else ChannelFull):
                self.channel.put_nowait(self.made)
        else:
            self.channel.put_nowait(self.made)
            self.model.items.append(self.made)
            self.model.peak = max(self.model.peak, len(self.model.items))
        self.made += 1
        self._compare()

    @rule()
    def get_nowait(self) -> None:
        """Somebody takes at once, or is refused."""
        if self.model.items:
            assert self.channel.get_nowait() == self.model.items.popleft()
            self.model.passed += 1
        else:
            with pytest.raises(EndOfChannel if self.model.is_closed else ChannelEmpty):
                self.channel.get_nowait()
        self._compare()

    @precondition(lambda self: self.model.items)
    @rule()
    def evict(self) -> None:
        """The oldest is dropped."""
        assert self.channel.evict() == self.model.items.popleft()
        self._compare()

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Any item, there or not, is taken out from wherever it stands."""
        item = data.draw(st.integers(0, self.made))
        assert self.channel.remove(item) == (item in self.model.items)
        if item in self.model.items:
            self.model.items.remove(item)
        self._compare()

    @precondition(lambda self: self.model.putters or self.model.getters)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Somebody who waits gives up; nothing is put or taken."""
        waiting = self.model.putters or self.model.getters
        waiter = data.draw(st.sampled_from(list(waiting)))
        waiting.remove(waiter)
        waiter.task.cancel()
        self._compare()
        assert waiter.task.cancelled()

    @rule(room=st.integers(0, 3))
    def resize(self, room: int) -> None:
        """More or fewer items may wait; those who wait for room come in."""
        capacity = max(1, len(self.model.items) + room)
        self.channel.resize(capacity)
        self.model.capacity = capacity
        self._compare()

    @rule()
    def close(self) -> None:
        """The channel closes: whoever waits is told."""
        self.channel.close()
        self._settle()
        for waiter in self.model.putters:
            assert isinstance(waiter.task.exception(), ChannelClosed)
        for waiter in self.model.getters:
            assert isinstance(waiter.task.exception(), EndOfChannel)
        self.model.putters.clear()
        self.model.getters.clear()
        self.model.is_closed = True

    @invariant()
    def looks_the_same(self) -> None:
        """What can be seen of the channel is what the model says."""
        assert len(self.channel) == len(self.model.items)
        assert self.channel.is_full == (len(self.model.items) >= self.model.capacity)
        assert self.channel.capacity == self.model.capacity
        assert self.channel.getters == len(self.model.getters)
        assert self.channel.peek() == (self.model.items[0] if self.model.items else None)
        assert self.channel.statistics() == ChannelStatistics(
            self.model.capacity, len(self.model.items), self.model.peak, self.model.passed
        )

    async def _put(self, item: int) -> None:
        await self.channel.put(item)

    async def _get(self) -> int:
        return await self.channel.get()

    def _settle(self) -> None:
        self.loop.run_until_complete(settled())

    def _compare(self) -> None:
        self._settle()
        put, got = self.model.move()
        assert all(waiter.task.done() and waiter.task.exception() is None for waiter in put)
        assert [waiter.task.result() for waiter, _ in got] == [item for _, item in got]
        assert not any(waiter.task.done() for waiter in (*self.model.putters, *self.model.getters))


class UvloopChannelMachine(ChannelMachine):
    """The same on uvloop."""

    new_loop = staticmethod(uvloop.new_event_loop)


_HISTORIES = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestChannelOnAsyncio = ChannelMachine.TestCase
TestChannelOnAsyncio.settings = _HISTORIES
TestChannelOnUvloop = UvloopChannelMachine.TestCase
TestChannelOnUvloop.settings = _HISTORIES
