"""Ground rules of the demo's tests: an asynchronous one leaves no task and none of the library's threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

_JOIN_TIMEOUT_S = 10.0


def _is_ours(request: pytest.FixtureRequest) -> bool:
    return request.node.path.parent == Path(__file__).parent and pytest_asyncio.is_async_test(request.node)


@pytest.fixture(autouse=True)
def _leaves_no_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look at the threads once the test's loop is closed, and its executor with it."""
    before = set(threading.enumerate())
    yield
    if not _is_ours(request):
        return
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(_JOIN_TIMEOUT_S)
    alive = [thread.name for thread in left if thread.is_alive()]
    assert not alive, f"the test left threads: {alive}"


@pytest.fixture(autouse=True)
def _is_tidy(request: pytest.FixtureRequest, _leaves_no_thread: None) -> None:
    if _is_ours(request):
        request.getfixturevalue("_leaves_no_task")


@pytest_asyncio.fixture
async def _leaves_no_task() -> AsyncIterator[None]:
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:  # aiohttp's own, of connections that are closing
        await asyncio.wait(left, timeout=_JOIN_TIMEOUT_S)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"the test left tasks: {left}"
