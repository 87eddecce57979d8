"""A sink in a thread of its own, so that the event loop never encodes or touches a disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, ParamSpec, Self

from partime_async.errors import ConfigurationError, DeadlineExceeded, SinkError
from partime_async.sinks.base import Sink

P = ParamSpec("P")


class ThreadedSink(Generic[P]):
    """Write to a blocking sink without blocking the event loop.

    One daemon thread, started with the first write, does everything to the sink: write, then close or abort. Items are
    written in the order in which they came; at most `capacity` wait, then `write` waits. The first error of the sink
    ends the writing, throws away what the sink has, and is raised, with its traceback, to all who write from then on.

    Leaving `async with` closes the sink; leaving it by an exception aborts it. It belongs to the event loop it is first
    used in.

    Args:
        sink: What to write to.
        capacity: How many items wait at most, 1 or more.

    Raises:
        ConfigurationError: `capacity` is below 1; the caller's fault.
    """

    def __init__(self, sink: Sink[P], *, capacity: int = 8) -> None:
        if capacity < 1:
            raise ConfigurationError(f"capacity is {capacity}; a sink takes at least 1 item. Pass 1 or more.")
        self._sink = sink
        self._room = asyncio.Semaphore(capacity)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._finished = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_raised = False
        self._is_closing = False
        self._is_aborting = False

    async def write(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Hand one item to the sink, waiting for room.

        Args:
            *args: What the sink's own `write` takes.
            **kwargs: The same.

        Raises:
            SinkError: It is closed; the caller's fault.
            Exception: What the sink raised, for this item or an earlier one.

        Cancellation: safe; a cancelled write has written nothing.
        """
        self._start()
        await self._room.acquire()
        if self._error is not None:
            self._room.release()
            self._is_raised = True
            raise self._error
        if self._is_closing:
            self._room.release()
            raise SinkError("the sink is closed. Write before aclose().")
        self._jobs.put(partial(self._sink.write, *args, **kwargs))

    async def aclose(self, timeout_s: float = 30.0) -> None:
        """Write what waits, close the sink and wait until the thread is gone; further calls only wait.

        Args:
            timeout_s: How long all that may take, in seconds. What is left then is thrown away.

        Raises:
            DeadlineExceeded: The sink is stuck or slow. Its thread is a daemon and does not keep the process alive.
            Exception: What the sink raised, if no `write` raised it.

        Cancellation: safe; the thread goes on to write and close.
        """
        self._start()
        if not self._is_closing:
            self._is_closing = True
            self._jobs.put(None)
        try:
            async with asyncio.timeout(timeout_s):
                await self._finished.wait()
                # Its last statement has run. A join could still block for a time slice on a busy machine.
                while self._thread is not None and self._thread.is_alive():  # noqa: ASYNC110 - no event is left to set
                    await asyncio.sleep(0)
        except TimeoutError:
            self._is_aborting = True
            late = DeadlineExceeded(f"{type(self._sink).__name__} did not finish", timeout_s)
            self._error, self._is_raised = self._error or late, True
            self._room.release()  # writers that wait for room find the error and pass the room on to the next
            raise late from None
        if self._error is not None and not self._is_raised:
            self._is_raised = True
            raise self._error

    async def abort(self, timeout_s: float = 5.0) -> None:
        """Throw away what waits and what was written, and wait until the thread is gone.

        Args:
            timeout_s: How long the item at work may take, in seconds.

        Raises:
            DeadlineExceeded: The sink is stuck. Its thread is a daemon and does not keep the process alive.
            Exception: What the sink raised, if no `write` raised it.

        Cancellation: safe; the thread goes on to abort.
        """
        self._is_aborting = True
        await self.aclose(timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            await self.abort()

    def _start(self) -> None:
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            name = f"sink-{type(self._sink).__name__}"
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name=name, daemon=True)
            self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do the jobs of the queue; the thread's whole life."""
        while (job := self._jobs.get()) is not None:
            if self._error is None and not self._is_aborting:
                self._attempt(job)
            del job  # or the thread would keep the item alive while it waits for the next one
            try:
                loop.call_soon_threadsafe(self._room.release)
            except RuntimeError:  # the loop is closed: nobody will write or close any more
                self._is_aborting = True
                break
        if self._error is None and not self._is_aborting:
            self._attempt(self._sink.close)
        if self._error is not None or self._is_aborting:
            self._attempt(self._sink.abort)
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._finished.set)

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = self._error or error
