"""Learning while the stream runs: update rules, what a stage does at each frame, and how the network is taught."""

from partime_async.learning import rules
from partime_async.learning.learner import Learner, NonFinite, Update
from partime_async.learning.rule import Graph, UpdateRule
from partime_async.learning.stage_learner import StageLearner

__all__ = ["Graph", "Learner", "NonFinite", "StageLearner", "Update", "UpdateRule", "rules"]
