"""A pipeline's statistics as metrics of Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from partime_async.errors import MissingDependencyError
from partime_async.learning import LearningStatistics
from partime_async.metrics import Quantiles
from partime_async.stage import StageStatistics
from partime_async.statistics import PipelineStatistics, TeachingStatistics

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
except ImportError as error:
    raise MissingDependencyError("prometheus-client", "serve") from error

Rows = Iterable[tuple[tuple[str, ...], float]]
"""Values of the labels, and a number."""

Pipelines = Sequence[tuple[tuple[str, str], PipelineStatistics]]
"""Names of service and pipeline, and what the pipeline says."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric of a pipeline.

    Attributes:
        name: Of the metric, with its unit.
        words: What it tells.
        rows: Reads it.
        labels: Beyond service and pipeline.
        is_counter: Whether it only grows.
    """

    name: str
    words: str
    rows: Callable[[PipelineStatistics], Rows]
    labels: tuple[str, ...] = ()
    is_counter: bool = False


def of_pipelines(pipelines: Pipelines) -> Iterator[Metric]:
    """Yield the metrics of all pipelines, without numbers that are not finite, such as a loss before the first."""
    for reading in READINGS:
        make = CounterMetricFamily if reading.is_counter else GaugeMetricFamily
        family = make(reading.name, reading.words, labels=("service", "pipeline", *reading.labels))
        for names, seen in pipelines:
            for values, number in reading.rows(seen):
                if math.isfinite(number):
                    family.add_metric((*names, *values), number)
        yield family
    for name, words, read in _SUMMARIES:
        summary = SummaryMetricFamily(name, words, labels=("service", "pipeline"))
        for names, seen in pipelines:
            of = read(seen)
            summary.add_metric(names, of.count, of.count * of.mean)
        yield summary


def _whole(read: Callable[[PipelineStatistics], float]) -> Callable[[PipelineStatistics], Rows]:
    """Read one number of the pipeline."""
    return lambda seen: (((), read(seen)),)


def _quantiles(read: Callable[[PipelineStatistics], Quantiles]) -> Callable[[PipelineStatistics], Rows]:
    """Read a distribution since the pipeline started."""

    def rows(seen: PipelineStatistics) -> Rows:
        of = read(seen)
        return ((("0.5",), of.p50), (("0.9",), of.p90), (("0.99",), of.p99), (("1",), of.max))

    return rows


def _stages(read: Callable[[StageStatistics], float]) -> Callable[[PipelineStatistics], Rows]:
    """Read one number of each stage."""
    return lambda seen: [((str(stage.stage),), read(stage)) for stage in seen.stages]


def _learners(read: Callable[[LearningStatistics], float]) -> Callable[[PipelineStatistics], Rows]:
    """Read one number of each stage that learns."""
    return lambda seen: [
        ((str(stage.stage),), read(stage.learning)) for stage in seen.stages if stage.learning is not None
    ]


def _teaching(read: Callable[[TeachingStatistics], Rows]) -> Callable[[PipelineStatistics], Rows]:
    """Read what the whole network was taught, if it is."""
    return lambda seen: () if seen.learning is None else read(seen.learning)


def _labels(teaching: TeachingStatistics) -> Rows:
    labels = teaching.labels
    if labels is None:
        return ()
    return ((("taken",), labels.taken), (("missing",), labels.missing), (("refused",), labels.refused))


def _metrics(teaching: TeachingStatistics) -> Rows:
    return [((name,), metric.recent) for name, metric in teaching.metrics.items()]


_STAGE = ("stage",)
_QUANTILE = ("quantile",)

_SUMMARIES: tuple[tuple[str, str, Callable[[PipelineStatistics], Quantiles]], ...] = (
    (
        "partime_pipeline_latency_seconds",
        "From a frame's capture to the end of the last stage.",
        lambda seen: seen.latency_s,
    ),
    ("partime_pipeline_age_seconds", "From a frame's capture to the reading of its result.", lambda seen: seen.age_s),
)

READINGS = (
    Reading("partime_frames_offered", "Frames offered.", _whole(lambda seen: seen.frames.offered), is_counter=True),
    Reading(
        "partime_frames_delivered",
        "Frames whose results were read.",
        _whole(lambda seen: seen.frames.delivered),
        is_counter=True,
    ),
    Reading(
        "partime_frames_failed",
        "Frames on which a stage raised.",
        _whole(lambda seen: seen.frames.failed),
        is_counter=True,
    ),
    Reading(
        "partime_frames_dropped",
        "Frames without a result, by cause.",
        lambda seen: [((cause,), count) for cause, count in seen.frames.dropped.items()],
        ("cause",),
        is_counter=True,
    ),
    Reading("partime_frames_waiting", "Frames not admitted yet.", _whole(lambda seen: seen.frames.waiting)),
    Reading("partime_frames_in_flight", "Frames in the stages.", _whole(lambda seen: seen.frames.in_flight)),
    Reading("partime_frames_unread", "Results not read yet.", _whole(lambda seen: seen.frames.unread)),
    Reading(
        "partime_pipeline_age_quantile_seconds",
        "Quantiles of the seconds from capture to the reading of the result, since the start.",
        _quantiles(lambda seen: seen.age_s),
        _QUANTILE,
    ),
    Reading(
        "partime_loop_lag_seconds",
        "Quantiles of how late the event loop runs, since the start.",
        _quantiles(lambda seen: seen.loop.lag_s),
        _QUANTILE,
    ),
    Reading("partime_stage_frames", "Frames done.", _stages(lambda stage: stage.frames), _STAGE, is_counter=True),
    Reading(
        "partime_stage_busy_seconds",
        "Seconds that the stage's device worked.",
        _stages(lambda stage: stage.busy_s),
        _STAGE,
        is_counter=True,
    ),
    Reading(
        "partime_stage_busy_share",
        "Share of the time since the start that the stage's device worked.",
        _stages(lambda stage: stage.busy_share),
        _STAGE,
    ),
    Reading(
        "partime_learning_loss",
        "Loss of the predictions, before anything was learned from them, averaged over some 20 frames.",
        _teaching(lambda teaching: (((), teaching.loss.recent),)),
    ),
    Reading(
        "partime_learning_metric",
        "The learner's own metrics, averaged over some 20 frames.",
        _teaching(_metrics),
        ("metric",),
    ),
    Reading("partime_learning_labels", "Targets, by what became of them.", _teaching(_labels), ("fate",), True),
    Reading(
        "partime_learning_steps",
        "Optimiser steps taken.",
        _learners(lambda learning: learning.updates),
        _STAGE,
        is_counter=True,
    ),
    Reading(
        "partime_learning_skipped",
        "Losses and gradients that were not finite.",
        _learners(lambda learning: learning.skipped),
        _STAGE,
        is_counter=True,
    ),
    Reading(
        "partime_learning_gradient_norm",
        "Norm of the latest gradient, before clipping.",
        _learners(lambda learning: learning.gradient_norm),
        _STAGE,
    ),
    Reading(
        "partime_learning_frozen", "1 while learning is frozen.", _learners(lambda learning: learning.is_frozen), _STAGE
    ),
)
