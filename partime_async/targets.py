"""Targets that need no labels: a stream teaches itself.

Each function here makes a source of frames with targets out of a source of frames, for `Pipeline.stream`. The pairs
are made before the feed, so whatever a feed drops, a frame keeps the target that belongs to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from partime_async.errors import ConfigurationError
from partime_async.frame import SourceFrame, Value
from partime_async.iteration import aiter_frames

Item = Value | SourceFrame
"""What a source of frames yields."""


async def itself(source: AsyncIterable[Item] | Iterable[Item]) -> AsyncIterator[SourceFrame]:
    """Yield every frame with itself as its target: for autoencoders.

    Args:
        source: Tensors, tuples of tensors, or `SourceFrame`s; closed at the end.
    """
    async for frame in of_last(source, 1, lambda frames: frames[-1]):
        yield frame


async def ahead(source: AsyncIterable[Item] | Iterable[Item], steps: int = 1) -> AsyncIterator[SourceFrame]:
    """Yield every frame with the frame `steps` later as its target: for forecasting. The last `steps` have none.

    A frame is passed on when its target has come, so results are `steps` frames later than they could be. Where that
    matters, feed the frames as they are, and label each with a later one through `Pipeline.label`.

    Args:
        source: Tensors, tuples of tensors, or `SourceFrame`s; closed at the end.
        steps: How many frames ahead, 1 or more.

    Raises:
        ConfigurationError: `steps` is below 1.
    """
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; the target lies ahead. Pass 1 or more, or use itself().")
    waiting: deque[SourceFrame] = deque()
    frames = aiter_frames(source)
    try:
        async for item in frames:
            frame = _as_frame(item)
            waiting.append(frame)
            if len(waiting) > steps:
                yield replace(waiting.popleft(), target=frame.value)
        while waiting:
            yield replace(waiting.popleft(), target=None)  # not the source's own, which is of another kind
    finally:
        await frames.aclose()


async def of_last(
    source: AsyncIterable[Item] | Iterable[Item], count: int, function: Callable[[Sequence[Value]], Value]
) -> AsyncIterator[SourceFrame]:
    """Yield every frame with a function of the last `count` frames as its target: smoothing, differences, denoising.

    Args:
        source: Tensors, tuples of tensors, or `SourceFrame`s; closed at the end.
        count: How many frames the function gets, 1 or more; the first ``count - 1`` frames have no target.
        function: Gets the values, oldest first, its own frame's last. Runs on the event loop: keep it short.

    Raises:
        ConfigurationError: `count` is below 1.
    """
    if count < 1:
        raise ConfigurationError(f"count is {count}; a target is made of at least 1 frame. Pass 1 or more.")
    values: deque[Value] = deque(maxlen=count)
    frames = aiter_frames(source)
    try:
        async for item in frames:
            frame = _as_frame(item)
            values.append(frame.value)
            yield replace(frame, target=function(tuple(values)) if len(values) == count else None)
    finally:
        await frames.aclose()


def _as_frame(item: Item) -> SourceFrame:
    if isinstance(item, SourceFrame):
        return item
    if isinstance(item, Tensor) or (isinstance(item, tuple) and all(isinstance(part, Tensor) for part in item)):
        return SourceFrame(item)
    raise ConfigurationError(
        f"the source yields a {type(item).__name__}. Let it yield tensors, tuples of tensors or SourceFrames."
    )
