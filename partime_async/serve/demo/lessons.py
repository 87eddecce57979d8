"""What is taught in the teachable mode: frames with a class, the classes in use, and one source of such frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from partime_async.frame import Result, SourceFrame
from partime_async.iteration import AsyncFrames
from partime_async.picture import Image
from partime_async.serve.client import Client
from partime_async.serve.demo.engine import Engine
from partime_async.serve.demo.networks import CLASSES, scores
from partime_async.serve.demo.pictures import evidence_over, thumbnail
from partime_async.serve.demo.show import Show

SCENE_SIZE = (320, 240)


@dataclass(frozen=True, slots=True)
class Taught(SourceFrame):
    """A frame with what somebody said it shows.

    Attributes:
        label: The class; None: nobody said.
        is_exam: Whether it is for an examination, and not learned from.
    """

    label: int | None = None
    is_exam: bool = False


@dataclass(slots=True)
class Classes:
    """The classes in use.

    Attributes:
        names: By slot; None: the slot is free.
        active: Which were taught already, bool ``(9,)``; a new tensor at every change, as frames keep it.
    """

    names: list[str | None] = field(default_factory=lambda: ["A", "B", "C", *[None] * (CLASSES - 3)])
    active: Tensor = field(default_factory=lambda: torch.zeros(CLASSES, dtype=torch.bool))

    def activate(self, label: int, *, is_active: bool = True) -> None:
        """Let a class take part in the decision, or not."""
        if bool(self.active[label]) != is_active:
            self.active = self.active.clone()
            self.active[label] = is_active

    def copy(self) -> Classes:
        """Return the same classes, to go back to."""
        return Classes(list(self.names), self.active)


class Teacher(Protocol):
    """Whose classes they are, and who is told what became of a frame."""

    @property
    def classes(self) -> Classes:
        """The classes in use."""

    def lesson_of(self, label: int) -> tuple[bool, tuple[Tensor, Tensor] | None]:
        """Return whether the next picture of a class is for the examination, and its target if it is not."""

    def seen(self, show: TeachableShow, frame: Taught, result: Result, thumb: Image | None) -> None:
        """Take note of a result."""


class TeachableShow(Show):
    """One source in the teachable mode.

    Args:
        engine: See `Show`.
        open_source: See `Show`.
        teacher: Has the classes.
        name: See `Show`.

    Attributes:
        holders: Who holds which class's button, and since when; the latest press counts.
        shares: Of each class in the latest prediction.
    """

    def __init__(
        self,
        engine: Engine,
        open_source: Callable[[], AsyncFrames[SourceFrame]],
        teacher: Teacher,
        *,
        name: str,
    ) -> None:
        super().__init__(engine, open_source, name=name)
        self.holders: dict[Client, tuple[int, float]] = {}
        self.shares: npt.NDArray[np.float32] = np.zeros(CLASSES, np.float32)
        self._teacher = teacher
        self._thumbnail: Image | None = None

    @property
    def held(self) -> int | None:
        """The class whose button is held; None: none is."""
        return None if self._latest_hold is None else self._latest_hold[0]

    @property
    def _latest_hold(self) -> tuple[int, float] | None:
        return next(reversed(self.holders.values()), None)

    def prepare(self, frame: SourceFrame) -> Taught:
        """Return the frame with what is said about it now, and with its target if it is to be learned from."""
        hold = self._latest_hold
        # A picture that was on its way when the button went down shows what was there before.
        if hold is None or (frame.captured_at is not None and frame.captured_at < hold[1]):
            return Taught(frame.value, frame.captured_at, frame.position_s, frame.image)
        label = hold[0]
        is_exam, target = self._teacher.lesson_of(label)
        return Taught(frame.value, frame.captured_at, frame.position_s, frame.image, target, label, is_exam)

    def draw(self, frame: SourceFrame, result: Result) -> Image:
        """Show where the network sees what it says."""
        assert isinstance(frame, Taught)
        assert frame.image is not None
        assert isinstance(result.output, Tensor)
        active = self._teacher.classes.active
        shares = torch.softmax(scores(result.output, active), 1)[0].numpy()
        self.shares = shares if bool(active.any()) else np.zeros_like(shares)
        self._thumbnail = thumbnail(frame.image) if frame.is_exam else None
        winner = int(shares.argmax())
        if not bool(active[winner]) or int(active.sum()) < 2:
            return evidence_over(frame.image, None, winner, 0.0, SCENE_SIZE)
        return evidence_over(
            frame.image, _advantage(result.output, active, winner), winner, float(shares[winner]), SCENE_SIZE
        )

    def seen(self, frame: SourceFrame, result: Result) -> None:
        """Let the desk keep the picture, and make room for a rehearsal."""
        assert isinstance(frame, Taught)
        self._teacher.seen(self, frame, result, self._thumbnail)


def _advantage(output: Tensor, active: Tensor, winner: int) -> npt.NDArray[np.float32]:
    """Return by how much each place speaks for the winner more than for the others in use, ``(height, width)``."""
    maps = output[0][active]
    others = (maps.sum(0) - output[0, winner]) / max(1, len(maps) - 1)
    return np.asarray((output[0, winner] - others).numpy())
