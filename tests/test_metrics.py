"""Distributions are right within their stated bound, whatever was recorded."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partime_async.metrics import Distribution, MovingAverage, Quantiles

BOUND = 2 ** (1 / 32) - 1 + 1e-9
"""Half a bucket: 2.2%."""

_UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no error

DURATIONS = st.floats(1e-7, 1e5, allow_nan=False)


def filled(durations: list[float]) -> Distribution:
    """Return the distribution of these."""
    distribution = Distribution()
    for seconds in durations:
        distribution.record(seconds)
    return distribution


@_UNHURRIED
@given(st.lists(DURATIONS, min_size=1, max_size=300), st.floats(0.0, 1.0))
def test_quantile_of_any_durations_is_within_the_bound(durations: list[float], fraction: float) -> None:
    """A quantile is at most 2.2% from the duration of that rank."""
    exact = sorted(durations)[max(1, math.ceil(fraction * len(durations))) - 1]
    assert filled(durations).quantile(fraction) == pytest.approx(exact, rel=BOUND)


@_UNHURRIED
@given(st.lists(DURATIONS, min_size=1, max_size=300))
def test_snapshot_of_any_durations_is_ordered_and_exact_where_it_can_be(durations: list[float]) -> None:
    """Count, mean and maximum are exact, and the quantiles are in order below the maximum."""
    snapshot = filled(durations).snapshot()
    assert snapshot.count == len(durations)
    assert snapshot.mean == pytest.approx(sum(durations) / len(durations))
    assert snapshot.max == max(durations)
    assert snapshot.p50 <= snapshot.p90 <= snapshot.p99 <= snapshot.max


@_UNHURRIED
@given(st.lists(DURATIONS, max_size=100), st.lists(DURATIONS, max_size=100), st.floats(0.0, 1.0))
def test_quantile_does_not_depend_on_the_order_of_records(
    early: list[float], late: list[float], fraction: float
) -> None:
    """Only what was recorded counts, not when."""
    assert filled(early + late).quantile(fraction) == filled(late + early).quantile(fraction)


@_UNHURRIED
@given(st.lists(DURATIONS, max_size=100), st.lists(DURATIONS, max_size=100))
def test_add_of_another_distribution_is_as_if_it_had_been_recorded_here(ours: list[float], theirs: list[float]) -> None:
    """Adding distributions gives the one of all their durations."""
    total, other = filled(ours), filled(theirs)
    total.add(other)
    found, expected = total.snapshot(), filled(ours + theirs).snapshot()
    assert found.mean == pytest.approx(expected.mean)
    assert dataclasses.replace(found, mean=0.0) == dataclasses.replace(expected, mean=0.0)
    assert other.snapshot() == filled(theirs).snapshot()


def test_snapshot_of_nothing_is_zero() -> None:
    """Nothing recorded gives zeros, not an error."""
    assert Distribution().snapshot() == Quantiles(0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("seconds", [0.0, 1e-12, 1e-7, 1e6, 1e9])
def test_record_beyond_the_bounds_is_counted(seconds: float) -> None:
    """What is too short or too long for the buckets is in the first or the last one, and never above the maximum."""
    snapshot = filled([seconds]).snapshot()
    assert snapshot.count == 1
    assert snapshot.max == seconds
    assert snapshot.p99 <= seconds


def test_record_at_the_edges_of_buckets_is_within_the_bound() -> None:
    """Rounding at the edges of the buckets costs nothing."""
    for edge in range(640):
        seconds = 1e-7 * 2 ** (edge / 16)
        assert filled([seconds, 1e9]).quantile(0.5) == pytest.approx(seconds, rel=BOUND)


def test_distribution_size_does_not_grow() -> None:
    """A hundred thousand records take the memory of one."""
    distribution = filled([0.001])
    before = sys.getsizeof(distribution._counts)
    for number in range(100_000):
        distribution.record(number * 1e-6)
    assert sys.getsizeof(distribution._counts) == before


def test_moving_average_starts_at_the_first_duration() -> None:
    """The first duration is the average; zero would take many to be left behind."""
    average = MovingAverage()
    average.update(8.0)
    assert average.value == 8.0
    average.update(16.0)
    assert average.value == 9.0


@_UNHURRIED
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_moving_average_stays_among_the_durations(durations: list[float], weight: float) -> None:
    """The average is never outside of what was averaged, and one value repeated becomes it."""
    average = MovingAverage(weight)
    for seconds in durations:
        average.update(seconds)
    assert min(durations) * (1 - 1e-9) <= average.value <= max(durations) * (1 + 1e-9)
    for _ in range(4000):
        average.update(1.0)
    assert average.value == pytest.approx(1.0)
