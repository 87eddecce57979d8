"""`ThreadedSink`, on both event loops."""

from __future__ import annotations

import asyncio
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest

from partime_async.errors import ConfigurationError, DeadlineExceeded, SinkError
from partime_async.sinks import ThreadedSink, VideoWriter
from partime_async.sources import VideoFile
from tests.sources.clips import number_of, numbered


def sink_threads() -> list[str]:
    """Name the threads of sinks that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sink-")]


class Notebook:
    """A sink that notes what it gets, may be held up by the test, and fails at the item `fails_at`."""

    def __init__(self, *, is_open: bool = True, fails_at: int | None = None, fails_to_close: bool = False) -> None:
        self.items: list[int] = []
        self.ends: list[str] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.fails_at = fails_at
        self.fails_to_close = fails_to_close
        if is_open:
            self.gate.set()

    def write(self, item: int) -> None:
        """Note one item."""
        self.threads.add(threading.get_ident())
        self.gate.wait()
        if item == self.fails_at:
            raise OSError(f"no room for {item}")
        self.items.append(item)

    def close(self) -> None:
        """Note the good end."""
        self.threads.add(threading.get_ident())
        if self.fails_to_close:
            raise OSError("will not close")
        self.ends.append("closed")

    def abort(self) -> None:
        """Note the bad end."""
        self.threads.add(threading.get_ident())
        self.ends.append("aborted")


@pytest.fixture
def writer(tmp_path: Path) -> VideoWriter:
    """Open a real writer where that may block."""
    return VideoWriter(tmp_path / "a.mp4", frame_rate=25)


async def turn() -> None:
    """Let every task run as far as it can without the other threads."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_threaded_sink_writes_a_video_without_blocking_the_loop(writer: VideoWriter, tmp_path: Path) -> None:
    """A real encoder gets every picture in order, with its position, and the loop never touches the disk."""
    async with ThreadedSink(writer, capacity=2) as sink:
        for index in range(30):
            await sink.write(numbered(index, (64, 48)), position_s=index * 0.1)
    frames = list(VideoFile(tmp_path / "a.mp4"))
    assert [number_of(frame.image) for frame in frames if frame.image is not None] == list(range(30))
    assert frames[-1].position_s == pytest.approx(2.9, abs=1e-3)
    assert not sink_threads()


async def test_threaded_sink_does_everything_in_one_thread() -> None:
    """Write and close come from one thread, which is not the loop's and is gone afterwards."""
    notebook = Notebook()
    async with ThreadedSink(notebook) as sink:
        for item in range(100):
            await sink.write(item)
    assert notebook.items == list(range(100))
    assert notebook.ends == ["closed"]
    assert len(notebook.threads) == 1
    assert threading.get_ident() not in notebook.threads
    assert not sink_threads()


async def test_threaded_sink_that_is_slow_holds_the_writer_back() -> None:
    """At most `capacity` items wait; the next write waits for room."""
    notebook = Notebook(is_open=False)
    sink = ThreadedSink(notebook, capacity=3)
    for item in range(3):
        await sink.write(item)
    fourth = asyncio.ensure_future(sink.write(3))
    await turn()
    assert not fourth.done()
    notebook.gate.set()
    await fourth
    await sink.aclose()
    assert notebook.items == [0, 1, 2, 3]


async def test_threaded_sink_with_many_writers_serves_them_in_order() -> None:
    """Tasks that wait for room are served in the order in which they came."""
    notebook = Notebook(is_open=False)
    sink = ThreadedSink(notebook, capacity=1)
    writers = [asyncio.ensure_future(sink.write(item)) for item in range(10)]
    await turn()
    notebook.gate.set()
    await asyncio.gather(*writers)
    await sink.aclose()
    assert notebook.items == list(range(10))


async def test_threaded_sink_write_cancelled_writes_nothing() -> None:
    """A write that is cancelled while it waits leaves no trace, and its room to the next one."""
    notebook = Notebook(is_open=False)
    sink = ThreadedSink(notebook, capacity=1)
    await sink.write(0)
    waiting = asyncio.ensure_future(sink.write(1))
    await turn()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    notebook.gate.set()
    await sink.write(2)
    await sink.aclose()
    assert notebook.items == [0, 2]


