"""What happens to frames that come faster than they are processed, or than they are learned from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from partime_async.errors import ConfigurationError


class Overflow(StrEnum):
    """What happens to a frame that is offered while the feed is full."""

    BLOCK = "block"
    """`put` waits for room: lossless; a slow pipeline or reader holds the source back."""
    DROP_OLDEST = "drop_oldest"
    """The frame that has waited longest makes room; unread results make room for newer ones likewise."""
    DROP_NEWEST = "drop_newest"
    """The frame offered is dropped."""
    LATEST = "latest"
    """Only the newest frame waits, until the pipeline can start it: the choice for live sources."""
    FAIL = "fail"
    """`put` raises `FeedFull`."""


class Learn(StrEnum):
    """Which frames with a target are learned from, by a pipeline that learns."""

    ALWAYS = "always"
    """All of them; the stages take fewer frames if that is too much."""
    SPARE = "spare"
    """Those for which neither they nor the frames behind them are expected to wait for long, and in any case one in
    ten: learning then costs hardly any frames or freshness. What was withheld is counted; how many
    that are depends on the load, what the others teach does not."""


LIVE = frozenset({Overflow.LATEST, Overflow.DROP_OLDEST})
"""The policies that put freshness before completeness."""


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """How a feed treats its frames; see `Pipeline.feed`."""

    overflow: Overflow
    max_age_s: float | None
    capacity: int
    unread_limit: int
    learn: Learn = Learn.ALWAYS

    @classmethod
    def checked(
        cls, overflow: str, max_age_s: float | None, capacity: int, unread_limit: int, learn: str = "always"
    ) -> FeedOptions:
        """Return the options, or say which of them cannot be.

        Raises:
            ConfigurationError: An unknown policy, a capacity below 1, or an age that is not above 0.
        """
        try:
            policy = Overflow(overflow)
        except ValueError:
            known = ", ".join(repr(known.value) for known in Overflow)
            raise ConfigurationError(f"unknown overflow policy {overflow!r}. Use one of {known}.") from None
        if max_age_s is not None and not (isinstance(max_age_s, (int, float)) and max_age_s > 0):
            raise ConfigurationError(f"max_age_s is {max_age_s!r}; no frame is that young. Pass more than 0 seconds.")
        if not isinstance(capacity, int) or capacity < 1:
            raise ConfigurationError(f"capacity is {capacity!r}; a feed holds at least 1 frame. Pass 1 or more.")
        if learn not in tuple(Learn):
            raise ConfigurationError(f"learn is {learn!r}. Use 'always' or 'spare'.")
        return cls(policy, max_age_s, 1 if policy is Overflow.LATEST else capacity, unread_limit, Learn(learn))

    @property
    def is_live(self) -> bool:
        """Whether freshness comes before completeness."""
        return self.overflow in LIVE or self.max_age_s is not None
