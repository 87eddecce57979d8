"""Exact accounts: every frame offered is, at every moment, in one place and counted there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from partime_async.metrics import Distribution, Quantiles


class DropCause(StrEnum):
    """Why a frame has no result."""

    OVERFLOW = "overflow"
    """Newer frames came while it waited, and the feed's policy keeps those."""
    REFUSED = "refused"
    """The feed was full, and the caller was told so (`FeedFull`), or its policy drops the newest."""
    INVALID = "invalid"
    """It was not what the pipeline takes, and the caller was told so (`FrameError`)."""
    STALE = "stale"
    """It was older than the feed's `max_age_s` when its turn came."""
    UNREAD = "unread"
    """It was processed, but nobody read its result in time."""
    CANCELLED = "cancelled"
    """The caller that waited with it, or for it, was cancelled."""
    CLOSED = "closed"
    """The feed was closed while the caller still waited for room."""
    ABORTED = "aborted"
    """The feed or the pipeline was aborted before it was done."""


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """Where the frames are: ``offered == waiting + in_flight + unread + delivered + failed + sum(dropped)``.

    Attributes:
        offered: All frames ever offered by `put`, `put_nowait`, `process` or `stream`.
        waiting: Not admitted yet.
        in_flight: Admitted, and not through the last stage.
        unread: Done, their results not yet read.
        delivered: Their results were read.
        failed: A stage raised on them.
        dropped: Frames without a result, by cause.
    """

    offered: int = 0
    waiting: int = 0
    in_flight: int = 0
    unread: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def dropped_total(self) -> int:
        """How many frames were dropped, whatever the cause."""
        return sum(self.dropped.values())


class Accounts:
    """The counts of one feed, or the sum of many; each frame moves through them by the methods here."""

    __slots__ = ("age", "delivered", "dropped", "failed", "in_flight", "latency", "offered", "unread", "waiting")

    def __init__(self) -> None:
        self.offered = 0
        self.waiting = 0
        self.in_flight = 0
        self.unread = 0
        self.delivered = 0
        self.failed = 0
        self.dropped: Counter[DropCause] = Counter()
        self.latency = Distribution()
        self.age = Distribution()

    def offer(self) -> int:
        """Count a frame as offered and waiting; return its number."""
        number = self.offered
        self.offered += 1
        self.waiting += 1
        return number

    def drop_waiting(self, cause: DropCause) -> None:
        """Move a frame from waiting to dropped."""
        self.waiting -= 1
        self.dropped[cause] += 1

    def admit(self) -> None:
        """Move a frame from waiting to in flight."""
        self.waiting -= 1
        self.in_flight += 1

    def drop_in_flight(self, cause: DropCause) -> None:
        """Move a frame from in flight to dropped."""
        self.in_flight -= 1
        self.dropped[cause] += 1

    def finish(self, *, is_failed: bool, latency_s: float) -> None:
        """Move a frame from in flight to failed, or to unread."""
        self.in_flight -= 1
        if is_failed:
            self.failed += 1
        else:
            self.unread += 1
        self.latency.record(latency_s)

    def drop_unread(self, cause: DropCause) -> None:
        """Move a frame from unread to dropped."""
        self.unread -= 1
        self.dropped[cause] += 1

    def deliver(self, age_s: float) -> None:
        """Move a frame from unread to delivered; `age_s` is the time since its capture."""
        self.unread -= 1
        self.delivered += 1
        self.age.record(age_s)

    def counts(self) -> FrameCounts:
        """Return the counts now."""
        dropped = MappingProxyType({cause.value: count for cause, count in self.dropped.items()})
        return FrameCounts(
            self.offered, self.waiting, self.in_flight, self.unread, self.delivered, self.failed, dropped
        )

    def add(self, other: Accounts) -> None:
        """Take the counts of another account into this one."""
        self.offered += other.offered
        self.waiting += other.waiting
        self.in_flight += other.in_flight
        self.unread += other.unread
        self.delivered += other.delivered
        self.failed += other.failed
        self.dropped.update(other.dropped)
        self.latency.add(other.latency)
        self.age.add(other.age)


@dataclass(frozen=True, slots=True)
class FeedStatistics:
    """What one feed has seen.

    Attributes:
        frames: Where its frames are.
        latency_s: Seconds from capture to the end of the last stage.
        age_s: Seconds from capture to the moment the result was read.
    """

    frames: FrameCounts
    latency_s: Quantiles
    age_s: Quantiles
