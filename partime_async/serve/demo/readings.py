"""Figures of the last few seconds: what the page's charts show ten times a second."""

from __future__ import annotations

import math
import time
from collections import deque

from partime_async.feed import Feed
from partime_async.pipeline import Pipeline

WINDOW_S = 2.0
_MOST = 400


class Rate:
    """How often something happened in the last seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_MOST)
        self._since = time.monotonic()

    def count(self) -> None:
        """Count it once, now."""
        self._times.append(time.monotonic())

    @property
    def per_s(self) -> float:
        """How often in a second, over the last two."""
        now = time.monotonic()
        while self._times and now - self._times[0] > WINDOW_S:
            self._times.popleft()
        return len(self._times) / min(WINDOW_S, max(0.5, now - self._since))


class FrameMeter:
    """How many frames of a show came and went in the last seconds, and how old they were when they went."""

    def __init__(self) -> None:
        self._came = Rate()
        self._went = Rate()
        self._ages: deque[float] = deque(maxlen=60)
        self._feeds: list[Feed] = []
        self._dropped = 0

    def came(self) -> None:
        """Count a frame that the source gave."""
        self._came.count()

    def went(self, age_s: float) -> None:
        """Count a picture that was shown."""
        self._went.count()
        self._ages.append(age_s)

    def follow(self, feed: Feed) -> None:
        """Count the frames that a feed drops, too."""
        self._feeds.append(feed)

    def unfollow(self, feed: Feed) -> None:
        """Keep what a feed dropped, and let go of it."""
        self._feeds.remove(feed)
        self._dropped += feed.statistics().frames.dropped_total

    def readings(self) -> dict[str, object]:
        """Return rates in frames/s, ages in milliseconds, and all drops so far."""
        ages = sorted(self._ages)
        dropped = self._dropped + sum(feed.statistics().frames.dropped_total for feed in self._feeds)
        return {
            "in": round(self._came.per_s, 1),
            "out": round(self._went.per_s, 1),
            "p50": _ms(ages, 0.5),
            "p95": _ms(ages, 0.95),
            "drop": dropped,
        }


class StageMeter:
    """What the stages of a pipeline did lately; to be looked at regularly.

    Args:
        looks: The busy share is that since so many looks ago: a chart of single frames would show but noise.
    """

    def __init__(self, looks: int = 10) -> None:
        self._looks: deque[tuple[float, list[float]]] = deque(maxlen=looks)
        self._pipeline: Pipeline | None = None

    def readings(self, pipeline: Pipeline) -> dict[str, object]:
        """Return, for each stage, busy share in percent, norm of the latest gradient, and weight version."""
        if pipeline is not self._pipeline:
            self._pipeline = pipeline
            self._looks.clear()
        now = time.monotonic()
        stages = pipeline.statistics().stages
        busy = [stage.busy_s for stage in stages]
        shares = [stage.busy_share for stage in stages]
        if self._looks and (elapsed_s := now - self._looks[0][0]) > 0.0:
            before = self._looks[0][1]
            shares = [(after - first) / elapsed_s for first, after in zip(before, busy, strict=True)]
        self._looks.append((now, busy))
        learned = [stage.learning for stage in stages if stage.learning is not None]
        return {
            "busy": [round(100.0 * min(1.0, max(0.0, share)), 1) for share in shares],
            "grad": [shortened(stage.gradient_norm) for stage in learned],
            "ver": [stage.version for stage in learned],
        }


class Smooth:
    """An exponential average that has no value before its first number.

    Args:
        weight: Share of the newest number.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self.value: float | None = None

    def update(self, number: float) -> None:
        """Take one number in; one that is not finite is left out."""
        if math.isfinite(number):
            self.value = number if self.value is None else self.value + self._weight * (number - self.value)

    def reset(self) -> None:
        """Begin anew."""
        self.value = None


def shortened(number: float | None) -> float | None:
    """Return a number in four digits, as telemetry has little room; None for what is not finite."""
    return None if number is None or not math.isfinite(number) else float(f"{number:.4g}")


def _ms(ages: list[float], share: float) -> float | None:
    return round(1e3 * ages[min(len(ages) - 1, int(share * len(ages)))], 1) if ages else None
