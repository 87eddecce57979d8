"""The figures that the page's charts show."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import partime_async as pa
from partime_async.serve.demo.readings import FrameMeter, Rate, Smooth, StageMeter, shortened


def test_rate_counts_the_latest_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened more than two seconds ago does not count any more."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = Rate()
    for _ in range(40):
        now += 0.1
        rate.count()
    assert rate.per_s == pytest.approx(10.0, rel=0.06)
    now += 1.0
    assert rate.per_s == pytest.approx(5.0, rel=0.12)
    now += 5.0
    assert rate.per_s == 0.0


async def test_frame_meter_adds_up_the_drops_of_feeds_that_took_over() -> None:
    """Frames that a feed dropped stay counted when it is gone; ages are those of the latest pictures."""
    meter = FrameMeter()
    assert meter.readings()["p50"] is None
    async with pa.Pipeline(nn.Identity(), torch.zeros(1, 2), stages=1) as pipeline:
        for dropped in (2, 4):
            async with pipeline.feed(overflow="drop_newest", capacity=1) as feed:
                meter.follow(feed)
                for _ in range(3):
                    feed.put_nowait(torch.zeros(1, 2))
                assert meter.readings()["drop"] == dropped
                meter.unfollow(feed)
    for age in range(1, 101):
        meter.went(age / 1000)
    told = meter.readings()
    assert told["drop"] == 4
    assert told["p50"] == pytest.approx(71.0)
    assert told["p95"] == pytest.approx(98.0)


async def test_stage_meter_tells_of_the_time_since_the_last_look() -> None:
    """Busy shares lie between 0 and 100 percent, one for each stage; another pipeline begins anew."""
    meter = StageMeter()
    for _ in range(2):
        async with pa.Pipeline(
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(1, 2), stages=2
        ) as pipeline:
            for _ in range(3):
                await pipeline.process(torch.zeros(1, 2))
                told = meter.readings(pipeline)
                busy = told["busy"]
                assert isinstance(busy, list)
                assert len(busy) == 2
                assert all(0.0 <= share <= 100.0 for share in busy)
                assert told["grad"] == []


def test_smooth_leaves_out_what_is_not_finite() -> None:
    """An average begins with its first number, ignores NaN and infinity, and begins anew when told."""
    smooth = Smooth(0.5)
    for number in (float("nan"), 4.0, float("inf"), 2.0):
        smooth.update(number)
    assert smooth.value == 3.0
    smooth.reset()
    assert smooth.value is None


@pytest.mark.parametrize(
    ("number", "short"),
    [(None, None), (float("nan"), None), (1.23456, 1.235), (0.000123456, 0.0001235), (98765.4, 98770.0)],
)
def test_shortened_number_has_four_digits(number: float | None, short: float | None) -> None:
    """Numbers in the telemetry have four digits, and what is not finite is none."""
    assert shortened(number) == short
