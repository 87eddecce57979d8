"""Frames of a real video: the newest wins, the rest is counted, the stamps are right, and every end is clean."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest
import torch
from aiortc import AudioStreamTrack, MediaStreamError, MediaStreamTrack, RTCPeerConnection
from av import VideoFrame
from torch import Tensor

import partime_async as pa
from partime_async.picture import Image
from partime_async.webrtc import WebRTCFrames, WebRTCStatistics, webrtc_frames
from partime_async.webrtc.pictures import PictureWriter
from tests.webrtc.calls import PATIENCE_S, calling, number_of, picture, until


class Clip(MediaStreamTrack):
    """A track of our own that always has a picture at once, and ends, or fails."""

    kind = "video"

    def __init__(self, count: int, error: Exception | None = None) -> None:
        super().__init__()
        self._count, self._error = count, error

    async def recv(self) -> VideoFrame:
        """Return the next picture."""
        if not self._count:
            raise self._error or MediaStreamError
        self._count -= 1
        return PictureWriter().write(picture(self._count))


def assert_accounted(counts: WebRTCStatistics) -> None:
    """Check that every picture is in one place."""
    assert counts.received == counts.delivered + counts.superseded + counts.failed + counts.waiting


async def next_of(frames: WebRTCFrames) -> pa.SourceFrame:
    """Return the next frame; a test does not wait for ever."""
    async with asyncio.timeout(PATIENCE_S):
        return await anext(frames)


async def test_frames_of_a_video_have_value_image_and_stamps() -> None:
    """A frame is a float tensor of the size asked for, with the picture as it came and when it was taken."""
    async with calling() as call, webrtc_frames(call.video, size=(48, 64)) as frames:
        before = time.monotonic()
        await call.show(7)
        frame = await next_of(frames)
        assert isinstance(frame.value, Tensor)
        assert frame.value.shape == (1, 3, 48, 64)
        assert frame.value.dtype == torch.float32
        assert 0.0 <= float(frame.value.min()) <= float(frame.value.max()) <= 1.0
        assert frame.image is not None
        assert frame.image.shape == (240, 320, 3)
        assert number_of(frame.image) == 7
        assert frame.captured_at is not None
        assert before <= frame.captured_at <= time.monotonic()
        assert frame.position_s == 0.0
        assert frames.statistics().is_early


async def test_frames_of_a_slow_reader_are_the_newest_and_the_rest_is_counted() -> None:
    """Pictures that come while nobody asks are superseded one by one, and the last is the one given."""
    async with calling() as call, webrtc_frames(call.video) as frames:
        for number in range(6):
            await call.show(number)
        assert number_of((await next_of(frames)).image) == 5
        counts = frames.statistics()
        assert (counts.received, counts.delivered, counts.superseded, counts.waiting) == (6, 1, 5, 0)
        await call.show(6)
        assert frames.statistics().waiting == 1
        assert_accounted(frames.statistics())


async def test_frames_carry_strictly_increasing_stamps() -> None:
    """Both the time of capture and the sender's position grow from frame to frame."""
    async with calling() as call, webrtc_frames(call.video) as frames:
        found = []
        for number in range(5):
            await call.show(number)
            frame = await next_of(frames)
            found.append((frame.captured_at or 0.0, frame.position_s or 0.0))
        assert all(one[0] < two[0] and one[1] < two[1] for one, two in itertools.pairwise(found))


async def test_frames_with_size_survive_a_change_of_resolution() -> None:
    """Where a size is given, values keep it, and pictures come as they are."""
    async with calling() as call, webrtc_frames(call.video, size=(32, 32)) as frames:
        await call.show(1)
        assert (await next_of(frames)).image is not None
        await call.show(2, height=480, width=640)
        frame = await next_of(frames)
        assert isinstance(frame.value, Tensor)
        assert frame.value.shape == (1, 3, 32, 32)
        assert frame.image is not None
        assert frame.image.shape == (480, 640, 3)
        assert (frames.statistics().size, frames.statistics().resolution_changes) == ((480, 640), 1)


async def test_frames_without_size_name_the_change_of_resolution() -> None:
    """Where no size is given, a change is an error that says what to pass, and the counts add up."""
    async with calling() as call, webrtc_frames(call.video) as frames:
        await call.show(1)
        await next_of(frames)
        await call.show(2, height=480, width=640)
        with pytest.raises(pa.SourceError, match=r"from 320x240 to 640x480.*size=\(height, width\)"):
            await next_of(frames)
        assert frames.statistics().failed == frames.statistics().errors == 1
        assert_accounted(frames.statistics())


async def test_frames_end_when_the_other_side_leaves() -> None:
    """The iteration ends by itself, with what was taken before."""
    async with calling() as call:
        await call.show(1)
        frames = webrtc_frames(call.video)
        numbers = [number_of((await next_of(frames)).image)]
        await call.caller.close()
        async with asyncio.timeout(PATIENCE_S):
            numbers += [number_of(frame.image) async for frame in frames]
        assert numbers == [1]
        assert_accounted(frames.statistics())


