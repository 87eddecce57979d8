"""A video to send: the newest picture wins, stamps increase, and every end is clean."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from aiortc import MediaStreamError

import partime_async as pa
from partime_async.webrtc import PictureStatistics, PictureTrack
from partime_async.webrtc import track as track_module
from tests.webrtc.calls import number_in, picture, until


def assert_accounted(counts: PictureStatistics) -> None:
    """Check that every picture is in one place."""
    assert counts.shown == counts.sent + counts.superseded + counts.waiting


async def test_track_sends_the_newest_picture() -> None:
    """Of the pictures shown before the encoder asks, the last is sent and the others counted."""
    track = PictureTrack()
    for number in range(3):
        track.show(picture(number), captured_at=time.monotonic())
    assert track.statistics().waiting == 1
    frame = await track.recv()
    assert frame.format.name == "yuv420p"
    assert number_in(frame) == 2
    counts = track.statistics()
    assert (counts.shown, counts.sent, counts.superseded, counts.age_s.count) == (3, 1, 2, 1)
    await track.aclose()


async def test_track_waits_for_a_picture() -> None:
    """Without one, the encoder waits; it wakes with the next."""
    track = PictureTrack()
    asked = asyncio.ensure_future(track.recv())
    await asyncio.sleep(0)
    assert track.show(picture(5))
    assert number_in(await asked) == 5
    await track.aclose()


async def test_track_without_news_sends_the_last_picture_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the last picture is repeated, with a later stamp, and counted apart."""
    monkeypatch.setattr(track_module, "_REPEAT_S", 0.02)
    track = PictureTrack()
    track.show(picture(1))
    frames = [await track.recv() for _ in range(3)]
    assert [number_in(frame) for frame in frames] == [1, 1, 1]
    stamps = [frame.pts or 0 for frame in frames]
    assert stamps == sorted(set(stamps))
    assert (track.statistics().sent, track.statistics().repeated) == (1, 2)
    assert_accounted(track.statistics())
    await track.aclose()


async def test_track_paces_pictures_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures may follow each other at once; a third has to wait for its turn, and a newer one takes its place."""
    track = PictureTrack(frame_rate=0.001)
    for number in range(2):
        track.show(picture(number))
        await track.recv()
    track.show(picture(2))
    asked = asyncio.ensure_future(track.recv())
    await asyncio.sleep(0.02)
    track.show(picture(3))
    await asyncio.sleep(0.02)
    assert not asked.done()
    assert track.statistics().superseded == 1
    track.stop()
    with pytest.raises(MediaStreamError):
        await asked
    assert_accounted(track.statistics())
    await track.aclose()


async def test_track_of_odd_pictures_leaves_the_last_row_and_column_out() -> None:
    """Codecs halve both sides for the colours: an odd picture loses a line, not the connection."""
    track = PictureTrack()
    track.show(np.zeros((41, 33, 3), np.uint8))
    frame = await track.recv()
    assert (frame.width, frame.height) == (32, 40)
    await track.aclose()


async def test_track_stopped_while_waiting_ends() -> None:
    """Whoever waits for a picture learns the end, and no picture can be shown any more."""
    track = PictureTrack()
    asked = asyncio.ensure_future(track.recv())
    await asyncio.sleep(0)
    track.stop()
    with pytest.raises(MediaStreamError):
        await asked
    assert not track.show(picture(1))
    with pytest.raises(MediaStreamError):
        await track.recv()
    await track.aclose()


async def test_track_cancelled_while_waiting_loses_no_picture() -> None:
    """A picture shown after the cancellation is sent to the next who asks."""
    track = PictureTrack()
    asked = asyncio.ensure_future(track.recv())
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    track.show(picture(8))
    assert number_in(await track.recv()) == 8
    await track.aclose()


async def test_track_cancelled_while_converting_counts_the_picture() -> None:
    """A picture that is being converted is let go, and the accounts add up."""
    track = PictureTrack()
    track.show(picture(1))
    asked = asyncio.ensure_future(track.recv())
    await until(lambda: track.statistics().waiting == 0 or track._newest is None)
    asked.cancel()
    await asyncio.wait([asked])
    assert_accounted(track.statistics())
    assert track.statistics().waiting == 0
    await track.aclose()


async def test_track_asked_by_two_refuses_the_second() -> None:
    """Two peers would each get half of the pictures: the second is told so."""
    track = PictureTrack()
    asked = asyncio.ensure_future(track.recv())
    await asyncio.sleep(0)
    with pytest.raises(pa.SinkError, match="one for each peer"):
        await track.recv()
    track.stop()
    with pytest.raises(MediaStreamError):
        await asked
    await track.aclose()


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((1, 4, 3), np.uint8)])
async def test_track_refuses_what_is_no_picture(image: np.ndarray) -> None:
    """Another dtype or shape is the caller's error, told at once."""
    track = PictureTrack()
    with pytest.raises(pa.FrameError, match="a picture is uint8"):
        track.show(image)
    await track.aclose()


async def test_track_refuses_a_rate_that_cannot_be() -> None:
    """A rate is positive."""
    with pytest.raises(pa.ConfigurationError, match="frame rate"):
        PictureTrack(frame_rate=0)
