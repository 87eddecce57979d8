"""Senders' clocks: when a frame was captured, by the receiver's clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partime_async.sockets import Clock, SenderClock, Timing


def clock(timing: Timing = Timing.ESTIMATE, wall_offset_s: float = 0.0) -> SenderClock:
    """Return a fresh clock."""
    return SenderClock(timing, wall_offset_s=wall_offset_s)


def test_estimate_with_a_foreign_clock_finds_the_delay_beyond_the_fastest() -> None:
    """Offsets of days do not matter: of a message that took 30 ms more than the fastest, the age is 30 ms."""
    sender, offset = clock(), 5e5
    delays = [0.010, 0.002, 0.032, 0.002]
    ages = []
    for number, delay in enumerate(delays):
        sent = 100.0 + number
        arrived = sent + offset + delay
        ages.append(arrived - sender.captured_at(sent, Clock.MONOTONIC, arrived))
    assert ages == pytest.approx([0.0, 0.0, 0.030, 0.0], abs=1e-6)


def test_estimate_with_a_drifting_clock_follows_it() -> None:
    """A clock that loses 100 us a second is 0.36 s wrong after an hour; the estimate never, beyond a window's worth."""
    sender, rng, worst = clock(), random.Random(1), 0.0
    for number in range(36_000):
        true = number * 0.1
        delay = 0.002 + 0.003 * rng.random()
        arrived = true + delay
        captured = sender.captured_at(true * (1 - 1e-4), Clock.MONOTONIC, arrived)
        worst = max(worst, abs((arrived - captured) - delay))
    assert worst < 0.003 + 2 * 30.0 * 1e-4


def test_estimate_after_the_device_has_started_again_begins_anew() -> None:
    """A clock that jumps back is another one: its first message counts as fresh."""
    sender = clock()
    sender.captured_at(1000.0, Clock.MONOTONIC, 2000.0)
    assert sender.captured_at(3.0, Clock.MONOTONIC, 2001.0) == pytest.approx(2001.0)
    assert sender.captured_at(4.0, Clock.MONOTONIC, 2002.5) == pytest.approx(2002.0)


def test_synchronised_with_a_wall_clock_counts_the_whole_way() -> None:
    """Where NTP keeps both clocks, a constant delay is part of the age; a clock that is ahead makes no negative age."""
    sender = clock(Timing.SYNCHRONISED, wall_offset_s=-1e9)
    assert sender.captured_at(1e9 + 5.0, Clock.WALL, 5.2) == pytest.approx(5.0)
    assert sender.captured_at(1e9 + 9.0, Clock.WALL, 6.0) == 6.0
    assert sender.captured_at(77.0, Clock.MONOTONIC, 7.0) == pytest.approx(7.0)


def test_arrival_and_missing_times_count_from_the_arrival() -> None:
    """What is not known, or not wanted, is the moment of arrival."""
    assert clock(Timing.ARRIVAL).captured_at(1.0, Clock.MONOTONIC, 9.0) == 9.0
    assert clock().captured_at(None, Clock.NONE, 9.0) == 9.0


@given(st.lists(st.tuples(st.floats(-1e12, 1e12), st.floats(0.0, 10.0)), max_size=30))
def test_captured_at_is_never_after_the_arrival(messages: list[tuple[float, float]]) -> None:
    """Whatever a sender claims, no frame comes from the future."""
    sender, now = clock(), 0.0
    for sent, step in messages:
        now += step
        assert sender.captured_at(sent, Clock.MONOTONIC, now) <= now
