"""What the user typed about learning, as a `Learner` and a source with targets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from partime_async import targets
from partime_async.errors import ConfigurationError
from partime_async.iteration import AsyncFrames, aiter_frames
from partime_async.learning import Learner, UpdateRule, rules
from partime_async.learning.learner import OptimizerFactory
from partime_async.overflow import Learn


class Lesson(StrEnum):
    """What the network is taught."""

    NEXT_FRAME = "next-frame"
    """To say what comes next."""
    ITSELF = "itself"
    """To give back what it gets."""
    GIVEN = "given"
    """What the source says: it yields (frame, target) pairs."""


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
    "cross-entropy": functional.cross_entropy,
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass(frozen=True, slots=True)
class LearnOptions:
    """How `partime-async run` learns."""

    lesson: Lesson
    learner: Learner
    learn: Learn = Learn.ALWAYS

    @classmethod
    def parsed(
        cls, lesson: str, loss: str, optimizer: str, rule: str, clip: float | None, *, is_spare: bool = False
    ) -> LearnOptions:
        """Return the options from what was typed.

        Raises:
            ConfigurationError: One of them is unknown.
        """
        if lesson not in tuple(Lesson):
            raise ConfigurationError(f"--learn is {lesson!r}. Use {_listed(tuple(Lesson))}.")
        if loss not in LOSSES:
            raise ConfigurationError(f"--loss is {loss!r}. Use {_listed(LOSSES)}.")
        learner = Learner(LOSSES[loss], parse_optimizer(optimizer), rule=parse_rule(rule), clip_norm=clip)
        return cls(Lesson(lesson), learner, Learn.SPARE if is_spare else Learn.ALWAYS)

    def taught(self, frames: AsyncFrames[object]) -> AsyncFrames[object]:
        """Return the frames with the targets they are taught."""
        if self.lesson is Lesson.NEXT_FRAME:
            return aiter_frames(targets.ahead(frames))  # type: ignore[arg-type]  # it refuses what it cannot pair
        if self.lesson is Lesson.ITSELF:
            return aiter_frames(targets.itself(frames))  # type: ignore[arg-type]
        return frames


def parse_optimizer(text: str) -> OptimizerFactory:
    """Return what ``sgd:lr=0.01,momentum=0.9`` means: a torch optimiser and its options.

    Raises:
        ConfigurationError: It is none, or an option is no number.
    """
    name, _, written = text.partition(":")
    if name not in OPTIMIZERS:
        raise ConfigurationError(
            f"--optimizer is {text!r}. Use {_listed(OPTIMIZERS)}, such as sgd:lr=0.01,momentum=0.9."
        )
    options: dict[str, float] = {}
    for part in filter(None, written.split(",")):
        key, _, number = part.partition("=")
        try:
            options[key.strip()] = float(number)
        except ValueError:
            raise ConfigurationError(
                f"--optimizer has {part!r}. Give numbers by name, such as {name}:lr=0.01."
            ) from None
    factory = partial(OPTIMIZERS[name], **options)
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"--optimizer is {text!r}: {error}. Give options that torch.optim has.") from error
    return factory


def parse_rule(text: str) -> UpdateRule:
    """Return the rule that is meant by ``pipedream``, another name, or a graph and a lag such as ``stash:2``.

    Raises:
        ConfigurationError: It is none.
    """
    if text in rules.NAMES:
        return rules.NAMES[text]()
    match = re.fullmatch(r"([a-z]+):(\d+)", text)
    if match is None:
        raise ConfigurationError(
            f"--rule is {text!r}. Use {_listed(rules.NAMES)}, or a graph and a lag, such as stash:2."
        )
    return UpdateRule(match[1], int(match[2]))


def _listed(names: Iterable[str]) -> str:
    words = list(names)
    return ", ".join(words[:-1]) + " or " + words[-1]
