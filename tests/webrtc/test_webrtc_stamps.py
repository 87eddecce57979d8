"""A sender's time stamps on this machine's clock: jitter does not show, age does, drift is followed."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partime_async.webrtc.stamps import ArrivalClock

PERIOD_S = 1 / 30


def test_clock_takes_the_jitter_out() -> None:
    """However unevenly pictures arrive, their times of capture are as evenly spaced as their stamps."""
    clock, numbers = ArrivalClock(), random.Random(7)
    clock.place(0.0, 100.0)
    placed = [
        clock.place(index * PERIOD_S, 100.0 + index * PERIOD_S + numbers.random() * 0.03) for index in range(1, 60)
    ]
    gaps = [two - one for one, two in itertools.pairwise(placed)]
    assert gaps == pytest.approx([PERIOD_S] * len(gaps))


def test_clock_of_a_late_picture_tells_its_age() -> None:
    """A picture that was held up for two seconds is two seconds old when it comes."""
    clock = ArrivalClock()
    for index in range(30):
        clock.place(index * PERIOD_S, 100.0 + index * PERIOD_S)
    assert clock.place(1.0, 103.0) == pytest.approx(101.0)


def test_clock_of_a_sender_that_runs_fast_or_slow_is_followed() -> None:
    """After a minute of 100 us a second, stamps lie within 2 ms of the arrivals."""
    for drift in (1 - 1e-4, 1 + 1e-4):
        clock = ArrivalClock()
        for index in range(1800):
            arrived = 100.0 + index * PERIOD_S
            placed = clock.place(index * PERIOD_S * drift, arrived)
        assert arrived - placed == pytest.approx(0.0, abs=2e-3)


def test_clock_of_a_sender_that_starts_over_begins_anew() -> None:
    """When stamps go back, as after a reconnection, the next picture is taken when it arrives."""
    clock = ArrivalClock()
    clock.place(500.0, 100.0)
    assert clock.place(0.0, 110.0) == pytest.approx(110.0)
    assert clock.place(0.5, 110.6) == pytest.approx(110.5)


def test_clock_of_stamps_that_leap_ahead_begins_anew() -> None:
    """Stamps that jump forward without time passing do not make pictures taken in the future."""
    clock = ArrivalClock()
    clock.place(0.0, 100.0)
    assert clock.place(1000.0, 100.1) == pytest.approx(100.1)


def test_clock_without_stamps_takes_the_arrival() -> None:
    """A track without stamps is as old as its arrival."""
    clock = ArrivalClock()
    assert [clock.place(None, at) for at in (1.0, 2.5)] == [1.0, 2.5]


def test_clock_of_a_synchronized_sender_takes_its_word() -> None:
    """Where the sender's own clock tells the age, the way counts too."""
    clock = ArrivalClock()
    assert clock.place(0.0, 100.0, 0.08) == pytest.approx(99.92)


@given(st.lists(st.tuples(st.none() | st.floats(-10, 1e6), st.floats(0, 2)), min_size=2, max_size=40))
def test_clock_is_strictly_increasing_and_never_ahead(pictures: list[tuple[float | None, float]]) -> None:
    """Whatever stamps come, each time of capture is later than the one before, and none lies in the future."""
    clock, now, last = ArrivalClock(), 50.0, float("-inf")
    for position, pause in pictures:
        now += pause + 1e-3
        placed = clock.place(position, now)
        assert last < placed <= now
        last = placed
