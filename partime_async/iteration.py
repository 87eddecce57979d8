"""Blocking iterables as asynchronous ones: a thread pulls, the event loop only takes what is there.

    thread:  credit -> next() -> items --(wake-up, only if a task waits)--> loop: item -> credit back

The two share no lock, so the loop never waits for the thread: items and credits are queues of their own, and a task
that waits is found by the order of the steps (see `Wakeup`).
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, overload

from torch import Tensor

from partime_async.errors import ConfigurationError, DeadlineExceeded, SourceError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class AsyncFrames(Protocol[T_co]):
    """An asynchronous iterator that gives back what it holds with `aclose`."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    async def __anext__(self) -> T_co: ...

    async def aclose(self) -> None:
        """Stop and give everything back; further calls do nothing."""


class Wakeup:
    """Lets tasks wait for what a thread does, and the thread wake only tasks that wait.

    A task shows its waiter first and looks at the state then; the thread changes the state first and looks for waiters
    then. Whichever comes second sees the other, so no wake-up is lost and no lock is needed.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def wait_for(self, is_ready: Callable[[], bool]) -> None:
        """Wait until `is_ready`, asked anew at each wake-up.

        Cancellation: safe.
        """
        while not is_ready():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                if not is_ready():
                    await waiter
            finally:
                # ValueError: the thread took it out. IndexError: it took another one out meanwhile, and finds this.
                with suppress(ValueError, IndexError):
                    self._waiters.remove(waiter)

    def wake(self) -> None:
        """Wake every task that waits; from any thread."""
        while self._waiters:
            with suppress(IndexError, RuntimeError):  # taken out by its task; its loop is closed, nobody is left
                waiter = self._waiters.popleft()
                waiter.get_loop().call_soon_threadsafe(_settle, waiter)


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Pump(Generic[T]):
    """The thread's side. It knows nothing of the `ThreadedSource`, so that one can be collected while this one runs."""

    def __init__(self, iterable: Iterable[T], capacity: int) -> None:
        self.items: deque[T] = deque()
        self.wakeup = Wakeup()
        self.error: BaseException | None = None
        self.close_error: BaseException | None = None
        self.is_stopping = False
        self.is_finished = False
        self._iterable = iterable
        self._iterator: Iterator[T] | None = None
        self._credits: SimpleQueue[None] = SimpleQueue()
        for _ in range(capacity):
            self._credits.put(None)

    def run(self) -> None:
        """Pull until the iterable ends, raises, or `stop` is called."""
        try:
            self._pull()
        except BaseException as error:
            self.error = error
        try:
            close = getattr(self._iterator, "close", None)
            if callable(close):
                close()
        except BaseException as error:
            self.close_error = error
        self._iterator = None
        self.is_finished = True
        self.wakeup.wake()

    def _pull(self) -> None:
        self._iterator = iterator = iter(self._iterable)
        while True:
            # Asked for before the frame: no more than `capacity` are ever held, and a live one is not taken too early.
            self._credits.get()
            if self.is_stopping:
                return
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.items.append(item)
            del item  # or the thread would keep the frame alive while it waits for the next one
            self.wakeup.wake()

    def take(self) -> T:
        """Take the oldest item and let the thread pull another one."""
        item = self.items.popleft()
        self._credits.put(None)
        return item

    def stop(self) -> None:
        """Make the thread end soon, whether it waits for a credit, for the clock or for nothing."""
        self.is_stopping = True
        self._credits.put(None)
        interrupt = getattr(self._iterator, "interrupt", None)
        if callable(interrupt):
            interrupt()
        self.wakeup.wake()

    def has_news(self) -> bool:
        """Whether a reader need not wait."""
        return bool(self.items) or self.is_finished or self.is_stopping


