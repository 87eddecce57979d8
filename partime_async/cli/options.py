"""What the user typed, as values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from partime_async.checkpoint import check_place
from partime_async.cli.lessons import LearnOptions
from partime_async.errors import ConfigurationError, MissingDependencyError
from partime_async.overflow import Overflow
from partime_async.run import OnError
from partime_async.sources.open import FACTORY, SOCKET

_SMALL = 32, 32


class LoopKind(StrEnum):
    """Which event loop to run on."""

    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


class SizeRule(StrEnum):
    """How large the frames are, where no numbers are given."""

    AUTO = "auto"
    """About as many pixels as the model suits, in the shape of the source's picture."""
    SOURCE = "source"
    """As large as the source gives them."""


Size = tuple[int, int] | SizeRule
"""Width and height in pixels, or a rule."""


@dataclass(frozen=True, slots=True)
class CutOptions:
    """How to cut the network: `Pipeline`'s own options."""

    stages: int | None
    balance: tuple[int, ...] | None
    devices: tuple[str, ...] | None

    @classmethod
    def parsed(cls, stages: str, balance: str | None, devices: Sequence[str]) -> CutOptions:
        """Return the options from what was typed.

        Raises:
            ConfigurationError: No number where one is needed.
        """
        return cls(
            stages=None if stages == "auto" else _whole("--stages", stages, "a number or 'auto'"),
            balance=None
            if balance is None
            else tuple(_whole("--balance", part, "layers per stage, such as 30,32") for part in balance.split(",")),
            devices=tuple(devices) or None,
        )


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `partime-async run` was told."""

    source: str
    model: str
    cut: CutOptions
    size: Size
    is_realtime: bool
    overflow: Overflow
    max_age_s: float | None
    frames: int | None
    output: str | None
    seed: int
    on_error: OnError
    learning: LearnOptions | None = None
    weights: str | None = None
    save: str | None = None


def check_files(weights: str | None, save: str | None) -> None:
    """Look at the files of weights, before time is spent on learning; blocks.

    Raises:
        ConfigurationError: There is nothing to begin with, or the name is not one to keep weights under.
        CheckpointError: Nothing can be kept there.
        MissingDependencyError: safetensors is not installed.
    """
    if weights is not None and not Path(weights).is_file():
        raise ConfigurationError(f"--weights is {weights!r}, and there is no such file. Check its name.")
    if save is None:
        return
    check_place(Path(save))
    if Path(save).suffix != ".safetensors":
        raise ConfigurationError(f"--save is {save!r}. Give a file named like weights.safetensors: that is its format.")
    if find_spec("safetensors") is None:
        raise MissingDependencyError("safetensors", "checkpoint")


def parse_size(text: str) -> Size:
    """Return the size that is meant by ``128x96``, ``auto`` or ``source``.

    Raises:
        ConfigurationError: It is none of these.
    """
    if text in tuple(SizeRule):
        return SizeRule(text)
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if match is None or 0 in (size := (int(match[1]), int(match[2]))):
        raise ConfigurationError(f"--size is {text!r}. Give width and height, such as 128x96, or 'auto' or 'source'.")
    return size


def size_to_compare(source: str, text: str | None) -> Size:
    """Return the size of the frames that rules are compared on: small pictures, or what is no picture as it is.

    Args:
        source: Where the frames come from.
        text: What the user said of it; None: nothing.

    Raises:
        ConfigurationError: It is no size.
    """
    if text is not None:
        return parse_size(text)
    return SizeRule.AUTO if FACTORY.fullmatch(source) or SOCKET.match(source) else _SMALL


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the shape that is meant by ``1,3,64,64``.

    Raises:
        ConfigurationError: It is no shape.
    """
    shape = tuple(_whole("--shape", part, "the sizes of a tensor, such as 1,3,64,64") for part in text.split(","))
    if 0 in shape:
        raise ConfigurationError(f"--shape is {text}, which holds nothing. Give sizes of at least 1.")
    return shape


def _whole(option: str, text: str, wanted: str) -> int:
    if not text.strip().isdecimal():
        raise ConfigurationError(f"{option} is {text!r}. Give {wanted}.")
    return int(text)
