"""The mode in which people teach: hold a button while you show something, and the network learns to tell it apart.

Pictures come in the order in which they are shown, one class after the other, which makes a network forget the classes
before. So every picture that is taught brings along one of another class that was kept (rehearsal), through the same
pipeline; where a machine is too slow for that at once, it is made up for. Some pictures are kept apart, never learned
from, and asked about again and again: they tell what is forgotten.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from partime_async.errors import ConfigurationError
from partime_async.frame import Result, SourceFrame
from partime_async.iteration import AsyncFrames
from partime_async.picture import Image
from partime_async.serve.demo.desk import Desk
from partime_async.serve.demo.engine import Recipe
from partime_async.serve.demo.lessons import SCENE_SIZE, Classes, Taught, TeachableShow
from partime_async.serve.demo.memory import REHEARSED, Drawer, Memory, packed
from partime_async.serve.demo.networks import (
    CLASSES,
    HEIGHT,
    TEACHABLE_BALANCE,
    WIDTH,
    scores,
    teachable_network,
    teaching_loss,
)
from partime_async.serve.demo.orders import Command, Visitor, whole
from partime_async.serve.demo.readings import Smooth, shortened
from partime_async.serve.demo.show import Show

LONGEST_NAME = 24

_LETTERS = "ABCDEFGHIJKLMNOPQRS"

_LEARNING_RATE = 0.03
_EXAM_EVERY = 3
"""Of so many turns that are not for a lesson being taught, one is for an examination."""
_LARGEST_DEBT = 2 * REHEARSED
"""Rehearsals that are still to be made up for, at most."""
_REST_AFTER = 150
"""Pictures after the last one taught from when on only every third one brings a rehearsal: it has sunk in."""


def teachable_recipe(devices: tuple[str, ...] = ("cpu",)) -> Recipe:
    """Return the classifier and how it learns."""
    return Recipe(
        network=teachable_network,
        example=torch.zeros(1, 3, HEIGHT, WIDTH),
        balance=TEACHABLE_BALANCE,
        loss=teaching_loss,
        optimizer=partial(torch.optim.SGD, lr=_LEARNING_RATE, momentum=0.9),
        clip_norm=1.0,
        devices=devices,
    )


class TeachableService(Desk):
    """The teachable mode: see the module."""

    def __init__(self, recipe: Recipe | None = None) -> None:
        super().__init__(recipe or teachable_recipe(), name="teach", scene_size=SCENE_SIZE)
        self.classes = Classes()
        self.memory = Memory()
        self._is_due = asyncio.Event()
        self._lesson: int | None = None
        self._rested = 0
        self._owed = 0
        self._accuracy = Smooth(1 / 60)
        self._loss = Smooth(1 / 15)
        self._kept: tuple[Classes, list[Drawer]] | None = None
        self._orders |= {
            "teach": self._teach,
            "release": self._release,
            "add": self._add,
            "rename": self._rename,
            "remove": self.orders.changing(self._remove),
        }

    # -- frames ---------------------------------------------------------------------------------------------------

    def new_show(self, open_source: Callable[[], AsyncFrames[SourceFrame]], *, name: str) -> Show:
        """Make a show of a source."""
        return TeachableShow(self.engine, open_source, self, name=name)

    def lesson_of(self, label: int) -> tuple[bool, tuple[Tensor, Tensor] | None]:
        """Return whether the next picture of a class is for the examination, and its target if it is not."""
        if self.engine.is_frozen:
            return False, None
        self.classes.activate(label)
        is_exam = self.memory.is_for_exam(label)
        self.memory.count(label)
        return is_exam, None if is_exam else (torch.tensor([label]), self.classes.active)

    def seen(self, show: TeachableShow, frame: Taught, result: Result, thumb: Image | None) -> None:
        """Take note of a result: keep its picture, count how right it was, and let a rehearsal follow."""
        self._rested += 1
        label = frame.label
        if label is not None:
            self._accuracy.update(float(int(show.shares.argmax()) == label))
            # A class may have been removed, or all of them, while its last pictures were on their way.
            if not self.engine.is_frozen and bool(self.classes.active[label]):
                self._rested = 0
                if frame.is_exam and thumb is not None:
                    self.memory.examine(label, _tensor(frame.value), thumb)
                elif not frame.is_exam:
                    self.memory.keep(label, _tensor(frame.value))
                    self._owed = min(self._owed + 1, _LARGEST_DEBT)
        if result.loss is not None:
            self._loss.update(result.loss)
        self._lesson = label
        if self._rested < _REST_AFTER or self._rested % 3 == 0:
            self._is_due.set()

    async def work(self) -> None:
        """Rehearse and examine, one picture at a time: one for each shown, and a rehearsal for each taught."""
        turn = 0
        while True:
            if not self._owed or self.engine.is_frozen:
                await self._is_due.wait()
            self._is_due.clear()
            turn += 1
            if turn % _EXAM_EVERY and not self.engine.is_frozen:
                self._owed = max(0, self._owed - 1)
                await self._rehearse()
            else:
                await self._examine()

    async def _rehearse(self) -> None:
        chosen = self.memory.lesson(instead_of=self._lesson)
        if chosen is None:
            return
        label, value = chosen
        if not bool(self.classes.active[label]):
            return
        with self.engine.generation.used() as pipeline:
            await pipeline.process(value, (torch.tensor([label]), self.classes.active))

    async def _examine(self) -> None:
        chosen = self.memory.exam()
        if chosen is None:
            return
        label, exam = chosen
        with self.engine.generation.used() as pipeline:
            result = await pipeline.process(exam.value)
        # A dozen numbers: less than handing them to a thread.
        exam.is_right = int(scores(_tensor(result.output), self.classes.active).argmax()) == label

    # -- what browsers are told -----------------------------------------------------------------------------------

    def readings(self, show: Show) -> dict[str, object]:
        """Return the shares of the classes in percent, the accuracy, and how the examinations went."""
        assert isinstance(show, TeachableShow)
        return {
            "loss": shortened(self._loss.value),
            "acc": shortened(self._accuracy.value),
            "p": [round(100.0 * float(share)) for share in show.shares],
            "held": show.held,
            "on": self.classes.active.nonzero().flatten().tolist(),
            "n": [drawer.seen for drawer in self.memory.drawers],
            "keep": [_percent(drawer.retention) for drawer in self.memory.drawers],
            "exam": [_marks(drawer) for drawer in self.memory.drawers],
        }

    def state(self) -> dict[str, object]:
        """Return what all browsers are to know."""
        return {**super().state(), "classes": self.classes.names}

    def tick(self) -> None:
        """Send the pictures of one class's examination that changed."""
        for label, drawer in enumerate(self.memory.drawers):
            if drawer.is_changed and self.tell_all(_album(label, drawer)):
                drawer.is_changed = False
                return

    def greet(self, visitor: Visitor) -> None:
        """Send a newcomer the pictures of all examinations, and everybody else once more."""
        for drawer in self.memory.drawers:
            drawer.is_changed = drawer.is_changed or bool(drawer.exams)

    def left(self, visitor: Visitor) -> None:
        """Let go of the button that a browser held as it went."""
        if isinstance(visitor.show, TeachableShow):
            visitor.show.holders.pop(visitor.client, None)

    # -- orders ---------------------------------------------------------------------------------------------------

    def _teach(self, visitor: Visitor, command: Command) -> None:
        """``{do: teach, class: 0}``: what is shown from now on is of this class."""
        label = self._known(command)
        if self.engine.is_frozen:
            raise ConfigurationError("learning is frozen. Thaw it to teach.")
        if isinstance(visitor.show, TeachableShow):
            visitor.show.holders.pop(visitor.client, None)
            visitor.show.holders[visitor.client] = label, time.monotonic()

    def _release(self, visitor: Visitor, command: Command) -> None:
        """``{do: release}``: nobody says what is shown from now on."""
        if isinstance(visitor.show, TeachableShow):
            visitor.show.holders.pop(visitor.client, None)

    def _add(self, visitor: Visitor, command: Command) -> None:
        """``{do: add}``: take a free slot into use."""
        names = self.classes.names
        if None not in names:
            raise ConfigurationError(f"there are {CLASSES} classes already. Remove one first.")
        slot = names.index(None)
        # The slot's own letter, unless somebody has called another class so.
        letters = _LETTERS[slot] + _LETTERS
        names[slot] = next(letter for letter in letters if letter not in names)
        self.announce()

    def _rename(self, visitor: Visitor, command: Command) -> None:
        """``{do: rename, class: 0, name}``: call a class something else."""
        label = self._known(command)
        self.classes.names[label] = _cleaned(command.get("name")) or self.classes.names[label]
        self.announce()

    async def _remove(self, visitor: Visitor, command: Command) -> None:
        """``{do: remove, class: 0}``: forget a class, and what the network thinks of it."""
        label = self._known(command)
        self.classes.names[label] = None
        self.classes.activate(label, is_active=False)
        self.memory.forget(label)
        self._release_all(label)
        await self.engine.edit(partial(_unlearn, label))

    def keep(self) -> None:
        """Keep the classes and their pictures, as a snapshot is taken."""
        self._kept = self.classes.copy(), self.memory.copy()

    def go_back(self) -> None:
        """Go back to the classes and pictures of the snapshot."""
        if self._kept is not None:
            classes, drawers = self._kept
            self.classes = classes.copy()
            self.memory.restore(drawers)
            self._forget_figures()

    def start_over(self) -> None:
        """Forget all pictures; the classes keep their names."""
        for label in range(CLASSES):
            self.memory.forget(label)
            self.classes.activate(label, is_active=False)
            self._release_all(label)
        self._forget_figures()

    def noted(self) -> Mapping[str, object]:
        """Return the classes and which of them were taught, for a file of weights."""
        return {"classes": list(self.classes.names), "taught": self.classes.active.tolist()}

    def take_note(self, noted: Mapping[str, object]) -> None:
        """Take the classes of a file of weights over; pictures of other classes would teach its weights wrong."""
        names, taught = noted.get("classes"), noted.get("taught")
        if not (isinstance(names, list) and isinstance(taught, list) and len(names) == len(taught) == CLASSES):
            return  # of no such file: weights alone
        self.start_over()
        self.classes.names = [None if name is None else _cleaned(name) or _LETTERS[at] for at, name in enumerate(names)]
        for label, name in enumerate(self.classes.names):
            self.classes.activate(label, is_active=name is not None and taught[label] is True)

    def _forget_figures(self) -> None:
        self._accuracy.reset()
        self._loss.reset()

    def _release_all(self, label: int) -> None:
        for visitor in self.visitors.values():
            if isinstance(visitor.show, TeachableShow):
                hold = visitor.show.holders.get(visitor.client)
                if hold is not None and hold[0] == label:
                    del visitor.show.holders[visitor.client]

    def _known(self, command: Command) -> int:
        label = whole(command, "class", CLASSES)
        if self.classes.names[label] is None:
            raise ConfigurationError(f"there is no class {label}. Add one.")
        return label


def _unlearn(label: int, state: dict[str, Tensor]) -> None:
    """Set the last layer's weights of a class to what gives no opinion."""
    for name in list(state)[-2:]:
        state[name][label] = 0.0


def _cleaned(name: object) -> str:
    """Return what may be shown of a name."""
    return "".join(letter for letter in str(name or "") if letter.isprintable()).strip()[:LONGEST_NAME]


def _album(label: int, drawer: Drawer) -> Mapping[str, object]:
    pictures = [base64.b64encode(packed(exam.thumbnail)).decode("ascii") for exam in drawer.exams]
    return {"type": "album", "class": label, "pictures": pictures}


def _marks(drawer: Drawer) -> str:
    """Return one letter for each picture of an examination: right, wrong, or not asked yet."""
    return "".join({True: "r", False: "w", None: "-"}[exam.is_right] for exam in drawer.exams)


def _percent(share: float | None) -> int | None:
    return None if share is None else round(100.0 * share)


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
