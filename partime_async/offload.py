"""What must come to its end: blocking functions, on a thread of their own, and coroutines that clean up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[[], T], *, name: str) -> T:
    """Return what `function` returns, called on a new daemon thread.

    Not the loop's default executor: others (aiortc's encoders, `getaddrinfo`) need its few threads.

    Args:
        function: Takes nothing; its exceptions are raised here.
        name: Of the thread.

    Cancellation: waits for the function to end, then raises; its result is lost.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # T may itself be None

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function()
        except StopIteration as raised:
            # No future takes this one, and no coroutine could raise it.
            error = RuntimeError(f"{name} raised StopIteration")
            error.__cause__ = raised
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the loop is closed: nobody waits

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        # Whatever the function builds must be there, or not, before the caller cleans up.
        await asyncio.wait([outcome])
        if not outcome.cancelled():
            outcome.exception()
        raise
    finally:
        if outcome.done():
            thread.join()


def is_being_cancelled() -> bool:
    """Whether somebody cancels the running task: if not, a `CancelledError` came from what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def to_the_end(work: Coroutine[None, None, T], *, name: str) -> T:
    """Return what `work` returns, however often the caller is cancelled meanwhile.

    For cleaning up under a deadline: half of it would leave threads behind.

    Args:
        work: Runs as a task of its own, which ends before this returns.
        name: Of the task.

    Cancellation: waits for the end, then raises.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at: the cancellation comes first
        raise cancelled
    return task.result()
