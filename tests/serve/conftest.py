"""Ground rules of the server's tests: nothing is left behind or blocked, and asyncio has nothing to complain of."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from blockbuster import BlockBuster

_JOIN_TIMEOUT_S = 10.0

_ALLOWED_TO_BLOCK = (
    # The thread's last statement has run, or is about to: nothing is left that it could wait for.
    ("partime_async/devices/cpu.py", {"aclose"}),
    ("partime_async/offload.py", {"in_thread"}),
)


def _is_ours(request: pytest.FixtureRequest) -> bool:
    is_here = request.node.path.parent == Path(__file__).parent
    return is_here and pytest_asyncio.is_async_test(request.node)


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an asynchronous test that leaves one of the library's threads, or that makes asyncio or aiohttp complain."""
    if not _is_ours(request):
        yield
        return
    before = set(threading.enumerate())
    complaints = _Complaints()
    loggers = [logging.getLogger(name) for name in ("asyncio", "aiohttp")]
    for logger in loggers:
        logger.addHandler(complaints)
    yield
    gc.collect(0)
    for logger in loggers:
        logger.removeHandler(complaints)
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(_JOIN_TIMEOUT_S)
    alive = [thread.name for thread in left if thread.is_alive()]
    assert not alive, f"the test left threads: {alive}"
    assert not complaints.texts, f"complaints: {complaints.texts}"


@pytest.fixture(autouse=True)
def _loop_is_never_blocked_here(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an asynchronous test in which the library sleeps, waits for a lock or reads a file on the loop's thread."""
    if not _is_ours(request):
        yield
        return
    guard = BlockBuster("partime_async")
    for function in guard.functions.values():
        for file, functions in _ALLOWED_TO_BLOCK:
            function.can_block_in(file, functions)
    guard.activate()
    yield
    guard.deactivate()


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest, _quiet: None) -> None:
    """Fail an asynchronous test that leaves a task."""
    if _is_ours(request):
        request.getfixturevalue("_no_task_is_left_here")


@pytest_asyncio.fixture
async def _no_task_is_left_here() -> AsyncIterator[None]:
    """Look at the tasks while the test's loop is still there."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:  # aiohttp's own, of connections that are closing
        await asyncio.wait(left, timeout=_JOIN_TIMEOUT_S)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"the test left tasks: {left}"
