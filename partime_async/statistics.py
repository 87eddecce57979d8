"""What a running pipeline tells about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from partime_async.accounting import FrameCounts
from partime_async.labels import LabelStatistics
from partime_async.lag import LagStatistics
from partime_async.learning import LossStatistics
from partime_async.learning.skip import SkipStatistics
from partime_async.metrics import Quantiles
from partime_async.stage import StageStatistics


@dataclass(frozen=True, slots=True)
class TeachingStatistics:
    """What a network was taught with since the pipeline started, and how well it predicted.

    Attributes:
        labels: What became of the targets; None for an unsupervised learner.
        loss: Of every frame, before anything was learned from it.
        metrics: The learner's, by name, for every frame with a target, likewise.
        skip: How one device does that learns from every N-th frame; None: nobody asked for it.
    """

    labels: LabelStatistics | None
    loss: LossStatistics
    metrics: Mapping[str, LossStatistics]
    skip: SkipStatistics | None


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
        learning: Targets and losses; None: the pipeline does not learn.
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
    learning: TeachingStatistics | None
