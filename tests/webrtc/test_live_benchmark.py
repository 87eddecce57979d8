"""The live benchmark's own parts: numbers in pictures, and figures made of what a caller saw."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.live import stamp
from benchmarks.live.call import Record, figures, recovery_s, slope
from benchmarks.record import BenchmarkError
from tests.webrtc.calls import number_of, picture


@pytest.mark.parametrize("number", [0, 1, 65_535, 2**32 - 1])
def test_number_in_a_picture_is_read_back(number: int) -> None:
    """A number survives noise and a shift of the brightness."""
    image = picture(number)
    assert number_of(image) == number
    noise = np.random.default_rng(1).integers(-40, 40, image.shape)
    assert number_of(np.clip(image + noise, 0, 255).astype(np.uint8)) == number


def test_picture_without_a_number_is_told_from_one_with() -> None:
    """A picture whose checksum does not fit has no number."""
    assert stamp.read(np.full((240, 320), 90, np.uint8)) is None
    luma = picture(5)[:, :, 0].copy()
    luma[:16, :16] = 255 - luma[:16, :16]
    assert stamp.read(luma) is None


def a_record() -> Record:
    """Return what a caller saw whose pictures took 50 ms, 2 s during a stall from 10 to 12, and 50 ms again."""
    made_at = [index / 10 for index in range(200)]
    took = [2.0 if 10 <= at < 12 else 0.05 for at in made_at]
    returned = [(index, at + late) for index, (at, late) in enumerate(zip(made_at, took, strict=True))]
    return Record(made_at, [*returned, (0, 19.0), (999, 19.0)], 0, [0.001, 0.002, 0.003])


def test_figures_count_each_picture_once_and_within_the_time() -> None:
    """A picture that comes again, or that was never sent, counts for nothing."""
    found = figures(a_record(), 1.0, 9.0).figures
    assert found["frames_per_s"] == pytest.approx(10.0, rel=0.02)
    assert found["latency_p50_ms"] == pytest.approx(50.0)
    assert found["slope_ms_per_s"] == pytest.approx(0.0, abs=1e-6)
    assert found["round_trip_p50_ms"] == pytest.approx(2.0)


def test_recovery_is_the_time_until_latency_is_usual() -> None:
    """After the stall, the first picture as quick as before ends it; without one, it lasted as long as was looked."""
    assert recovery_s(a_record(), 1.0, 10.0, 2.0) == pytest.approx(0.05)
    late = Record([0.0, 1.0, 12.5], [(0, 0.1), (1, 1.1), (2, 16.0)], 0, [])
    assert recovery_s(late, 0.0, 10.0, 2.0) == pytest.approx(4.0)


def test_figures_of_a_caller_that_saw_nothing_are_an_error() -> None:
    """Nothing measured is told, not averaged."""
    with pytest.raises(BenchmarkError, match="0 pictures came back"):
        figures(a_record(), 50.0, 60.0)


def test_slope_of_a_line_is_its_own() -> None:
    """A line has its slope."""
    assert slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0]) == pytest.approx(2.0)
