"""What is kept of the pictures a network was taught with: some to rehearse, some to be examined with."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from partime_async.picture import Image
from partime_async.serve.demo.networks import CLASSES

REHEARSED = 24
"""Pictures of a class to learn from again; a fair sample of all that came."""

EXAMS = 8
"""Pictures of a class that the network never learns from."""

EXAM_EVERY = 12
"""Of so many pictures of a class one is for the examination, beginning with the 6th: a short press has one too."""

THUMBNAIL = (32, 24)
"""Width and height of what the page shows of an examination."""


@dataclass(slots=True)
class Exam:
    """One picture that the network is asked about and never learns from.

    Attributes:
        value: What the network sees.
        thumbnail: What people see.
        is_right: Whether the latest answer was; None: it was not asked yet.
    """

    value: Tensor
    thumbnail: Image
    is_right: bool | None = None


@dataclass(slots=True)
class Drawer:
    """What is kept of one class.

    Attributes:
        seen: Pictures of it that came.
        rehearsed: To learn from again.
        exams: To be examined with.
        is_changed: Whether `exams` has other pictures than it had; set by `Memory`, cleared by who shows them.
    """

    seen: int = 0
    rehearsed: list[Tensor] = field(default_factory=list)
    exams: list[Exam] = field(default_factory=list)
    is_changed: bool = False

    @property
    def retention(self) -> float | None:
        """The share of right answers in the latest examination; None: there was none."""
        asked = [exam.is_right for exam in self.exams if exam.is_right is not None]
        return sum(asked) / len(asked) if asked else None


class Memory:
    """The kept pictures of all classes, in bounded memory.

    Args:
        seed: Of the random choices.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)  # choices of pictures, no secrets
        # Apart: taken in turns of three, one count for both would ask about every third examination only.
        self._lessons = self._exams = 0
        self.drawers = [Drawer() for _ in range(CLASSES)]

    def is_for_exam(self, label: int) -> bool:
        """Whether the next picture of a class is kept for the examination; asked before it is learned from."""
        return self.drawers[label].seen % EXAM_EVERY == EXAM_EVERY // 2 - 1

    def count(self, label: int) -> None:
        """Count one picture of a class."""
        self.drawers[label].seen += 1

    def keep(self, label: int, value: Tensor) -> None:
        """Keep a picture to rehearse, in the place of another one when there are enough.

        Source: reservoir sampling, Vitter 1985: every picture that came has the same chance of being here.
        """
        drawer = self.drawers[label]
        if len(drawer.rehearsed) < REHEARSED:
            drawer.rehearsed.append(value)
        elif (place := self._random.randrange(max(REHEARSED, drawer.seen))) < REHEARSED:
            drawer.rehearsed[place] = value

    def examine(self, label: int, value: Tensor, thumbnail: Image) -> None:
        """Keep a picture for the examination, likewise."""
        drawer = self.drawers[label]
        exam = Exam(value, thumbnail)
        if len(drawer.exams) < EXAMS:
            drawer.exams.append(exam)
        elif (place := self._random.randrange(max(EXAMS, drawer.seen // EXAM_EVERY))) < EXAMS:
            drawer.exams[place] = exam
        else:
            return
        drawer.is_changed = True

    def lesson(self, *, instead_of: int | None) -> tuple[int, Tensor] | None:
        """Choose a picture to rehearse: the classes in turn, and any picture of the class.

        Args:
            instead_of: The class that is being taught right now, which needs no rehearsal while there are others.

        Returns:
            Its class and what the network sees; None: nothing is kept.
        """
        known = [label for label, drawer in enumerate(self.drawers) if drawer.rehearsed]
        others = [label for label in known if label != instead_of] or known
        if not others:
            return None
        self._lessons += 1
        label = others[self._lessons % len(others)]
        return label, self._random.choice(self.drawers[label].rehearsed)

    def exam(self) -> tuple[int, Exam] | None:
        """Choose what to ask next: all examinations in turn; None: there are none."""
        exams = [(label, exam) for label, drawer in enumerate(self.drawers) for exam in drawer.exams]
        if not exams:
            return None
        self._exams += 1
        return exams[self._exams % len(exams)]

    def forget(self, label: int) -> None:
        """Forget everything about a class."""
        self.drawers[label] = Drawer(is_changed=True)

    def copy(self) -> list[Drawer]:
        """Return what is kept, to go back to."""
        return [
            Drawer(
                drawer.seen,
                list(drawer.rehearsed),
                [Exam(exam.value, exam.thumbnail, exam.is_right) for exam in drawer.exams],
            )
            for drawer in self.drawers
        ]

    def restore(self, drawers: list[Drawer]) -> None:
        """Go back to what `copy` returned."""
        kept = Memory()
        kept.drawers = drawers
        self.drawers = kept.copy()
        for drawer in self.drawers:
            drawer.is_changed = True


def packed(thumbnail: Image) -> bytes:
    """Return a thumbnail's pixels in a row, RGB."""
    return np.ascontiguousarray(thumbnail).tobytes()
