"""How late the event loop runs, and which stage is at fault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from partime_async.metrics import Distribution, Quantiles

_TOLERANCE_S = 0.002  # uvloop's timers have a resolution of a millisecond


@dataclass(frozen=True, slots=True)
class LagStatistics:
    """The lateness of a timer that is due every `interval_s` seconds.

    Attributes:
        lag_s: Distribution of the seconds by which it came too late.
        worst_stage: The stage that was busiest during the worst delay, if one was: its Python code holds the
            interpreter lock, or its threads the cores. None: the delay came from elsewhere in the program.
    """

    lag_s: Quantiles
    worst_stage: int | None


class LagMonitor:
    """Measures the loop's lag for as long as `run` runs.

    Args:
        busy_s: Returns the seconds each stage has been busy so far.
        now: Clock time in seconds.
        interval_s: Seconds between two looks; each costs some 20 us.
    """

    def __init__(
        self, busy_s: Callable[[], Sequence[float]], *, now: Callable[[], float], interval_s: float = 0.02
    ) -> None:
        self._busy_s = busy_s
        self._now = now
        self._interval_s = interval_s
        self._lag = Distribution()
        self._worst_s = _TOLERANCE_S
        self._worst_stage: int | None = None

    async def run(self) -> None:
        """Look at the clock every `interval_s` seconds until cancelled."""
        busy = self._busy_s()
        due = self._now() + self._interval_s
        while True:
            await asyncio.sleep(self._interval_s)
            now = self._now()
            lag = max(0.0, now - due)
            self._lag.record(lag)
            latest = self._busy_s()
            if lag > self._worst_s:
                self._worst_s = lag
                self._worst_stage = _busiest([after - before for before, after in zip(busy, latest, strict=True)], lag)
            busy = latest
            due = self._now() + self._interval_s

    def statistics(self) -> LagStatistics:
        """Return what was seen so far."""
        return LagStatistics(self._lag.snapshot(), self._worst_stage)


def _busiest(busy_s: Sequence[float], lag_s: float) -> int | None:
    worst = max(range(len(busy_s)), key=busy_s.__getitem__, default=None)
    return worst if worst is not None and busy_s[worst] >= 0.5 * lag_s else None
