"""Streams that teach themselves: every frame gets the target that belongs to it, or none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import torch
from torch import Tensor

import partime_async as pa

FRAMES = [torch.tensor([[float(number)]]) for number in range(5)]


def _number(value: pa.Value | None) -> float | None:
    if value is None:
        return None
    assert isinstance(value, Tensor)
    return float(value)


async def _pairs(frames: AsyncIterator[pa.SourceFrame]) -> list[tuple[float | None, float | None]]:
    return [(_number(frame.value), _number(frame.target)) async for frame in frames]


def _labelled() -> Iterator[pa.SourceFrame]:
    for frame in FRAMES:
        yield pa.SourceFrame(frame, position_s=float(frame), target=torch.tensor([-1.0]))


async def test_frame_itself_is_its_target() -> None:
    """An autoencoder's stream has as many frames as its source, in their order."""
    assert await _pairs(pa.targets.itself(FRAMES)) == [(n, n) for n in range(5)]


async def test_frame_ahead_is_the_target_and_the_last_frames_have_none() -> None:
    """What lies behind the end of the stream is nobody's target; no frame is left out."""
    assert await _pairs(pa.targets.ahead(FRAMES, 2)) == [(0, 2), (1, 3), (2, 4), (3, None), (4, None)]
    assert await _pairs(pa.targets.ahead(FRAMES[:1], 2)) == [(0, None)]


async def test_function_of_the_last_frames_is_the_target_once_there_are_enough() -> None:
    """The function gets the values, oldest first, and the first frames have no target."""

    def change(frames: Sequence[pa.Value]) -> pa.Value:
        first, last = frames[0], frames[-1]
        assert isinstance(first, Tensor)
        assert isinstance(last, Tensor)
        return last - first

    assert await _pairs(pa.targets.of_last(FRAMES, 3, change)) == [(0, None), (1, None), (2, 2), (3, 2), (4, 2)]


async def test_targets_of_the_source_never_stand_in_for_those_that_do_not_exist() -> None:
    """A label at the end of the stream is no frame ahead, and the frames keep what else is known of them."""
    assert [target for _, target in await _pairs(pa.targets.ahead(_labelled()))] == [1, 2, 3, 4, None]
    of_two = pa.targets.of_last(_labelled(), 2, lambda frames: frames[0])
    assert [target for _, target in await _pairs(of_two)] == [None, 0, 1, 2, 3]
    assert [frame.position_s async for frame in pa.targets.ahead(_labelled())] == [0.0, 1.0, 2.0, 3.0, 4.0]


async def test_source_is_closed_when_its_reader_stops() -> None:
    """Whoever stops in the middle leaves no camera open."""
    closed: list[bool] = []

    async def source() -> AsyncIterator[Tensor]:
        try:
            for frame in FRAMES:
                yield frame
        finally:
            closed.append(True)

    async for _ in (frames := pa.targets.ahead(source())):
        break
    await frames.aclose()  # type: ignore[attr-defined]  # an asynchronous generator
    assert closed == [True]


async def test_count_or_item_that_cannot_be_is_refused_with_the_remedy() -> None:
    """No frame at all and no frame ahead are no targets, and a word is no frame."""
    with pytest.raises(pa.ConfigurationError, match=r"steps is 0.*itself"):
        await anext(pa.targets.ahead(FRAMES, 0))
    with pytest.raises(pa.ConfigurationError, match="count is 0"):
        await anext(pa.targets.of_last(FRAMES, 0, lambda frames: frames[0]))
    with pytest.raises(pa.ConfigurationError, match="yields a str"):
        await anext(pa.targets.itself(["frame"]))  # type: ignore[list-item]
