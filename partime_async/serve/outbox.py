"""What waits to be sent to one client: a bounded number of messages, of which the oldest results go first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that waits.

    Attributes:
        content: Bytes for a binary message, text for a text one, None for a ping.
        must_arrive: Whether it is kept when there is no room.
    """

    content: bytes | str | None
    must_arrive: bool = False


class Outbox:
    """A queue that never holds its user up: what finds no room takes the place of the oldest result.

    One task takes.

    Args:
        capacity: Messages that wait at most.
        now: Clock time in seconds.

    Attributes:
        dropped: Results that gave their place to newer messages.
    """

    def __init__(self, capacity: int, *, now: Callable[[], float]) -> None:
        self.dropped = 0
        self._capacity = capacity
        self._now = now
        self._waiting: deque[Outgoing] = deque()
        self._moved_at = now()
        self._is_closed = False
        self._is_sending = False
        self._taker: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_crowded(self) -> bool:
        """Whether more than half of the places are taken: no time for what can be left out."""
        return 2 * len(self._waiting) > self._capacity

    @property
    def is_idle(self) -> bool:
        """Whether all messages were taken, and the last one was sent: its taker has come for the next."""
        return not self._waiting and not self._is_sending

    @property
    def stuck_s(self) -> float:
        """Seconds since anything moved, with messages that wait or are being sent; 0.0 if there are none."""
        return 0.0 if self.is_idle else self._now() - self._moved_at

    def put(self, message: Outgoing) -> bool:
        """Put a message; say whether it has a place. None has after `close`, or if all others must arrive, too."""
        if self._is_closed:
            return False
        if self.is_idle:
            self._moved_at = self._now()
        if len(self._waiting) >= self._capacity and not self._drop_oldest():
            return False
        self._waiting.append(message)
        self._wake()
        return True

    async def take(self) -> Outgoing | None:
        """Wait for the oldest message, and take it; None: the box is closed and empty. The one before was sent.

        Cancellation: safe; nothing is taken.
        """
        self._is_sending = False
        while not self._waiting:
            if self._is_closed:
                return None
            self._taker = asyncio.get_running_loop().create_future()
            try:
                await self._taker
            finally:
                self._taker = None
        self._moved_at = self._now()
        self._is_sending = True
        return self._waiting.popleft()

    def close(self) -> None:
        """Take nothing more in; what waits can still be taken. Idempotent."""
        self._is_closed = True
        self._wake()

    def _drop_oldest(self) -> bool:
        for place, message in enumerate(self._waiting):
            if not message.must_arrive:
                del self._waiting[place]
                self.dropped += 1
                return True
        return False

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)
