"""Waiting for a peer no longer than so long, without blaming it for the time in which this program was held up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def received_within(seconds: float | None, receive: Callable[[], Awaitable[T]]) -> T:
    """Return what a peer sends.

    Args:
        seconds: To wait for it; None: without end.
        receive: Gives it; called once more if the time is over, since what came while the program did something else
            is read only in the loop's next turn.

    Raises:
        TimeoutError: Nothing came in time.

    Cancellation: as safe as `receive`.
    """
    try:
        async with asyncio.timeout(seconds):
            return await receive()
    except TimeoutError:
        await asyncio.sleep(0)
        async with asyncio.timeout(0.0):
            return await receive()
