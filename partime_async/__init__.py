"""Run neural networks over live streams, frame by frame, inside asyncio programs."""

from partime_async import targets
from partime_async.accounting import DropCause, FeedStatistics, FrameCounts
from partime_async.devices import CpuDevice, CudaDevice, SimulatedDevice
from partime_async.errors import (
    ConfigurationError,
    DeadlineExceeded,
    DeviceError,
    FeedClosed,
    FeedFull,
    FrameDropped,
    FrameError,
    MissingDependencyError,
    PartimeError,
    PartitionError,
    PipelineNotRunning,
    SinkError,
    SourceError,
    StageError,
)
from partime_async.feed import Feed, Overflow
from partime_async.frame import Result, SourceFrame, StageTiming, Value
from partime_async.learning import Graph, Learner, Update, UpdateRule, rules
from partime_async.partition.plan import Plan
from partime_async.pipeline import Pipeline
from partime_async.planning import plan
from partime_async.run import OnError
from partime_async.stateful import Stateful
from partime_async.statistics import PipelineStatistics

__all__ = [
    "ConfigurationError",
    "CpuDevice",
    "CudaDevice",
    "DeadlineExceeded",
    "DeviceError",
    "DropCause",
    "Feed",
    "FeedClosed",
    "FeedFull",
    "FeedStatistics",
    "FrameCounts",
    "FrameDropped",
    "FrameError",
    "Graph",
    "Learner",
    "MissingDependencyError",
    "OnError",
    "Overflow",
    "PartimeError",
    "PartitionError",
    "Pipeline",
    "PipelineNotRunning",
    "PipelineStatistics",
    "Plan",
    "Result",
    "SimulatedDevice",
    "SinkError",
    "SourceError",
    "SourceFrame",
    "StageError",
    "StageTiming",
    "Stateful",
    "Update",
    "UpdateRule",
    "Value",
    "plan",
    "rules",
    "targets",
]
