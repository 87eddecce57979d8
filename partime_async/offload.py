"""Run a blocking function off the event loop, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
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