class ThreadedSource(Generic[T]):
    """Iterate a blocking iterable without blocking the event loop.

    One daemon thread, started with the first frame asked for, makes the iterator, pulls it and closes it: generators
    and devices never see another thread. The items come in order and unchanged; at most `capacity` wait to be taken,
    then the thread waits. An error of the iterable is raised, with its traceback, after the items that came before it.

    One task reads. It belongs to no event loop: the loop that reads is the one that is woken.

    Args:
        iterable: What to pull. If its iterator has `interrupt()`, closing calls it to end a wait early.
        capacity: How many items wait at most, 1 or more.

    Raises:
        ConfigurationError: `capacity` is below 1; the caller's fault.
    """

    def __init__(self, iterable: Iterable[T], *, capacity: int = 2) -> None:
        if capacity < 1:
            raise ConfigurationError(f"capacity is {capacity}; a source hands over at least 1 frame. Pass 1 or more.")
        self._name = f"source-{type(iterable).__name__}"
        self._pump = _Pump(iterable, capacity)
        self._thread: threading.Thread | None = None
        self._is_read = False
        weakref.finalize(self, self._pump.stop)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next item, waiting for it.

        Raises:
            SourceError: Another task waits for the next item already; the caller's fault.
            Exception: Whatever the iterable raised.

        Cancellation: safe; the item stays for the next call.
        """
        pump = self._pump
        if self._is_read:
            raise SourceError("another task waits for this source's next frame. Let one task read each source.")
        if self._thread is None and not pump.is_stopping:
            self._thread = threading.Thread(target=pump.run, name=self._name, daemon=True)
            self._thread.start()
        self._is_read = True
        try:
            await pump.wakeup.wait_for(pump.has_news)
        finally:
            self._is_read = False
        if pump.items and not pump.is_stopping:
            return pump.take()
        error, pump.error = pump.error or pump.close_error, None
        pump.close_error = None
        if error is not None and not pump.is_stopping:
            raise error
        raise StopAsyncIteration

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Stop the thread, close the iterator in it, and wait until the thread is gone. Items not taken are let go.

        Further calls wait again if the thread is still there, and do nothing otherwise.

        Args:
            timeout_s: How long the thread may need for the frame it is busy with, in seconds.

        Raises:
            DeadlineExceeded: The iterable is stuck in `next`. Its thread, a daemon, does not keep the process alive.
            Exception: Whatever closing the iterator raised.

        Cancellation: safe; the thread has been told to end.
        """
        pump, thread = self._pump, self._thread
        pump.stop()
        if thread is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await pump.wakeup.wait_for(lambda: pump.is_finished)
                    # Its last statement has run. A join could still block for a time slice on a busy machine.
                    while thread.is_alive():  # noqa: ASYNC110 - nothing is left that could set an event
                        await asyncio.sleep(0)
            except TimeoutError:
                raise DeadlineExceeded(f"{self._name} is stuck in its next frame and did not stop", timeout_s) from None
        pump.items.clear()
        error, pump.close_error = pump.close_error, None
        if error is not None:
            raise error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class _InMemory(Generic[T]):
    """A sequence that is there already: iterated on the loop, without a thread."""

    # Reading one never waits, so a long one read by a task that never waits either would hold the loop up.
    TURN = 16

    def __init__(self, items: Sequence[T]) -> None:
        self._items: Sequence[T] = items
        self._index = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._index and self._index % self.TURN == 0:
            await asyncio.sleep(0)
        if self._index >= len(self._items):
            raise StopAsyncIteration
        item = self._items[self._index]
        self._index += 1
        return item

    async def aclose(self) -> None:
        self._items = ()


class _PassedOn(Generic[T]):
    """The user's own asynchronous iterator, with an `aclose` if it had none."""

    def __init__(self, source: AsyncIterable[T]) -> None:
        self._iterator = aiter(source)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await anext(self._iterator)

    async def aclose(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if callable(close):
            await close()


@overload
def aiter_frames(source: Tensor, *, capacity: int = 2) -> AsyncFrames[Tensor]: ...
@overload
def aiter_frames(source: AsyncIterable[T] | Iterable[T], *, capacity: int = 2) -> AsyncFrames[T]: ...
def aiter_frames(
    source: Tensor | AsyncIterable[T] | Iterable[T], *, capacity: int = 2
) -> AsyncFrames[T] | AsyncFrames[Tensor]:
    """Make any source of frames an asynchronous iterator with `aclose`.

    Asynchronous iterables are passed on as they are. Lists and tuples are read in place; so is a tensor, which counts
    as the frames along its first dimension, each keeping a batch dimension of 1. Everything else is pulled in a thread.

    Args:
        source: The frames.
        capacity: How many frames the thread of a blocking iterable may be ahead, 1 or more.

    Raises:
        ConfigurationError: `source` is not iterable, or is a text; the caller's fault.
    """
    if isinstance(source, Tensor):
        return _InMemory([source[i : i + 1] for i in range(len(source))])
    if isinstance(source, AsyncIterable):
        return _PassedOn(source)
    if isinstance(source, list | tuple):
        return _InMemory(source)
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise ConfigurationError(
            f"{source!r:.80} is no source of frames. Give an iterable or async iterable of frames; "
            "open_source() makes one of a path or a name."
        )
    return ThreadedSource(source, capacity=capacity)
