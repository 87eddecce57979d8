"""What the user typed about learning, as a `Learner` and a source with targets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from partime_async import targets
from partime_async.errors import ConfigurationError
from partime_async.frame import FrameSpec, SourceFrame, Value
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
    "adagrad": torch.optim.Adagrad,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
}

LEARNING = ("spare", "loss", "optimizer", "rule", "clip", "label_delay")
"""The options that say how to learn."""

_WORDS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class LearnOptions:
    """How `partime-async run` learns."""

    lesson: Lesson
    learner: Learner
    learn: Learn = Learn.ALWAYS

    @classmethod
    def parsed(
        cls,
        lesson: str,
        loss: str,
        optimizer: str,
        rule: str,
        clip: float | None,
        *,
        is_spare: bool = False,
        label_delay: int = 0,
    ) -> LearnOptions:
        """Return the options from what was typed.

        Raises:
            ConfigurationError: One of them is unknown, or cannot be.
        """
        if lesson not in tuple(Lesson):
            raise ConfigurationError(f"--learn is {lesson!r}. Use {_listed(tuple(Lesson))}.")
        if loss not in LOSSES:
            raise ConfigurationError(f"--loss is {loss!r}. Use {_listed(LOSSES)}.")
        if clip is not None and not 0 < clip < float("inf"):
            raise ConfigurationError(f"--clip is {clip:g}. Give a norm above 0, or leave it out.")
        if label_delay and lesson != Lesson.GIVEN:
            raise ConfigurationError(
                f"--label-delay is {label_delay}, and with --learn {lesson} no target comes late. Use --learn given."
            )
        learner = Learner(
            LOSSES[loss], parse_optimizer(optimizer), rule=parse_rule(rule), clip_norm=clip, label_delay=label_delay
        )
        return cls(Lesson(lesson), learner, Learn.SPARE if is_spare else Learn.ALWAYS)

    def taught(self, frames: AsyncFrames[object], example: Value) -> AsyncFrames[SourceFrame]:
        """Return the frames with the targets they are taught, instead of those that the source may give.

        Args:
            frames: Of the source; closed with what is returned.
            example: A frame as the network takes it.
        """
        framed = _framed(frames, FrameSpec(example))
        if self.lesson is Lesson.NEXT_FRAME:
            return aiter_frames(targets.ahead(framed))
        return aiter_frames(targets.itself(framed) if self.lesson is Lesson.ITSELF else framed)


def refuse_idle(given: Sequence[str]) -> None:
    """Refuse options that would do nothing, as nothing is to be learned.

    Raises:
        ConfigurationError: There is one.
    """
    if given:
        option = given[0].replace("_", "-")
        raise ConfigurationError(
            f"--{option} says how to learn, and nothing is learned. Add --learn next-frame, itself or given."
        )


async def _framed(frames: AsyncFrames[object], spec: FrameSpec) -> AsyncIterator[SourceFrame]:
    try:
        async for item in frames:
            if isinstance(item, SourceFrame):
                yield item
            else:
                value, target = spec.unpack(item)
                yield SourceFrame(value, target=target)
    finally:
        await frames.aclose()


def parse_optimizer(text: str) -> OptimizerFactory:
    """Return what ``sgd:lr=0.01,momentum=0.9`` means: a torch optimiser and its options.

    Raises:
        ConfigurationError: It is none, or an option is not what it takes.
    """
    name, _, written = text.partition(":")
    name = name.lower()
    if name not in OPTIMIZERS:
        raise ConfigurationError(
            f"--optimizer is {text!r}. Use {_listed(OPTIMIZERS)}, such as sgd:lr=0.01,momentum=0.9."
        )
    options: dict[str, bool | float | tuple[float, ...]] = {}
    for part in filter(None, written.split(",")):
        key, _, value = part.partition("=")
        try:
            options[key.strip()] = _option(value.strip())
        except ValueError:
            raise ConfigurationError(
                f"--optimizer has {part!r}. Give numbers, true or false by name, such as {name}:lr=0.01, and several "
                "numbers with slashes, such as adam:betas=0.9/0.99."
            ) from None
    factory = partial(OPTIMIZERS[name], **options)
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"--optimizer is {text!r}: {error}. Give options that torch.optim has.") from error
    return factory


def _option(text: str) -> bool | float | tuple[float, ...]:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    numbers = tuple(map(float, text.split("/")))
    return numbers if len(numbers) > 1 else numbers[0]


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
