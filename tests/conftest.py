"""Ground rules of the suite: both event loops, nothing left behind, nothing blocked, the same random numbers."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
import torch
import uvloop
from blockbuster import BlockBuster
from hypothesis import settings

from tests.certificates import Authority

# A machine that other programs use may take any time over an example.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

# The plugin for virtual time makes a loop before synchronous tests, which nobody would close; told that there is none,
# it makes none.
asyncio.set_event_loop(None)

# The threads of one operator spin while they wait for each other: where other programs want the cores, that costs a
# minute instead of a second. Stages have counts of their own.
torch.set_num_threads(1)

_JOIN_TIMEOUT_S = 10.0

_ALLOWED_TO_BLOCK = (
    # The thread's last statement has run, or is about to: nothing is left that it could wait for.
    ("partime_async/devices/cpu.py", {"aclose"}),
    ("partime_async/devices/cuda.py", {"aclose"}),
    ("partime_async/offload.py", {"in_thread"}),
    # The planner's races have a loop of their own, on a thread of their own; `plan` says that it blocks.
    ("partime_async/planning.py", {"_race", "plan"}),
)


def debugging_loop() -> asyncio.AbstractEventLoop:
    """Make asyncio's own loop, which complains about what it finds."""
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 1.0  # a busy machine is no error
    return loop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tell pytest-asyncio which loops to run each test on; virtual time exists on asyncio's loop only."""
    if item.get_closest_marker("looptime") is not None:
        return {"virtual": debugging_loop}
    return {"asyncio": debugging_loop, "uvloop": uvloop.new_event_loop}


def _is_guarded(item: pytest.Item) -> bool:
    # The folders below have fixtures, and rules, of their own.
    return pytest_asyncio.is_async_test(item) and item.path.parent == Path(__file__).parent


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return who signs a module's certificates."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random numbers, whichever tests run before it."""
    torch.manual_seed(20210)


@pytest.fixture(autouse=True)
def _no_thread_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an asynchronous test that leaves a thread once its loop is closed, or that makes asyncio complain."""
    if not _is_guarded(request.node):
        yield
        return
    before = set(threading.enumerate())
    complaints = _Complaints()
    logger = logging.getLogger("asyncio")
    logger.addHandler(complaints)
    yield
    gc.collect(0)  # futures whose exception nobody looked at complain when they are collected
    logger.removeHandler(complaints)
    if request.node.get_closest_marker("leaves_stuck_threads") is not None:
        for thread in set(threading.enumerate()) - before:
            thread.join(_JOIN_TIMEOUT_S)
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not left, f"the test left threads: {left}"
    assert not complaints.texts, f"asyncio complained: {complaints.texts}"


@pytest.fixture(autouse=True)
def _no_task_is_left(request: pytest.FixtureRequest, _no_thread_is_left: None) -> None:
    """Fail an asynchronous test that leaves a task behind."""
    if _is_guarded(request.node):
        request.getfixturevalue("_tasks_end")


@pytest_asyncio.fixture
async def _tasks_end() -> AsyncIterator[None]:
    """Look at the tasks while the test's loop is still there."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"the test left tasks: {left}"


class _Complaints(logging.Handler):
    """Keeps what asyncio logs from warnings upwards."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture(autouse=True)
def _loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an asynchronous test in which the library sleeps, waits for a lock or reads a file on the loop's thread."""
    if not _is_guarded(request.node):
        yield
        return
    guard = BlockBuster("partime_async")
    for function in guard.functions.values():
        for file, functions in _ALLOWED_TO_BLOCK:
            function.can_block_in(file, functions)
    guard.activate()
    yield
    guard.deactivate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests the time that they take where other programs want the cores."""
    for item in items:
        if item.get_closest_marker("slow") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


def pytest_configure(config: pytest.Config) -> None:
    """Declare the suite's own marker."""
    config.addinivalue_line("markers", "leaves_stuck_threads: work that cannot be interrupted ends after the test")
