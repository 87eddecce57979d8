"""Run neural networks over live streams, frame by frame, inside asyncio programs."""

from partime_async import targets
from partime_async.accounting import DropCause, FeedStatistics, FrameCounts
from partime_async.checkpoint import Snapshot
from partime_async.devices import CpuDevice, CudaDevice, SimulatedDevice
from partime_async.errors import (
    CheckpointError,
    ConfigurationError,
    DeadlineExceeded,
    DeviceError,
    FeedClosed,
    FeedFull,
    FrameDropped,
    FrameError,
    LabelError,
    MissingDependencyError,
    NonFiniteError,
    PartimeError,
    PartimeWarning,
    PartitionError,
    PipelineNotRunning,
    SinkError,
    SourceError,
    StageError,
)
from partime_async.feed import Feed
from partime_async.frame import Result, SourceFrame, StageTiming, Value
from partime_async.labels import LabelStatistics
from partime_async.learning import (
    Graph,
    Learner,
    LearningStatistics,
    LossStatistics,
    Metric,
    NonFinite,
    Update,
    UpdateRule,
    rules,
)
from partime_async.learning.skip import SkipStatistics
from partime_async.overflow import Learn, Overflow
from partime_async.partition.plan import Plan
from partime_async.pipeline import Pipeline
from partime_async.planning import plan
from partime_async.run import OnError
from partime_async.stateful import Stateful
from partime_async.statistics import PipelineStatistics, TeachingStatistics

__all__ = [
    "CheckpointError",
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
    "LabelError",
    "LabelStatistics",
    "Learn",
    "Learner",
    "LearningStatistics",
    "LossStatistics",
    "Metric",
    "MissingDependencyError",
    "NonFinite",
    "NonFiniteError",
    "OnError",
    "Overflow",
    "PartimeError",
    "PartimeWarning",
    "PartitionError",
    "Pipeline",
    "PipelineNotRunning",
    "PipelineStatistics",
    "Plan",
    "Result",
    "SimulatedDevice",
    "SinkError",
    "SkipStatistics",
    "Snapshot",
    "SourceError",
    "SourceFrame",
    "StageError",
    "StageTiming",
    "Stateful",
    "TeachingStatistics",
    "Update",
    "UpdateRule",
    "Value",
    "plan",
    "rules",
    "targets",
]
