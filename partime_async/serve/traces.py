"""Errors that a library keeps for good: without the frames that they went through."""

from __future__ import annotations

import asyncio


def forget_frames(error: BaseException | None) -> None:
    """Take the tracebacks off an error that was dealt with, and off those behind it.

    What is kept by an object that one of its frames knows would hold all of them, and whatever they know, until the
    garbage collector comes by.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def forget_cancellation(task: asyncio.Task[None]) -> None:
    """Take its cancellation off a task that is done.

    It keeps the frames that it went through, and those with a task group or a timeout in them know the task, or the
    cancellation itself.
    """
    if task.cancelled():
        try:
            task.exception()  # who asks gets it, and the task has it no more
        except asyncio.CancelledError as cancellation:
            forget_frames(cancellation)
