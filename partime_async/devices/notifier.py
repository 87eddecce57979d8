"""The way back from device threads to the event loop: one wake-up for everything that piled up."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Notifier(Generic[T]):
    """Calls back on the event loop, from any thread, in the order of `post`.

    A wake-up of the loop costs some 50 us, a callback in a batch some 2 us: so a wake-up is asked for only when none is
    on its way. Nothing polls.

    Args:
        loop: The loop on which the announcements run.
    """

    __slots__ = ("_loop", "_pending", "_woken")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: deque[tuple[Callable[[T], None], T]] = deque()
        self._woken = False

    def post(self, announcements: Iterable[tuple[Callable[[T], None], T]]) -> None:
        """Call each callback with its subject on the loop, soon; from any thread. Ignored once the loop is closed."""
        self._pending.extend(announcements)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                # The loop is closed: nobody is left to be told.
                self._pending.clear()
                self._woken = False

    def _drain(self) -> None:
        # Cleared before the first pop: a post that comes later asks for a wake-up of its own.
        self._woken = False
        pending = self._pending
        while pending:
            callback, subject = pending.popleft()
            try:
                callback(subject)
            except Exception as error:
                self._loop.call_exception_handler({"message": "an announcement failed", "exception": error})
