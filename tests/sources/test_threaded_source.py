"""`ThreadedSource`, on both event loops."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partime_async.errors import ConfigurationError, DeadlineExceeded, SourceError
from partime_async.sources import Scene, ThreadedSource, VideoFile
from tests.sources.clips import record

T = TypeVar("T")


def run(main: Coroutine[None, None, T]) -> T:
    """Run a coroutine in a loop of its own; unlike `asyncio.run`, leave the test framework's current loop alone."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(main)


def source_threads() -> list[str]:
    """Name the threads of sources that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("source-")]


class Gated:
    """An iterable whose `next` blocks until the test lets one more item through."""

    def __init__(self, count: int) -> None:
        self.gate = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.count = count
        self.is_closed = False
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        try:
            for index in range(self.count):
                self.threads.add(threading.get_ident())
                self.asked.release()
                self.gate.acquire()
                yield index
        finally:
            self.threads.add(threading.get_ident())
            self.is_closed = True


async def until_waiting(source: ThreadedSource[int]) -> asyncio.Task[int]:
    """Start reading, and return when the reader waits."""
    reader = asyncio.ensure_future(anext(source))
    for _ in range(3):
        await asyncio.sleep(0)
    return reader


async def test_threaded_source_gives_every_item_in_order() -> None:
    """What the iterable yields comes out unchanged, in order, and then it ends, for good."""
    source = ThreadedSource(iter(range(1000)))
    assert [item async for item in source] == list(range(1000))
    with pytest.raises(StopAsyncIteration):
        await anext(source)
    await source.aclose()
    assert not source_threads()


@pytest.mark.parametrize("capacity", [1, 2, 5])
async def test_threaded_source_with_a_slow_reader_pulls_no_further_than_its_capacity(capacity: int) -> None:
    """The thread is never more than `capacity` items ahead of the reader."""
    pulled: list[int] = []
    ahead: list[int] = []

    def items() -> Iterator[int]:
        for index in range(50):
            pulled.append(index)
            yield index

    taken = 0
    async with ThreadedSource(items(), capacity=capacity) as source:
        async for _ in source:
            taken += 1
            ahead.append(len(pulled) - taken)
    assert taken == 50
    assert max(ahead) <= capacity


async def test_threaded_source_of_a_raising_iterable_raises_after_its_items() -> None:
    """An error comes after the items before it, as it was raised, with the place where it was raised."""

    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError("in the camera")

    source = ThreadedSource(items())
    assert [await anext(source), await anext(source)] == [1, 2]
    with pytest.raises(ZeroDivisionError, match="in the camera") as caught:
        await anext(source)
    assert "items" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    with pytest.raises(StopAsyncIteration):
        await anext(source)
    await source.aclose()
    assert not source_threads()


async def test_threaded_source_of_an_iterable_that_cannot_start_raises() -> None:
    """An error of `iter()` itself reaches the reader."""

    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise OSError("no device")

    with pytest.raises(OSError, match="no device"):
        await anext(ThreadedSource(Broken()))


async def test_threaded_source_cancelled_while_waiting_loses_nothing() -> None:
    """An item that comes while, or after, a reader is cancelled goes to the next reader."""
    gated = Gated(3)
    source = ThreadedSource(gated)
    got = []
    for _ in range(3):
        reader = await until_waiting(source)
        reader.cancel()
        gated.gate.release()
        with pytest.raises(asyncio.CancelledError):
            await reader
        got.append(await anext(source))
    assert got == [0, 1, 2]
    await source.aclose()


@settings(deadline=None)  # threads start when the machine lets them
@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 4))
def test_threaded_source_cancelled_at_any_time_loses_nothing(patience: list[int], capacity: int) -> None:
    """However long each reader stays before it is cancelled, each item is read once."""

    async def read() -> list[int]:
        got = []
        async with ThreadedSource(iter(range(20)), capacity=capacity) as source:
            for turns in patience:
                reader = asyncio.ensure_future(anext(source))
                for _ in range(turns):
                    await asyncio.sleep(0)
                reader.cancel()
                try:
                    got.append(await reader)
                except asyncio.CancelledError:
                    continue
                except StopAsyncIteration:
                    break
            got += [item async for item in source]
        return got

    assert run(read()) == list(range(20))


async def test_threaded_source_closed_early_closes_the_generator_in_its_thread() -> None:
    """Leaving early ends the generator, in the one thread that ever touched it, and leaves no thread."""
    gated = Gated(100)
    for _ in range(50):
        gated.gate.release()
    async with ThreadedSource(gated) as source:
        await anext(source)
    assert gated.is_closed
    assert len(gated.threads) == 1
    assert threading.get_ident() not in gated.threads
    assert not source_threads()


async def test_threaded_source_closed_before_it_began_never_starts() -> None:
    """Closing an unread source touches nothing, and reading it then ends at once."""
    gated = Gated(1)
    source = ThreadedSource(gated)
    await source.aclose()
    await source.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(source)
    assert not gated.threads


async def test_threaded_source_stuck_in_next_exceeds_its_deadline() -> None:
    """A `next` that does not return is reported; once it returns, closing again succeeds."""
    gated = Gated(1)
    source = ThreadedSource(gated)
    reader = await until_waiting(source)
    with pytest.raises(DeadlineExceeded, match=r"stuck in its next frame and did not stop within 0\.01 s") as caught:
        await source.aclose(timeout_s=0.01)
    assert caught.value.deadline_s == 0.01
    with pytest.raises(StopAsyncIteration):
        await reader
    gated.gate.release()
    await source.aclose()
    assert gated.is_closed
    assert not source_threads()


async def test_threaded_source_whose_close_fails_raises_on_closing() -> None:
    """An error in the generator's own clean-up is not lost."""

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise RuntimeError("the device will not let go")

    source = ThreadedSource(items())
    await anext(source)
    with pytest.raises(RuntimeError, match="will not let go"):
        await source.aclose()
    assert not source_threads()


