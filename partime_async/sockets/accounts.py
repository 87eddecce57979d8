"""What one client has sent, and what became of it: every message and every gap is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from partime_async.accounting import FeedStatistics


@dataclass(frozen=True, slots=True)
class SequenceCounts:
    """What the numbers of a client's frames tell: ``numbered == distinct + missing``.

    Attributes:
        numbered: How many frames the client has sent, as far as its numbers tell.
        distinct: How many of them have come.
        missing: How many of them have not, so far.
        reordered: How many came after one with a higher number.
        repeated: How many came again.
        restarts: How often the numbers began anew.
    """

    numbered: int = 0
    distinct: int = 0
    missing: int = 0
    reordered: int = 0
    repeated: int = 0
    restarts: int = 0


class Sequence:
    """Follows the numbers of one client's frames; constant memory.

    Frames up to `WINDOW` behind the newest are late, or come again; one further behind is a sender that has started
    again. The window is a set of bits, as in the anti-replay window of RFC 4303.
    """

    WINDOW = 1024

    __slots__ = ("_before", "_first", "_next", "_seen", "distinct", "reordered", "repeated", "restarts")

    def __init__(self) -> None:
        self._first = self._next = 0
        self._seen = 0  # bit i: number _next - 1 - i has come
        self._before = 0  # numbered before the last restart
        self.distinct = self.reordered = self.repeated = self.restarts = 0

    def take(self, number: int) -> bool:
        """Count a frame that has come; say whether it is new."""
        if not self.distinct:
            self._first = self._next = number
        behind = self._next - 1 - number
        if behind < 0:
            self._advance(number + 1)
        elif number < self._first or behind >= self.WINDOW:
            self._restart(number)
        elif self._seen >> behind & 1:
            self.repeated += 1
            return False
        else:
            self.reordered += 1
            self._seen |= 1 << behind
        self.distinct += 1
        return True

    def is_past(self, number: int) -> bool:
        """Whether this frame, or a newer one, has come."""
        return bool(self.distinct) and number < self._next

    def finish(self, sent: int) -> None:
        """Take the client's word that it has sent `sent` frames, counted from 0: a lost tail is missing."""
        if self.distinct and self._next < sent <= self._next + (1 << 32):
            self._next = sent

    def counts(self) -> SequenceCounts:
        """Return the counts so far."""
        numbered = self._before + self._next - self._first
        missing = numbered - self.distinct
        return SequenceCounts(numbered, self.distinct, missing, self.reordered, self.repeated, self.restarts)

    def _advance(self, following: int) -> None:
        step = following - self._next
        self._seen = (self._seen << step | 1) & ((1 << self.WINDOW) - 1) if step < self.WINDOW else 1
        self._next = following

    def _restart(self, number: int) -> None:
        self._before += self._next - self._first
        self.restarts += 1
        self._first, self._next, self._seen = number, number + 1, 1


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """What one client has sent and got.

    ``messages == frames + targets + signals + malformed + dropped``, and ``sequence.distinct == frames``.

    Attributes:
        client: Its number at this server, from 0.
        peer: Where it is.
        received_bytes: As they came.
        messages: All that came, good and bad.
        frames: Handed on.
        targets: That came with their frame or behind it.
        signals: Hellos, goodbyes and notes.
        malformed: Messages that could not be read, by cause.
        dropped: Messages that could, and were not handed on, by cause: ``rate``, ``full``, ``repeated``, ``target``,
            ``kind``, ``departed``.
        sequence: What the numbers of the frames tell.
        replies: Messages sent to it.
        unsent: Messages that were not, because it did not read.
        feed: What became of its frames in the pipeline; None where there is no feed.
        closed: Why it has left; None: it is here.
    """

    client: int
    peer: str
    received_bytes: int
    messages: int
    frames: int
    targets: int
    signals: int
    malformed: Mapping[str, int]
    dropped: Mapping[str, int]
    sequence: SequenceCounts
    replies: int
    unsent: int
    feed: FeedStatistics | None
    closed: str | None

    def with_overflow(self, lost: int) -> ClientStatistics:
        """Return the statistics with datagrams that had come, and were thrown away before they were looked at."""
        dropped = Counter(self.dropped)
        dropped["full"] += lost
        return replace(self, messages=self.messages + lost, dropped=MappingProxyType(dict(dropped)))


@dataclass(slots=True)
class ClientAccounts:
    """The running counts behind `ClientStatistics`."""

    received_bytes: int = 0
    messages: int = 0
    frames: int = 0
    targets: int = 0
    signals: int = 0
    malformed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    sequence: Sequence = field(default_factory=Sequence)
    replies: int = 0
    unsent: int = 0

    def statistics(self, client: int, peer: str, feed: FeedStatistics | None, closed: str | None) -> ClientStatistics:
        """Return the counts now."""
        return ClientStatistics(
            client,
            peer,
            self.received_bytes,
            self.messages,
            self.frames,
            self.targets,
            self.signals,
            MappingProxyType(dict(self.malformed)),
            MappingProxyType(dict(self.dropped)),
            self.sequence.counts(),
            self.replies,
            self.unsent,
            feed,
            closed,
        )
