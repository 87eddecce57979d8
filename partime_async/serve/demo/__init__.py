"""The demo: a network that learns in front of your eyes, from the camera or from a moving scene."""

from partime_async.serve.demo.predict import PredictService, predicting_recipe
from partime_async.serve.demo.teachable import TeachableService, teachable_recipe

__all__ = ["PredictService", "TeachableService", "predicting_recipe", "teachable_recipe"]
