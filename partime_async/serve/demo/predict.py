"""The mode without a teacher: the network forecasts every picture from the two before, and learns from its misses.

What comes is compared with what was expected the moment it comes, so nothing is shown late: the picture itself is the
target of the forecast that was made of the ones before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from partime_async.frame import Result, SourceFrame
from partime_async.iteration import AsyncFrames
from partime_async.overflow import Learn
from partime_async.picture import Image
from partime_async.serve.demo.desk import Desk
from partime_async.serve.demo.engine import Engine, Recipe
from partime_async.serve.demo.networks import (
    HEIGHT,
    PREDICTING_BALANCE,
    WIDTH,
    predicting_loss,
    predicting_network,
)
from partime_async.serve.demo.pictures import PANEL, forecast_panels
from partime_async.serve.demo.readings import Smooth, shortened
from partime_async.serve.demo.show import Show
from partime_async.serve.demo.surprise import Surprise

_LEARNING_RATE = 1e-3
_LONGEST_GAP_S = 0.5
"""Pictures farther apart than this do not follow each other."""

_LATE = 1.5
"""Times the usual distance of two pictures from which on one is missing in between."""


def predicting_recipe(devices: tuple[str, ...] = ("cpu",)) -> Recipe:
    """Return the forecaster and how it learns."""
    blank = torch.zeros(1, 3, HEIGHT, WIDTH)
    return Recipe(
        network=predicting_network,
        example=(blank, blank),
        balance=PREDICTING_BALANCE,
        loss=predicting_loss,
        optimizer=partial(torch.optim.Adam, lr=_LEARNING_RATE),
        clip_norm=0.02,
        devices=devices,
    )


@dataclass(frozen=True, slots=True)
class Following(SourceFrame):
    """A picture as the target of the forecast that is made of the two before.

    Attributes:
        is_regular: Whether the three are as far apart in time as pictures of this source usually are.
    """

    is_regular: bool = True


class PredictShow(Show):
    """One source in the predicting mode.

    Attributes:
        loss: Of the forecasts, a mean squared error.
        guess: Of the guess that nothing changes, likewise.
        surprise: How unusual the errors are, and where.
    """

    learn = Learn.SPARE  # every picture is a lesson: the video must not stand still for them

    def __init__(self, engine: Engine, open_source: Callable[[], AsyncFrames[SourceFrame]], *, name: str) -> None:
        super().__init__(engine, open_source, name=name)
        self.loss = Smooth(1 / 15)
        self.guess = Smooth(1 / 15)
        self.surprise = Surprise()
        self._before: tuple[SourceFrame, ...] = ()
        self._step_s = Smooth(1 / 30)
        self._was_regular = True

    def prepare(self, frame: SourceFrame) -> SourceFrame | None:
        """Return the two pictures before as what the network gets, and this one as what it should have said."""
        before = self._before
        step_s = _step(before[0], frame) if before else 0.0
        if step_s > _LONGEST_GAP_S:
            before = ()
        usual_s = self._step_s.value
        was_regular, self._was_regular = self._was_regular, usual_s is None or step_s < _LATE * usual_s
        if 0.0 < step_s <= _LONGEST_GAP_S:
            self._step_s.update(step_s)
        self._before = (frame, *before[:1])
        if len(before) < 2:
            return None
        newer, older = _tensor(before[0].value), _tensor(before[1].value)
        target = (_tensor(frame.value), newer)
        is_regular = was_regular and self._was_regular
        return Following((newer, older), frame.captured_at, frame.position_s, frame.image, target, is_regular)

    def draw(self, frame: SourceFrame, result: Result) -> Image:
        """Show what came, what was expected, and how surprising the difference is."""
        assert isinstance(frame, Following)
        assert isinstance(frame.target, tuple)
        assert frame.image is not None
        picture, before = (part[0].numpy() for part in frame.target)
        forecast = before + _tensor(result.output)[0].numpy()
        self.guess.update(float(((picture - before) ** 2).mean()))
        if result.loss is not None:
            self.loss.update(result.loss)
        # After a gap everything has moved too far, which is no surprise.
        heat = self.surprise.update(picture - forecast) if frame.is_regular else self.surprise.fade()
        return forecast_panels(frame.image, forecast, heat)

    def seen(self, frame: SourceFrame, result: Result) -> None:
        """Nothing is kept."""


class PredictService(Desk):
    """The predicting mode: see the module."""

    def __init__(self, recipe: Recipe | None = None) -> None:
        super().__init__(recipe or predicting_recipe(), name="predict", scene_size=PANEL)

    def new_show(self, open_source: Callable[[], AsyncFrames[SourceFrame]], *, name: str) -> Show:
        """Make a show of a source."""
        return PredictShow(self.engine, open_source, name=name)

    def readings(self, show: Show) -> dict[str, object]:
        """Return the errors of the forecast and of the plain guess, and how surprising the picture is."""
        assert isinstance(show, PredictShow)
        return {
            "loss": shortened(show.loss.value),
            "guess": shortened(show.guess.value),
            "heat": shortened(show.surprise.peak),
            "alarm": show.surprise.is_alarming,
            "guest": show.has_stranger,
        }


def _step(before: SourceFrame, frame: SourceFrame) -> float:
    if before.captured_at is None or frame.captured_at is None:
        return 0.0
    return frame.captured_at - before.captured_at


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
