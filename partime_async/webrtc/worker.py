"""One thread that does one kind of work, in order, for tasks that wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """A daemon thread of its own for what would block the loop: converting and resizing pictures.

    Not the loop's default executor, on whose few threads aiortc encodes. The thread starts with the first work, and
    stays: to start one for each picture would cost as much as to convert a small one.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    async def run(self, function: Callable[[], T]) -> T:
        """Return what `function` returns, called on the thread after everything asked for before.

        Raises:
            Exception: What the function raised.
            RuntimeError: The worker is closed; the caller's fault.

        Cancellation: safe; the function still runs, and what it returns is lost.
        """
        if self._is_closed:
            raise RuntimeError(f"{self._name} is closed")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        self._jobs.put(lambda: _do(function, outcome, loop))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        return await outcome

    def close(self) -> None:
        """Let the thread end after what was asked for; does not wait, and may be called again."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)

    async def aclose(self) -> None:
        """Close, and wait until the thread is gone.

        Cancellation: safe; the thread has been told to end.
        """
        self.close()
        # Its work is short, and nothing else would tell that the last statement has run.
        while self._thread is not None and self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or the thread would keep the picture alive while it waits for the next one


def _do(function: Callable[[], T], outcome: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
    result: T | None = None
    error: BaseException | None = None
    try:
        result = function()
    except StopIteration as raised:
        # No future takes this one.
        error = RuntimeError("the function raised StopIteration")
        error.__cause__ = raised
    except BaseException as raised:
        error = raised

    def settle() -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # T may itself be None

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        return  # the loop is closed: nobody waits
