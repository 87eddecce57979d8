"""Where frames lie on the line of time, and when they are due."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partime_async.sources.timeline import DISCONTINUITY_S, Schedule, Timeline


@given(st.lists(st.none() | st.floats(-1e6, 1e6)), st.sets(st.integers(0, 50)))
def test_timeline_of_any_time_stamps_never_falls(stamps: list[float | None], rejoins: set[int]) -> None:
    """Whatever the media says, and wherever it starts over, positions do not fall."""
    timeline = Timeline(0.04)
    positions = []
    for index, stamp in enumerate(stamps):
        if index in rejoins:
            timeline.rejoin()
        positions.append(timeline.place(stamp))
    assert all(before <= after for before, after in pairwise(positions))


def test_timeline_of_good_time_stamps_keeps_them() -> None:
    """Rising time stamps are kept, counted from the start."""
    timeline = Timeline(0.04, start_s=1.4)
    assert [timeline.place(stamp) for stamp in (1.4, 1.5, 9.4)] == pytest.approx([0.0, 0.1, 8.0])


def test_timeline_after_a_fall_goes_on_one_period_later() -> None:
    """A time stamp that falls far back starts a new line that joins the old one; a little one is held."""
    timeline = Timeline(0.04)
    assert timeline.place(100.0) == 100.0
    assert timeline.place(100.0 - DISCONTINUITY_S / 2) == 100.0
    assert timeline.place(0.0) == pytest.approx(100.04)
    assert timeline.place(0.5) == pytest.approx(100.54)


def test_timeline_without_time_stamps_counts_periods() -> None:
    """Frames without a time stamp follow one period after another."""
    timeline = Timeline(0.5)
    assert [timeline.place(stamp) for stamp in (None, None, 3.0, None)] == [0.0, 0.5, 3.0, 3.5]


def test_schedule_of_a_late_consumer_keeps_the_due_times() -> None:
    """A frame that was due five seconds ago comes at once, with the time it was due."""
    schedule = Schedule(threading.Event())
    first = schedule.wait(5.0)
    assert first <= time.monotonic()
    assert schedule.wait(0.0) == pytest.approx(first - 5.0)
    assert schedule.wait(5.001) == pytest.approx(first + 0.001)


def test_schedule_when_stopped_does_not_wait() -> None:
    """A stopped schedule returns at once, also for a frame that is due in 1000 seconds."""
    stop = threading.Event()
    schedule = Schedule(stop)
    first = schedule.wait(0.0)
    stop.set()
    assert schedule.wait(1000.0) == pytest.approx(first + 1000.0)
