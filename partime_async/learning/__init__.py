"""Learning while the stream runs: update rules, what a stage does at each frame, and how the network is taught."""

from partime_async.learning import rules
from partime_async.learning.learner import Learner, Metric, NonFinite, Update
from partime_async.learning.rule import Graph, UpdateRule
from partime_async.learning.stage_learner import StageLearner
from partime_async.learning.statistics import LearningStatistics, LossStatistics

__all__ = [
    "Graph",
    "Learner",
    "LearningStatistics",
    "LossStatistics",
    "Metric",
    "NonFinite",
    "StageLearner",
    "Update",
    "UpdateRule",
    "rules",
]