async def test_threaded_sink_that_fails_raises_to_its_writers() -> None:
    """The error of one item reaches the next writers with its traceback, ends the writing, and is raised once."""
    notebook = Notebook(is_open=False, fails_at=0)
    sink = ThreadedSink(notebook, capacity=1)
    await sink.write(0)
    waiting = [asyncio.ensure_future(sink.write(item)) for item in (1, 2)]
    await turn()
    notebook.gate.set()
    for write in waiting:
        with pytest.raises(OSError, match="no room for 0") as caught:
            await write
        assert "write" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    await sink.aclose()
    assert notebook.items == []
    assert notebook.ends == ["aborted"]
    assert not sink_threads()


async def test_threaded_sink_that_fails_at_the_last_item_raises_on_closing() -> None:
    """An error that no writer saw is raised by `aclose`, once."""
    notebook = Notebook(fails_at=0)
    sink = ThreadedSink(notebook)
    await sink.write(0)
    with pytest.raises(OSError, match="no room for 0"):
        await sink.aclose()
    await sink.aclose()
    assert notebook.ends == ["aborted"]


async def test_threaded_sink_that_cannot_close_aborts() -> None:
    """An error in closing is raised, and what was written is thrown away."""
    notebook = Notebook(fails_to_close=True)
    with pytest.raises(OSError, match="will not close"):
        async with ThreadedSink(notebook) as sink:
            await sink.write(0)
    assert notebook.ends == ["aborted"]
    assert not sink_threads()


async def test_threaded_sink_left_by_an_error_aborts() -> None:
    """An exception in the block throws away what waits and what was written."""
    notebook = Notebook(is_open=False)

    async def write_and_fail() -> None:
        async with ThreadedSink(notebook) as sink:
            for item in range(5):
                await sink.write(item)
            asyncio.get_running_loop().call_soon(notebook.gate.set)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_and_fail()
    assert len(notebook.items) <= 1
    assert notebook.ends == ["aborted"]
    assert not sink_threads()


async def test_threaded_sink_closed_refuses_writes() -> None:
    """A write after closing, or one that waits while it is closed, is refused."""
    notebook = Notebook(is_open=False)
    sink = ThreadedSink(notebook, capacity=1)
    await sink.write(0)
    waiting = asyncio.ensure_future(sink.write(1))
    await turn()
    closing = asyncio.ensure_future(sink.aclose())
    await turn()
    notebook.gate.set()
    await closing
    for write in (waiting, sink.write(2)):
        with pytest.raises(SinkError, match="the sink is closed"):
            await write
    assert notebook.items == [0]
    assert notebook.ends == ["closed"]


async def test_threaded_sink_that_was_never_written_to_is_closed() -> None:
    """Closing an unused sink closes what it stands before, in a thread."""
    notebook = Notebook()
    await ThreadedSink(notebook).aclose()
    assert notebook.ends == ["closed"]
    assert threading.get_ident() not in notebook.threads


async def test_threaded_sink_that_is_stuck_exceeds_its_deadline() -> None:
    """A sink that does not return is reported, to waiting writers too; when it returns, it aborts."""
    notebook = Notebook(is_open=False)
    sink = ThreadedSink(notebook, capacity=1)
    await sink.write(0)
    writers = [asyncio.ensure_future(sink.write(item)) for item in (1, 2)]
    await turn()
    with pytest.raises(DeadlineExceeded, match=r"Notebook did not finish within 0\.01 s"):
        await sink.aclose(timeout_s=0.01)
    for writer in writers:
        with pytest.raises(DeadlineExceeded):
            await writer
    notebook.gate.set()
    await sink.aclose()
    assert notebook.ends == ["aborted"]
    assert not sink_threads()


async def test_threaded_sink_aborted_by_hand_removes_the_file(writer: VideoWriter, tmp_path: Path) -> None:
    """Aborting leaves nothing on the disk."""
    sink = ThreadedSink(writer)
    await sink.write(np.zeros((16, 16, 3), np.uint8))
    await sink.abort()
    assert not sink_threads()
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 - the test's own look at the disk


def test_threaded_sink_whose_loop_is_gone_aborts() -> None:
    """A loop that was closed without closing the sink leaves no thread that waits for ever."""
    notebook = Notebook(is_open=False)

    async def leave() -> threading.Thread:
        await ThreadedSink(notebook).write(0)
        return next(thread for thread in threading.enumerate() if thread.name == "sink-Notebook")

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        thread = runner.run(leave())
    notebook.gate.set()
    thread.join()
    assert notebook.ends == ["aborted"]


def test_threaded_sink_without_capacity_is_refused() -> None:
    """A buffer of no items cannot take anything."""
    with pytest.raises(ConfigurationError, match="capacity is 0"):
        ThreadedSink(Notebook(), capacity=0)
