"""Blocking functions on threads of their own, and coroutines that clean up whatever happens."""

from __future__ import annotations

import asyncio
import threading
import traceback

import pytest

from partime_async.offload import in_thread, is_being_cancelled, to_the_end
from tests.bench import steps
from tests.nets import Gate


async def test_in_thread_returns_what_the_function_returns() -> None:
    """The function runs on a thread of the given name, and its result comes back, also if that is None."""
    assert await in_thread(lambda: threading.current_thread().name, name="worker") == "worker"
    nothing: object = await in_thread(lambda: None, name="worker")
    assert nothing is None


async def test_in_thread_raises_what_the_function_raises() -> None:
    """An exception comes with the traceback of where it was raised."""

    def fail() -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing") as caught:
        await in_thread(fail, name="worker")
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "fail"


async def test_in_thread_of_a_function_that_raises_stop_iteration_does_not_hang() -> None:
    """StopIteration, which no coroutine may raise, comes as the cause of a RuntimeError."""
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        await in_thread(lambda: next(iter(())), name="worker")
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_in_thread_cancelled_waits_for_the_function_to_end() -> None:
    """A cancelled caller is told only when the function has ended: nothing goes on behind its back."""
    gate, ended = Gate(), threading.Event()

    def work() -> None:
        gate.go_through()
        ended.set()

    gate.close()
    waiting = asyncio.ensure_future(in_thread(work, name="worker"))
    await gate.reached()
    waiting.cancel()
    await steps()
    assert not waiting.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_in_thread_leaves_the_default_executor_alone() -> None:
    """The loop's few default threads, which others need, take no part."""
    await in_thread(lambda: None, name="worker")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]


async def test_to_the_end_returns_and_raises_as_the_work_does() -> None:
    """Without a cancellation, results and errors pass through."""

    async def give() -> int:
        return 7

    async def fail() -> int:
        raise KeyError("missing")

    assert await to_the_end(give(), name="work") == 7
    with pytest.raises(KeyError):
        await to_the_end(fail(), name="work")


@pytest.mark.parametrize("is_failing", [False, True])
async def test_to_the_end_cancelled_again_and_again_comes_to_the_end(is_failing: bool) -> None:
    """However often the caller is cancelled, the work runs on undisturbed; then the cancellation is raised."""
    done: list[str] = []

    async def work() -> None:
        await steps(20)
        done.append("work")
        if is_failing:
            raise KeyError

    waiting = asyncio.ensure_future(to_the_end(work(), name="work"))
    for _ in range(5):
        await steps(2)
        waiting.cancel()
    assert not done
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == ["work"]


async def test_cancellation_from_outside_is_told_from_one_that_came_up() -> None:
    """A task knows whether it is being cancelled, or whether what it awaits was."""
    seen: list[bool] = []

    async def wait_for(future: asyncio.Future[None]) -> None:
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            seen.append(is_being_cancelled())

    for is_from_outside in (True, False):
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(wait_for(future))
        await steps()
        (task if is_from_outside else future).cancel()
        await task
    assert seen == [True, False]
