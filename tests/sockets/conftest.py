"""Nothing may be left behind: no task, no descriptor; nothing may block the loop, and asyncio may not complain."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from blockbuster import BlockBuster

_DESCRIPTORS = Path("/proc/self/fd")


def open_sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for path in _DESCRIPTORS.iterdir() if _DESCRIPTORS.exists() else ():
        with suppress(OSError):  # that of the listing itself
            count += str(path.readlink()).startswith("socket:")
    return count


@pytest_asyncio.fixture
async def _clean_loop() -> AsyncIterator[None]:
    """Compare tasks and sockets before and after, while the test's loop is still there."""
    before = open_sockets()
    yield
    # A transport that was closed says so in the loop's next turns.
    end = time.monotonic() + 20.0
    while open_sockets() > before and time.monotonic() < end:  # noqa: ASYNC110 - nothing could set an event
        await asyncio.sleep(0.01)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"the test left tasks: {left}"
    assert open_sockets() <= before, "the test left sockets"


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Hold every asynchronous test of this folder to it."""
    if not pytest_asyncio.is_async_test(request.node):
        yield
        return
    request.getfixturevalue("_clean_loop")
    guard = BlockBuster("partime_async")
    for function in guard.functions.values():
        function.can_block_in("partime_async/devices/cpu.py", {"aclose"})
        function.can_block_in("partime_async/offload.py", {"in_thread"})
    guard.activate()
    yield
    guard.deactivate()
    gc.collect(0)
    complaints = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name in ("asyncio", "partime_async.sockets.listener")
    ]
    assert not complaints, f"the loop or the listener complained: {complaints}"
