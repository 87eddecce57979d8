"""Announcements reach the loop in order, in batches, and past each other's failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import cast

from partime_async.devices import Notifier


class CountingLoop:
    """A loop that counts how often it is woken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.wake_ups = 0
        self._loop = loop
        self.call_exception_handler = loop.call_exception_handler

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Count and pass on."""
        self.wake_ups += 1
        self._loop.call_soon_threadsafe(callback)


def counting() -> tuple[CountingLoop, Notifier[int]]:
    """Return the running loop, counted, and a notifier on it."""
    loop = CountingLoop(asyncio.get_running_loop())
    return loop, Notifier(cast(asyncio.AbstractEventLoop, loop))


async def test_post_batch_wakes_the_loop_once() -> None:
    """However many announcements pile up before the loop comes by, it is woken once."""
    loop, notifier = counting()
    seen: list[int] = []
    for batch in range(10):
        notifier.post([(seen.append, batch * 10 + each) for each in range(10)])
    assert loop.wake_ups == 1
    await asyncio.sleep(0)
    assert seen == list(range(100))


async def test_post_after_a_wake_up_wakes_again() -> None:
    """Each batch that comes when the loop has drained the one before gets a wake-up of its own."""
    loop, notifier = counting()
    seen: list[int] = []
    for number in range(3):
        notifier.post([(seen.append, number)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == list(range(number + 1))
    assert loop.wake_ups == 3


async def test_post_from_within_a_callback_is_delivered() -> None:
    """What a callback posts is not lost, and comes after what was there."""
    _, notifier = counting()
    seen: list[int] = []

    def first(number: int) -> None:
        seen.append(number)
        notifier.post([(seen.append, number + 10)])

    notifier.post([(first, 1), (seen.append, 2)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert seen == [1, 2, 11]


async def test_post_callback_that_raises_does_not_stop_the_others() -> None:
    """An error in one callback goes to the loop's exception handler; all others are called."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    notifier: Notifier[int] = Notifier(loop)
    seen: list[int] = []
    error = LookupError("no")

    def refuse(number: int) -> None:
        raise error

    notifier.post([(seen.append, 1), (refuse, 2), (seen.append, 3)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert seen == [1, 3]
    assert complaints == [error]


async def test_post_from_many_threads_loses_nothing_and_keeps_each_ones_order() -> None:
    """Announcements of one thread stay in order, and none is lost between threads and drains."""
    threads, per_thread = 8, 2000
    notifier: Notifier[tuple[int, int]] = Notifier(asyncio.get_running_loop())
    seen: dict[int, list[int]] = {each: [] for each in range(threads)}
    is_done = asyncio.Event()
    loop_thread = threading.current_thread()
    missing = threads * per_thread

    def note(subject: tuple[int, int]) -> None:
        nonlocal missing
        assert threading.current_thread() is loop_thread
        seen[subject[0]].append(subject[1])
        missing -= 1
        if not missing:
            is_done.set()

    def post(thread: int) -> None:
        for number in range(per_thread):
            notifier.post([(note, (thread, number))])

    workers = [threading.Thread(target=post, args=(each,)) for each in range(threads)]
    for worker in workers:
        worker.start()
    async with asyncio.timeout(20):
        await is_done.wait()
    for worker in workers:
        worker.join()
    assert all(numbers == list(range(per_thread)) for numbers in seen.values())


def test_post_to_a_closed_loop_is_ignored_and_keeps_nothing() -> None:
    """A device that ends after its loop raises nothing in its thread, and gathers no memory."""
    loop = asyncio.new_event_loop()
    notifier: Notifier[int] = Notifier(loop)
    loop.close()
    for number in range(3):
        notifier.post([(print, number)])
    assert len(notifier._pending) == 0
