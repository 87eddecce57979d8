"""Nothing left behind, nothing blocked: as in the folder above, for connections."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from blockbuster import BlockBuster

from partime_async.webrtc import track

_PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def _pictures_are_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no picture come twice, which one that stands for a second does, as it may on a busy machine."""
    monkeypatch.setattr(track, "_REPEAT_S", 3600.0)


@pytest_asyncio.fixture(autouse=True)
async def _no_task_is_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind."""
    yield
    # Closing a socket takes the loop a turn or two after everything of ours has ended.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=_PATIENCE_S)
    assert not left, f"the test left tasks: {left}"


@pytest.fixture(autouse=True)
def _no_thread_is_left(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that leaves a thread once its loop is closed, or that makes asyncio complain."""
    before = set(threading.enumerate())
    yield
    gc.collect(0)  # futures whose exception nobody looked at complain when they are collected
    # The loop's own executor, on which aiortc encodes, is shut down with the loop.
    left = [each for each in set(threading.enumerate()) - before if not each.name.startswith(("asyncio_", "uvloop_"))]
    for thread in left:
        thread.join(_PATIENCE_S)
    alive = [each.name for each in left if each.is_alive()]
    assert not alive, f"the test left threads: {alive}"
    complaints = [
        each.getMessage() for each in caplog.records if each.name == "asyncio" and each.levelno > logging.INFO
    ]
    assert not complaints, f"asyncio complained: {complaints}"


@pytest.fixture(autouse=True)
def _loop_is_never_blocked() -> Iterator[None]:
    """Fail a test in which the library sleeps, waits for a lock or reads a file on the loop's thread."""
    guard = BlockBuster("partime_async")
    for function in guard.functions.values():
        function.can_block_in("partime_async/offload.py", {"in_thread"})
        function.can_block_in("partime_async/planning.py", {"_race", "plan"})
        function.can_block_in("partime_async/devices/cpu.py", {"aclose"})
    guard.activate()
    yield
    guard.deactivate()
