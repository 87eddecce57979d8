"""How much any client may take, and how often an address may come."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from partime_async.errors import ConfigurationError

_ADDRESSES = 4096
"""Addresses remembered; the one not heard of for longest is forgotten first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """What clients may take. A client that breaks a limit is refused or disconnected; others do not notice.

    Args:
        clients: Clients at the same time.
        joins_per_minute: How often one address may come, on average; twice as often for a moment... see `Rate`.
        offer_bytes: Size of a WebRTC offer.
        message_bytes: Size of a WebSocket message.
        messages_per_s: WebSocket messages from one client; more are not read until later, which holds it back.
        bad_messages: Messages in a row that cannot be read before a WebSocket client is disconnected.
        duration_s: Seconds that a visit lasts.
        connect_s: Seconds from the answer to a WebRTC offer until the client must be connected.
        silence_s: Seconds without any sign of life before a client's place is free again.
        idle_s: Seconds that a WebSocket client may live without sending a message.
        results_waiting: Messages that wait for a slow reader of a WebSocket; more, and the oldest are dropped.
        slow_s: Seconds that a reader may be that slow before it is disconnected.
        leave_s: Seconds that a service and a connection get to end when a client leaves or the server stops.

    Raises:
        ConfigurationError: One of them is not above 0; the caller's fault.
    """

    clients: int = 16
    joins_per_minute: float = 60.0
    offer_bytes: int = 64 * 1024
    message_bytes: int = 8 * 1024 * 1024
    messages_per_s: float = 2000.0
    bad_messages: int = 10
    duration_s: float = 12 * 3600.0
    connect_s: float = 15.0
    silence_s: float = 3.0
    idle_s: float = 300.0
    results_waiting: int = 32
    slow_s: float = 10.0
    leave_s: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not value > 0 or math.isnan(value):
                raise ConfigurationError(f"the limit {name} is {value!r}, which lets nobody in. Pass more than 0.")


class Rate:
    """How often something may happen for each of many keys: a token bucket each, in bounded memory.

    Args:
        per_s: How often on average.
        burst: How often at once, 1 or more.
        now: Clock time in seconds.
    """

    def __init__(self, per_s: float, *, burst: float, now: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Count one for a key.

        Returns:
            0.0: it may happen. Else the seconds after which it may; nothing was counted.
        """
        now = self._now()
        left, seen_at = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - seen_at) * self._per_s)
        is_allowed = left >= 1.0
        self._buckets[key] = (left - 1.0 if is_allowed else left, now)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if is_allowed else (1.0 - left) / self._per_s
