"""What a running pipeline tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from partime_async.accounting import FrameCounts
from partime_async.lag import LagStatistics
from partime_async.metrics import Quantiles
from partime_async.stage import StageStatistics


@dataclass(frozen=True, slots=True)
class PipelineStatistics:
    """One moment of a pipeline, over all its feeds, those that have ended included.

    Attributes:
        elapsed_s: Seconds since the pipeline started.
        frames: Where the frames are; see `FrameCounts` for how they add up.
        throughput: Delivered frames per second since the start.
        latency_s: Seconds from capture to the end of the last stage.
        age_s: Seconds from capture to the moment the result was read.
        window: How many frames may be in flight now; None while no live feed is open.
        feeds: How many feeds are open.
        stages: One entry per stage.
        loop: How late the event loop runs.
    """

    elapsed_s: float
    frames: FrameCounts
    throughput: float
    latency_s: Quantiles
    age_s: Quantiles
    window: int | None
    feeds: int
    stages: tuple[StageStatistics, ...]
    loop: LagStatistics
