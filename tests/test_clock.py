"""Clocks only go forward, on the scale they promise."""

from __future__ import annotations

import asyncio
import time

import pytest

from partime_async.clock import Clock, LoopClock, MonotonicClock


def test_monotonic_clock_is_the_scale_of_time_monotonic() -> None:
    """Its readings can be compared with those that a source takes itself."""
    clock: Clock = MonotonicClock()
    before = time.monotonic()
    now = clock.now()
    assert before <= now <= time.monotonic()


def test_monotonic_clock_never_goes_back() -> None:
    """Later readings are never smaller."""
    readings = [MonotonicClock.now() for _ in range(1000)]
    assert readings == sorted(readings)


async def test_loop_clock_reads_the_running_loop() -> None:
    """Its readings are those of the loop on which it was made."""
    clock: Clock = LoopClock()
    loop = asyncio.get_running_loop()
    before = loop.time()
    now = clock.now()
    assert before <= now <= loop.time()


@pytest.mark.looptime
async def test_loop_clock_on_a_virtual_loop_passes_virtual_time() -> None:
    """A minute of virtual time is a minute on the clock, and no time at all outside."""
    clock = LoopClock()
    outside = time.monotonic()
    before = clock.now()
    await asyncio.sleep(60)
    assert clock.now() - before == pytest.approx(60)
    assert time.monotonic() - outside < 30


def test_loop_clock_without_a_loop_raises() -> None:
    """A loop's clock can only be had on a loop."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        LoopClock()
