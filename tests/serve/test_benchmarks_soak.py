"""What the soak makes of a series of samples: whether memory grows, and how sure that is."""

from __future__ import annotations

import gc
import math
import random

import pytest

from benchmarks.growth import MemoryUse, Trend, full_collections, used_bytes
from benchmarks.record import Measurement, Report, Round, Sample
from benchmarks.soak import GROUP, growth, tables


def stairs(steps: int, width: int, height: float = 1.0) -> list[float]:
    """Return a series that goes up by steps, as memory does."""
    return [height * (place // width) for place in range(steps * width)]


def test_trend_of_a_straight_line_is_its_slope_without_error() -> None:
    """However the first half went."""
    trend = Trend.of([1e6 * place**2 for place in range(50)] + [3.0 * place for place in range(50)])
    assert trend.slope == pytest.approx(3.0)
    assert trend.error == pytest.approx(0.0, abs=1e-9)


def test_trend_of_what_levels_off_is_zero() -> None:
    """A pool that fills is no growth."""
    trend = Trend.of([100.0 * (1.0 - math.exp(-place / 4.0)) for place in range(200)])
    assert trend.most == pytest.approx(0.0, abs=1e-6)


def test_trend_of_steps_holds_the_slope_within_its_error() -> None:
    """Steps are no independent samples: the error is wider than one that takes them for such."""
    trend = Trend.of(stairs(12, 25))
    assert abs(trend.slope - 1 / 25) < 2.0 * trend.error
    single = Trend.of([0.0] * 225 + [1.0] * 75)
    assert single.slope > 0.0
    assert single.error > 0.1 * single.slope


def test_trend_of_noise_is_zero_within_its_error() -> None:
    """Some 95 of 100 times."""
    source = random.Random(4)
    trends = [Trend.of([source.gauss(0.0, 1.0) for _ in range(120)]) for _ in range(100)]
    assert sum(abs(trend.slope) < 2.0 * trend.error for trend in trends) >= 88


@pytest.mark.parametrize("count", [0, 1, 2, 38])
def test_trend_of_few_samples_is_not_known_well(count: int) -> None:
    """A slope there is; of its error nothing can be said."""
    assert math.isnan(Trend.of([7.0] * count).error)


def test_memory_given_out_is_seen_and_seen_to_come_back() -> None:
    """Of a large block all of it, and none when it is gone."""
    before = used_bytes()
    if not before:
        pytest.skip("this C library does not tell")
    block = bytearray(50_000_000)
    assert 50_000_000 <= used_bytes() - before < 60_000_000
    del block
    assert used_bytes() - before < 10_000_000
    assert MemoryUse.now().python_blocks > 0


def test_full_collections_are_counted() -> None:
    """One that is asked for is one more."""
    before = full_collections()
    gc.collect()
    assert full_collections() == before + 1


def report(resident: list[int], visits: float) -> Report:
    """Return a report of a soak that saw this much memory."""
    samples = [MemoryUse(each, 1000, 1000) for each in resident]
    zeros = ("seconds", "offered", "delivered", "failed", "dropped", "settle_s", "loop_lag_p99_ms")
    counts = ("descriptors", "tasks", "threads", "objects", "malloc_bytes")
    figures = {
        **dict.fromkeys(zeros, 0.0),
        **{f"{name}_{when}": 1.0 for name in counts for when in ("before", "after")},
        "resident_bytes_before": float(resident[0]),
        "resident_bytes_after": float(resident[-1]),
        "visits": visits,
        **growth(samples, visits),
    }
    sample = Sample(Measurement(figures), 1.0, None)
    return Report("soak", "", {}, {}, {}, {}, [Round(GROUP, "idle", 0, 0, 0.0, False, {GROUP: sample})])


def test_soak_of_flat_memory_is_not_marked_and_of_growing_memory_is() -> None:
    """1% a minute is the limit, the error included."""
    flat = tables(report([300_000_000 + 1000 * (place % 7) for place in range(120)], 6000.0))
    grown = tables(report([300_000_000 + 100_000 * place for place in range(120)], 6000.0))
    assert "missed" not in flat
    assert "**1.92 missed**" in grown
    assert "| +6.00 ± 0.00 |" in grown  # MB a minute
    assert "| +2.00 ± 0.00 |" in grown  # KB a visit
