"""The browser's benchmark's own parts: what its page measured, as figures; numbers in what its camera plays."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.live import stamp
from benchmarks.live.chromium_clip import RATE_HZ, write_clip
from benchmarks.live.chromium_contestants import ChromiumSpec, measured
from benchmarks.live.contestants import OURS
from benchmarks.live.fastrtc_peer import FastRtc
from benchmarks.live.networks import TINY
from benchmarks.record import BenchmarkError, Measurement

PERIOD_MS = 100.0


def a_call(pictures: int = 100) -> dict[str, object]:
    """Return what a page finds whose pictures are decoded 40 ms after they are taken, and shown 10 ms later."""
    taken = [[float(number), number * PERIOD_MS] for number in range(pictures)]
    decoded = [[number, at + 40.0] for number, at in taken]
    shown = [[number, at + 50.0, at + 35.0] for number, at in taken]
    return {
        "begin": 1000.0,
        "end": 9000.0,
        "taken": taken,
        "decoded": [*decoded, [None, 3000.0]],
        "shown": [*shown, [7.0, 5000.0, 4990.0], [None, 3000.0, 2990.0]],
        "before": {
            "inbound.framesDecoded": 10,
            "inbound.jitterBufferDelay": 1.0,
            "inbound.jitterBufferEmittedCount": 10,
        },
        "after": {
            "inbound.framesDecoded": 90,
            "inbound.jitterBufferDelay": 1.8,
            "inbound.jitterBufferEmittedCount": 90,
        },
    }


def test_figures_of_a_page_count_each_picture_once_and_within_the_time() -> None:
    """A picture shown again, or without a number, counts for nothing; times are from its being taken."""
    figures = measured(a_call()).figures
    assert figures["decoded_p50_ms"] == figures["decoded_p99_ms"] == pytest.approx(40.0)
    assert figures["shown_p95_ms"] == pytest.approx(50.0)
    assert figures["received_to_shown_p50_ms"] == pytest.approx(15.0)
    assert figures["shown_per_s"] == pytest.approx(10.0, rel=0.02)
    assert figures["decoded_per_s"] == pytest.approx(10.0)
    assert figures["jitter_buffer_ms"] == pytest.approx(10.0)
    assert figures["unreadable"] == 1


def test_figures_of_a_clip_that_begins_again_are_of_its_latest_pass() -> None:
    """A number that the camera shows a second time is measured from then."""
    call = a_call()
    for name in ("taken", "decoded", "shown"):
        rows = call[name]
        assert isinstance(rows, list)
        call[name] = [[None if row[0] is None else row[0] % 40, *row[1:]] for row in rows]
    assert measured(call).figures["shown_p99_ms"] == pytest.approx(50.0)


def test_figures_of_a_page_that_saw_nothing_are_an_error() -> None:
    """Nothing measured is told, not averaged."""
    with pytest.raises(BenchmarkError, match="0 pictures came back"):
        measured({**a_call(), "decoded": [], "shown": []})


def test_camera_clip_has_its_numbers_in_order(tmp_path: Path) -> None:
    """Every picture of the clip that Chromium's camera plays can be told apart."""
    path = tmp_path / "camera.mjpeg"
    write_clip(path, seconds=0.5)
    with av.open(str(path)) as clip:
        pictures = [frame.reformat(format="yuv420p").to_ndarray() for frame in clip.decode(video=0)]
    assert [stamp.read(np.asarray(picture, np.uint8)[: stamp.HEIGHT]) for picture in pictures] == list(
        range(RATE_HZ // 2)
    )


async def test_fastrtc_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends instead of serving is told of, with how to see why."""
    monkeypatch.setattr("benchmarks.live.fastrtc_peer._PYTHON", Path("/bin/true"))
    with pytest.raises(BenchmarkError, match="FastRTC ended"):
        async with FastRtc(TINY, skips_frames=False, warm_up_s=0.0):
            pass


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_page_in_a_browser_reads_the_numbers_of_what_comes_back(tmp_path: Path) -> None:
    """The camera's pictures go through a network and back, and the page tells each by its number."""
    clip = tmp_path / "camera.mjpeg"
    write_clip(clip, seconds=30.0)

    async def call() -> Measurement:
        async with ChromiumSpec(OURS, TINY, clip, warm_up_s=0.5).open() as contestant:
            return await contestant.run(2.0)

    figures = asyncio.run(call()).figures
    assert figures["seen_per_s"] > 0
    assert figures["shown_p50_ms"] > 0
    assert figures["decoded_per_s"] > 0
    assert figures["width"] == stamp.WIDTH