async def test_frames_closed_while_read_end_there_and_another_reader_goes_on() -> None:
    """Closing lets the waiting reader go; the video itself lives, so a new source takes over."""
    async with calling() as call:
        frames = webrtc_frames(call.video)
        reader = asyncio.ensure_future(anext(frames, None))
        await asyncio.sleep(0)
        await frames.aclose()
        assert await reader is None
        await call.show(2)
        async with webrtc_frames(call.video) as others:
            waiting = asyncio.ensure_future(next_of(others))
            assert number_of((await waiting).image) == 2
            waiting = asyncio.ensure_future(next_of(others))
            await asyncio.sleep(0)
            await frames.aclose()
            await call.show(3)
            assert number_of((await waiting).image) == 3
            for each in (frames, others):
                assert_accounted(each.statistics())
            assert (frames.statistics().received, others.statistics().received) == (0, 2)


async def test_frames_cancelled_while_waiting_lose_nothing() -> None:
    """A picture that comes after the cancellation is there for the next call."""
    async with calling() as call, webrtc_frames(call.video) as frames:
        reader = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
        await call.show(4)
        assert number_of((await next_of(frames)).image) == 4


async def test_frames_cancelled_while_converting_are_counted_as_superseded() -> None:
    """A picture that is being converted is let go, and the next one comes."""
    is_converting, may_go_on = threading.Event(), threading.Event()

    def slow(image: Image) -> Tensor:
        is_converting.set()
        may_go_on.wait(PATIENCE_S)
        return torch.zeros(1)

    async with calling() as call, webrtc_frames(call.video, to_value=slow) as frames:
        await call.show(1)
        reader = asyncio.ensure_future(anext(frames))
        await until(is_converting.is_set)
        assert (frames.statistics().waiting, call.video.intake.waiting) == (1, 0)
        reader.cancel()
        await asyncio.wait([reader])
        may_go_on.set()
        assert (frames.statistics().superseded, frames.statistics().waiting) == (1, 0)
        await call.show(2)
        assert number_of((await next_of(frames)).image) == 2


async def test_frames_with_failing_to_value_raise_it_and_go_on() -> None:
    """What the user's function raises reaches the reader, is counted, and the next frame comes."""
    seen: list[tuple[int, ...]] = []

    def fussy(image: Image) -> Tensor:
        seen.append(image.shape)
        if len(seen) == 1:
            raise ArithmeticError("not this one")
        return torch.zeros(1)

    async with calling() as call, webrtc_frames(call.video, size=(20, 30), to_value=fussy) as frames:
        await call.show(1)
        with pytest.raises(ArithmeticError, match="not this one"):
            await next_of(frames)
        await call.show(2)
        frame = await next_of(frames)
        assert isinstance(frame.value, Tensor)
        assert frame.value.shape == (1,)
        assert seen == [(20, 30, 3)] * 2
        assert frames.statistics().failed == 1
        assert_accounted(frames.statistics())


async def test_frames_without_image_carry_none() -> None:
    """With keep_image off, only the value is made."""
    async with calling() as call, webrtc_frames(call.video, size=(8, 8), keep_image=False) as frames:
        await call.show(1)
        assert (await next_of(frames)).image is None


async def test_frames_read_by_two_tasks_refuse_the_second() -> None:
    """A second reader would take the other's frames: it is told so."""
    async with calling() as call, webrtc_frames(call.video) as frames:
        reader = asyncio.ensure_future(anext(frames, None))
        await asyncio.sleep(0)
        with pytest.raises(pa.SourceError, match="Let one task read"):
            await anext(frames)
        await frames.aclose()
        await reader


async def test_frames_of_any_track_of_aiortcs_come_and_end() -> None:
    """A track that comes from no peer is drained just so, its end is the iteration's."""
    async with webrtc_frames(Clip(5)) as frames:
        numbers = [number_of(frame.image) async for frame in frames]
        assert numbers[-1] == 0
        counts = frames.statistics()
        assert (counts.received, counts.undecodable, counts.is_early) == (5, None, False)
        assert_accounted(counts)


async def test_frames_of_a_broken_track_raise_its_error() -> None:
    """What the track raises comes after the pictures before."""
    async with webrtc_frames(Clip(1, OSError("unplugged"))) as frames:
        assert number_of((await next_of(frames)).image) == 0
        with pytest.raises(OSError, match="unplugged"):
            await next_of(frames)


async def test_frames_of_an_endless_track_closed_leave_no_task() -> None:
    """Closing ends the draining of a track that would never end."""
    frames = webrtc_frames(Clip(10**9))
    await next_of(frames)
    await frames.aclose()
    await frames.aclose()
    assert await anext(frames, None) is None
    assert_accounted(frames.statistics())


async def test_frames_enter_a_pipeline_as_they_come() -> None:
    """The source fits `Pipeline.stream`, and results know their frame."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    async with calling() as call, pa.Pipeline(module, torch.zeros(1, 3, 16, 16), stages=1) as pipeline:
        async with asyncio.timeout(PATIENCE_S):
            results = pipeline.stream(webrtc_frames(call.video, size=(16, 16)), overflow="latest")
            await call.show(9)
            result = await anext(results)
            assert isinstance(result.context, pa.SourceFrame)
            assert number_of(result.context.image) == 9
            assert result.captured_at == result.context.captured_at
            await results.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_frames_refuse_what_is_no_video() -> None:
    """Audio, a size that cannot be, and a connection without the track are the caller's errors."""
    with pytest.raises(pa.ConfigurationError, match="the track is audio"):
        webrtc_frames(AudioStreamTrack())
    with pytest.raises(pa.ConfigurationError, match="no picture size"):
        webrtc_frames(Clip(1), size=(0, 5))
    connection = RTCPeerConnection()
    with pytest.raises(pa.ConfigurationError, match="no receiver with this track"):
        webrtc_frames(Clip(1), connection=connection)
    await connection.close()
