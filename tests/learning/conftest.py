"""Nothing is left behind by a test of learning: no thread, and no task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import torch


@pytest.fixture(autouse=True)
def _one_thread_computes() -> Iterator[None]:
    """Let the reference compute as a stage does: PyTorch's kernels give other bits with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Fail a test that leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not left, f"the test left threads: {left}"


@pytest.fixture(autouse=True)
def _no_task_is_left(request: pytest.FixtureRequest, _no_thread_is_left: None) -> None:
    """Fail an asynchronous test that leaves a task behind."""
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_tasks_end")


@pytest_asyncio.fixture
async def _tasks_end() -> AsyncIterator[None]:
    """Look at the tasks while the test's loop is still there."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"the test left tasks: {left}"
