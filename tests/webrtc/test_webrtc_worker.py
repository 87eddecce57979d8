"""One thread, its work in order, its errors where they are awaited."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from partime_async.webrtc.worker import Worker
from tests.webrtc.calls import until


async def test_worker_does_its_work_in_order_on_one_thread_of_its_own() -> None:
    """Everything asked for is done in turn, off the loop's thread."""
    worker, seen = Worker("a worker"), []

    def note(number: int) -> str:
        seen.append(number)
        return threading.current_thread().name

    names = await asyncio.gather(*(worker.run(partial(note, number)) for number in range(5)))
    assert seen == list(range(5))
    assert set(names) == {"a worker"}
    await worker.aclose()
    await worker.aclose()


async def test_worker_raises_what_the_function_raised() -> None:
    """Errors come to who waits, StopIteration, which no future takes, as the cause of another."""
    worker = Worker("a worker")
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await worker.run(lambda: next(iter(())))
    assert await worker.run(lambda: 1) == 1
    await worker.aclose()


async def test_worker_whose_caller_was_cancelled_goes_on() -> None:
    """Only who waits is cancelled; the work ends by itself, and the next is done."""
    worker, may_end = Worker("a worker"), threading.Event()
    waiting = asyncio.ensure_future(worker.run(lambda: may_end.wait(20)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    may_end.set()
    assert await worker.run(lambda: "next") == "next"
    await worker.aclose()


async def test_worker_closed_refuses_work() -> None:
    """After closing, nothing is taken, and a worker that never worked has no thread."""
    worker = Worker("a worker")
    await worker.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await worker.run(lambda: 1)


def test_worker_of_a_loop_that_is_gone_ends() -> None:
    """A loop closed under way leaves a thread that ends with its work."""
    worker, may_end = Worker("an orphan"), threading.Event()

    async def leave() -> None:
        task = asyncio.ensure_future(worker.run(lambda: may_end.wait(20)))
        await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(leave())
    may_end.set()
    worker.close()
    asyncio.run(until(lambda: "an orphan" not in {thread.name for thread in threading.enumerate()}))
