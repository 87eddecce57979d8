"""Open what the user named: a source, and the frames it gives."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from partime_async.cli.options import RunOptions, Size, SizeRule
from partime_async.errors import ConfigurationError, SourceError
from partime_async.frame import SourceFrame, Value
from partime_async.models import describe, example_size
from partime_async.offload import in_thread
from partime_async.picture import to_value
from partime_async.sinks.draw import resized
from partime_async.sources import AsyncFrames, BlockingSource, UserSource, aiter_frames, open_source
from partime_async.sources.base import SourcePass
from partime_async.sources.open import SourceOptions

_CLOSE_S = 0.5

_STEP = 8
"""Sides chosen here are multiples of this, so that a few pooling layers divide them evenly."""


@dataclass(frozen=True, slots=True)
class Intake:
    """An open source.

    Attributes:
        source: What to close at the end.
        frames: What to read, once.
        example: A frame as they will come.
        description: One line for people.
    """

    source: BlockingSource | UserSource
    frames: AsyncFrames[object]
    example: Value
    description: str


async def open_intake(options: RunOptions) -> Intake:
    """Open the source, and look at its first frame to know what it gives; nothing blocks the loop.

    Raises:
        SourceError: It cannot be opened, or gives no frame.
        ConfigurationError: It does not give what the model takes.
    """
    opened = await in_thread(lambda: _open(options), name="partime source opening")
    if isinstance(opened, Intake):
        return opened
    frames = aiter(opened)
    try:
        first = await anext(frames)
        # An iterator cannot be asked for its first frame twice.
        return Intake(opened, _Chained(first, frames), _example(first, options), opened.describe())
    except StopAsyncIteration:
        raise _nothing(opened) from None
    except BaseException:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await frames.aclose()
        raise


def _open(options: RunOptions) -> Intake | UserSource:
    asked: SourceOptions = {}
    if options.is_realtime:
        asked["realtime"] = True
    if options.source == "scene":
        asked["seed"] = options.seed
    if isinstance(options.size, tuple):
        asked["size"] = options.size
    source = open_source(options.source, **asked)
    if isinstance(source, UserSource):
        return source
    try:
        first = _first(source)
        assert isinstance(first.value, Tensor)
        own = first.value.shape[3], first.value.shape[2]
        size = chosen_size(options.size, own, options.model)
        if size == own:
            return Intake(source, aiter_frames(source), _example(first, options), source.describe())
        described = f"{source.describe()} -> {size[0]}x{size[1]}"
        if options.source.partition(":")[0] == "camera":
            # Not asked of the device, which would then give its pictures in a size that is too small to look at.
            shrunk = Shrunk(source, size)
            example = _example(shrunk.resize(first), options)
            return Intake(source, aiter_frames(shrunk), example, described)
        source.close()
        asked["size"] = size
        source = open_source(options.source, **asked)
        assert not isinstance(source, UserSource)
        return Intake(source, aiter_frames(source), _example(_first(source), options), described)
    except BaseException:
        source.close()
        raise


def shown(source: str) -> str:
    """Return a source as it may be shown: an address without the name and password in it."""
    return re.sub(r"//[^/]*@", "//…@", source)


def chosen_size(rule: Size, own: tuple[int, int], model: str) -> tuple[int, int]:
    """Return the width and height of the frames.

    Args:
        rule: What the user asked for.
        own: Width and height of the source's pictures.
        model: The model's name; nothing is known of a user's own, so it gets the source's size.
    """
    if isinstance(rule, tuple):
        return rule
    suits = example_size(model) if model in dict(describe()) else ()
    if rule is SizeRule.SOURCE or len(suits) != 4:
        return own
    scale = math.sqrt(suits[2] * suits[3] / (own[0] * own[1]))
    if scale >= 1.0:
        return own
    width, height = (max(_STEP, _STEP * round(scale * side / _STEP)) for side in own)
    return width, height


def _first(source: BlockingSource) -> SourceFrame:
    """Return a pass's first frame; the stream is another pass, which begins when the pipeline is ready for it."""
    frames = iter(source)
    try:
        return next(frames)
    except StopIteration:
        raise _nothing(source) from None
    finally:
        frames.close()


def _nothing(source: BlockingSource | UserSource) -> SourceError:
    return SourceError(f"{source.describe()} gave no frame at all. Check that there is something in it.")


def _example(item: object, options: RunOptions) -> Value:
    """Return the network's input in an item of a source, if the model takes it."""
    value = item.value if isinstance(item, SourceFrame) else item
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor | tuple):
        value = value[0]  # a frame and its target
    tensors = value if isinstance(value, tuple) else (value,)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ConfigurationError(
            f"{shown(options.source)} gave a {type(value).__qualname__}, which is no frame. "
            "Let it yield tensors with a batch dimension, tuples of them, or (frame, target) pairs."
        )
    assert isinstance(value, Tensor | tuple)
    if options.model in dict(describe()):
        suits = example_size(options.model)
        if not isinstance(value, Tensor) or value.ndim != len(suits) or value.shape[1] != suits[1]:
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ConfigurationError(
                f"{options.model} takes frames such as {suits}, and {shown(options.source)} gives {shapes}. "
                "Choose another --model or another source."
            )
    return value


class _Chained:
    """The frames of an asynchronous iterator, and before them the one that was taken already."""

    def __init__(self, first: object, rest: AsyncFrames[object]) -> None:
        self._first: list[object] = [first]
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        if self._first:
            return self._first.pop()
        return await anext(self._rest)

    async def aclose(self) -> None:
        self._first.clear()
        await self._rest.aclose()


class Shrunk:
    """A source whose frames are resized in the thread that pulls it; the picture for people stays as it is."""

    def __init__(self, source: BlockingSource, size: tuple[int, int]) -> None:
        self._source = source
        self._size = size

    def resize(self, frame: SourceFrame) -> SourceFrame:
        """Return the frame with a smaller value."""
        assert frame.image is not None
        value = to_value(resized(frame.image, self._size))
        return SourceFrame(value, frame.captured_at, frame.position_s, frame.image)

    def __iter__(self) -> ShrunkPass:
        return ShrunkPass(iter(self._source), self.resize)


class ShrunkPass(Iterator[SourceFrame]):
    """One pass over a `Shrunk`; see `SourcePass`."""

    def __init__(self, frames: SourcePass, resize: Callable[[SourceFrame], SourceFrame]) -> None:
        self._frames = frames
        self._resize = resize
        self.interrupt = frames.interrupt
        self.close = frames.close

    def __next__(self) -> SourceFrame:
        return self._resize(next(self._frames))
