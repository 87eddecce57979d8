"""How late the event loop runs, and who is said to be at fault; time is virtual, and stands still where a test says."""

from __future__ import annotations

import asyncio

import pytest

from partime_async.lag import LagMonitor, LagStatistics

pytestmark = pytest.mark.looptime
INTERVAL_S = 0.02


class Scene:
    """A loop that may be held up, and two stages that may be busy meanwhile."""

    def __init__(self) -> None:
        self.held_up_s = 0.0
        self.busy_s = [0.0, 0.0]
        self.monitor = LagMonitor(lambda: list(self.busy_s), now=self.now, interval_s=INTERVAL_S)

    def now(self) -> float:
        """Return the time, delays included."""
        return asyncio.get_running_loop().time() + self.held_up_s

    async def play(self, *delays: tuple[float, float, float]) -> LagStatistics:
        """Hold the loop up once in each interval, for so many seconds, with the stages busy for so many."""
        task = asyncio.ensure_future(self.monitor.run())
        await asyncio.sleep(INTERVAL_S / 2)
        for held_up_s, first_s, second_s in delays:
            self.held_up_s += held_up_s
            self.busy_s = [self.busy_s[0] + first_s, self.busy_s[1] + second_s]
            await asyncio.sleep(INTERVAL_S)
        task.cancel()
        return self.monitor.statistics()


async def test_lag_of_a_free_loop_is_nothing() -> None:
    """A loop that is never held up has no lag, and nobody is at fault."""
    statistics = await Scene().play(*[(0.0, 0.02, 0.02)] * 10)
    assert statistics.lag_s.count == 10
    assert statistics.lag_s.max < 1e-6
    assert statistics.worst_stage is None


async def test_lag_is_how_much_too_late_the_timer_was() -> None:
    """A delay of 30 ms shows as a lag of 30 ms, once."""
    statistics = await Scene().play((0.0, 0, 0), (0.03, 0, 0), (0.0, 0, 0))
    assert statistics.lag_s.max == pytest.approx(0.03, rel=0.03)
    assert statistics.lag_s.p50 < 1e-6


async def test_lag_names_the_stage_that_was_busiest_during_the_worst_delay() -> None:
    """The stage that worked while the loop stood still is named; later, smaller delays change nothing."""
    statistics = await Scene().play((0.01, 0.01, 0.0), (0.05, 0.01, 0.05), (0.02, 0.02, 0.0))
    assert statistics.worst_stage == 1


async def test_lag_without_a_busy_stage_blames_none() -> None:
    """If the stages were idle during most of the worst delay, it came from elsewhere in the program."""
    statistics = await Scene().play((0.01, 0.01, 0.0), (0.08, 0.02, 0.01))
    assert statistics.worst_stage is None


async def test_lag_within_a_timers_resolution_blames_none() -> None:
    """A millisecond is no delay to blame anybody for."""
    statistics = await Scene().play((0.001, 0.02, 0.0))
    assert statistics.worst_stage is None


async def test_lag_before_the_first_look_is_empty() -> None:
    """Before it ran, the monitor has seen nothing."""
    assert Scene().monitor.statistics().lag_s.count == 0