async def test_threaded_source_read_by_two_tasks_refuses_the_second() -> None:
    """Two readers at once are a mistake, named as one; the first is not disturbed."""
    gated = Gated(1)
    source = ThreadedSource(gated)
    reader = await until_waiting(source)
    with pytest.raises(SourceError, match="another task waits"):
        await anext(source)
    gated.gate.release()
    assert await reader == 0
    await source.aclose()


async def test_threaded_source_forgotten_ends_its_thread() -> None:
    """A source that nobody holds any more does not keep its thread."""
    gated = Gated(10)
    for _ in range(10):
        gated.gate.release()
    source = ThreadedSource(gated)
    await anext(source)
    thread = next(thread for thread in threading.enumerate() if thread.name == "source-Gated")
    del source
    gc.collect()
    thread.join()
    assert gated.is_closed


async def test_threaded_source_with_an_endless_realtime_source_closes_at_once(tmp_path: Path) -> None:
    """A wait for a frame that is due in 1000 seconds ends with the source."""
    video = VideoFile(record(tmp_path / "a.mkv", frames=2, stamps_ms=[0, 1_000_000]), realtime=True)
    source = ThreadedSource(video)
    await anext(source)
    reader = asyncio.ensure_future(anext(source))
    await asyncio.sleep(0)
    await source.aclose()
    with pytest.raises(StopAsyncIteration):
        await reader
    assert not source_threads()


async def test_threaded_source_under_load_never_blocks_the_loop() -> None:
    """Neither reading nor closing makes a blocking call on the loop's thread, for which the suite watches."""
    async with ThreadedSource(Scene(size=(16, 16), frames=200)) as source:
        assert len([frame async for frame in source]) == 200
    async with ThreadedSource(Scene(size=(16, 16))) as source:
        await anext(source)
    assert not source_threads()


async def test_threaded_source_with_items_ready_does_not_wake_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread calls the loop only for a reader that waits."""
    gated = Gated(4)
    source = ThreadedSource(gated, capacity=4)
    reader = await until_waiting(source)
    gated.gate.release()
    assert await reader == 0
    woken: list[object] = []
    monkeypatch.setattr("partime_async.iteration._settle", woken.append)
    thread = next(thread for thread in threading.enumerate() if thread.name == "source-Gated")
    gated.gate.release(3)
    thread.join()
    assert [item async for item in source] == [1, 2, 3]
    await asyncio.sleep(0)
    assert not woken


def test_threaded_source_read_from_one_loop_after_another_goes_on() -> None:
    """A source belongs to no loop: a second one reads on where the first one stopped."""
    source = ThreadedSource(iter(range(4)))

    async def read_two() -> list[int]:
        return [await anext(source), await anext(source)]

    async def read_rest() -> list[int]:
        rest = [item async for item in source]
        await source.aclose()
        return rest

    assert run(read_two()) == [0, 1]
    assert run(read_two()) == [2, 3]
    assert run(read_rest()) == []
    assert not source_threads()


def test_threaded_source_whose_loop_closed_midway_can_be_closed_in_another() -> None:
    """A loop that is gone while its reader waits does no harm to the thread."""
    gated = Gated(2)
    source = ThreadedSource(gated)

    async def leave() -> None:
        await until_waiting(source)

    run(leave())
    gated.gate.release()
    gated.gate.release()
    run(source.aclose())
    assert not source_threads()


def test_threaded_source_without_capacity_is_refused() -> None:
    """A buffer of no frames cannot hand anything over."""
    with pytest.raises(ConfigurationError, match="capacity is 0"):
        ThreadedSource([1], capacity=0)
