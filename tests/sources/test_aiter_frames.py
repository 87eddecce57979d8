"""`aiter_frames`, on both event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from partime_async.errors import ConfigurationError
from partime_async.sources import Scene, SourceFrame, VideoFile, aiter_frames
from tests.sources.clips import installed_clip


def source_threads() -> list[str]:
    """Name the threads of sources that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("source-")]


async def test_aiter_frames_of_a_real_video_gives_its_frames() -> None:
    """A clip from the world streams through, and leaves no thread."""
    async with VideoFileFrames(installed_clip("carphone_pristine.mp4")) as positions:
        assert len(positions) == 120
        assert positions == sorted(positions)
    assert not source_threads()


class VideoFileFrames:
    """Reads all positions of a clip through `aiter_frames`."""

    def __init__(self, path: Path) -> None:
        self.frames = aiter_frames(VideoFile(path, size=(32, 32)))

    async def __aenter__(self) -> list[float]:
        return [frame.position_s or 0.0 async for frame in self.frames]

    async def __aexit__(self, *_: object) -> None:
        await self.frames.aclose()


@pytest.mark.parametrize("frames", [[1, 2, 3], (1, 2, 3)])
async def test_aiter_frames_of_a_sequence_reads_it_in_place(frames: list[int] | tuple[int, ...]) -> None:
    """Lists and tuples need no thread; closing ends them."""
    iterator = aiter_frames(frames)
    assert await anext(iterator) == 1
    assert not source_threads()
    await iterator.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)


async def test_aiter_frames_of_a_tensor_gives_its_first_dimension() -> None:
    """A tensor is a batch of frames; each keeps a batch dimension of one."""
    batch = torch.arange(6.0).reshape(3, 2)
    frames = [frame async for frame in aiter_frames(batch)]
    assert [frame.shape for frame in frames] == [(1, 2)] * 3
    assert torch.equal(torch.cat(frames), batch)


async def test_aiter_frames_of_a_long_sequence_lets_the_loop_turn() -> None:
    """A reader that never waits does not keep other tasks from running."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.ensure_future(tick())
    async for _ in aiter_frames([0] * 1000):
        pass
    ticker.cancel()
    assert ticks >= 50


async def test_aiter_frames_of_an_async_generator_passes_it_on_and_closes_it() -> None:
    """The user's own asynchronous iterator is read as it is and closed with `aclose`."""
    is_closed = False

    async def frames() -> AsyncIterator[int]:
        nonlocal is_closed
        try:
            for index in range(10):
                yield index
        finally:
            is_closed = True

    iterator = aiter_frames(frames())
    assert await anext(iterator) == 0
    assert not source_threads()
    await iterator.aclose()
    assert is_closed


async def test_aiter_frames_of_an_async_iterator_without_aclose_closes_quietly() -> None:
    """An asynchronous iterator that cannot be closed is fine."""

    class Endless:
        def __aiter__(self) -> Endless:
            return self

        async def __anext__(self) -> int:
            return 7

    iterator = aiter_frames(Endless())
    assert await anext(iterator) == 7
    await iterator.aclose()


@pytest.mark.parametrize("source", ["clip.mp4", b"clip", 7, None])
def test_aiter_frames_of_what_is_no_source_is_refused(source: object) -> None:
    """Texts, numbers and nothing are refused with what to give instead."""
    with pytest.raises(ConfigurationError, match=r"is no source of frames.*open_source"):
        aiter_frames(source)  # type: ignore[call-overload]


async def test_aiter_frames_twice_over_one_source_gives_all_frames_twice() -> None:
    """A source that was closed through its iterator can be iterated anew."""
    scene = Scene(size=(16, 16), frames=3)
    for _ in range(2):
        iterator = aiter_frames(scene)
        frames: list[SourceFrame] = [frame async for frame in iterator]
        await iterator.aclose()
        assert [frame.position_s for frame in frames] == pytest.approx([0, 1 / 30, 2 / 30])
