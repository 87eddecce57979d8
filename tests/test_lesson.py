"""The learning half of a stage's task: which gradient an event waits for, where its own goes, who hears of errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.clock import MonotonicClock
from partime_async.devices import CpuDevice, DeviceEvent, DeviceStream, Notifier, ready
from partime_async.errors import WorkAborted
from partime_async.flight import Frame
from partime_async.learning import StageLearner
from partime_async.lesson import GradientLink, Lesson, gradient_link
from partime_async.offload import in_thread
from tests.bench import Bench
from tests.learning.school import SGD, WIDTH, mse
from tests.nets import TIMEOUT_S

INPUT = torch.ones(1, WIDTH)


def _frame(index: int, target: Tensor | None = INPUT) -> Frame:
    frame = Frame(Bench().feed, index, INPUT, target=target, captured_at=0.0, context=None)
    frame.index, frame.lesson_target = index, target
    frame.is_lesson = frame.may_be_lesson = target is not None
    return frame


@asynccontextmanager
async def _stream() -> AsyncIterator[DeviceStream]:
    notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())
    stream = CpuDevice().open_stream("stage", notifier=notifier, clock=MonotonicClock())
    try:
        yield stream
    finally:
        await stream.aclose(TIMEOUT_S)


async def _lesson(
    stream: DeviceStream,
    stage: int,
    *,
    lag: int = 1,
    incoming: GradientLink | None = None,
    outgoing: GradientLink | None = None,
    on_error: Callable[[BaseException, int], None] = lambda error, index: None,
    loss: Callable[..., Tensor] = mse,
) -> Lesson:
    learner = pa.Learner(loss, SGD, rule=pa.UpdateRule("stash", lag))
    # On a thread, as a pipeline does: to make an optimiser, PyTorch looks at files.
    made = await in_thread(lambda: StageLearner(learner, nn.Linear(WIDTH, WIDTH), stage, 2), name="building")
    return Lesson(
        made,
        stream=stream,
        rule=learner.rule,
        reach=learner.rule.delay(stage, 2),
        incoming=incoming,
        outgoing=outgoing,
        on_error=on_error,
    )


async def _done(stream: DeviceStream) -> None:
    """Wait until all that is enqueued was done and announced."""
    done = asyncio.get_running_loop().create_future()
    stream.enqueue(lambda value: value, ready(()), lambda _: done.set_result(None))
    await asyncio.wait_for(done, TIMEOUT_S)


async def _step(stream: DeviceStream, lesson: Lesson, frame: Frame) -> DeviceEvent:
    event = stream.enqueue(lesson.forward(frame), ready(INPUT))
    await asyncio.wait_for(lesson.learn(frame), TIMEOUT_S)
    return event


async def test_lesson_of_the_last_stage_gives_the_frame_its_loss_and_the_link_its_gradient() -> None:
    """The forward pass notes weight version and loss; the backward pass brings one gradient per frame, in order."""
    link = gradient_link(1)
    async with _stream() as stream:
        lesson = await _lesson(stream, 1, outgoing=link)
        frames = [_frame(0), _frame(1, None)]
        for frame in frames:
            await _step(stream, lesson, frame)
        await _done(stream)
    assert [frame.versions for frame in frames] == [[0], [1]]
    assert frames[0].loss is not None
    assert frames[1].loss is None
    first, second = (link.get_nowait().value for _ in range(2))
    assert isinstance(first, tuple)
    assert [tensor.shape for tensor in first] == [INPUT.shape]
    assert second == ()


@pytest.mark.parametrize("lag", [0, 1, 3])
async def test_lesson_before_the_last_stage_waits_for_the_gradient_of_lag_events_before(lag: int) -> None:
    """The first `lag` events need none; each later one takes the next of the link, and waits until it is there."""
    link = gradient_link(lag)
    async with _stream() as stream:
        lesson = await _lesson(stream, 0, lag=lag, incoming=link)
        for index in range(lag):
            await _step(stream, lesson, _frame(index))
        stream.enqueue(lesson.forward(_frame(lag)), ready(INPUT))
        waiting = asyncio.ensure_future(lesson.learn(_frame(lag)))
        await asyncio.sleep(0)
        assert not waiting.done()
        link.put_nowait(ready((torch.ones(1, WIDTH),)))
        await asyncio.wait_for(waiting, TIMEOUT_S)
        await _done(stream)
        assert lesson.learner.statistics().updates == 1
        assert lesson.recent_service.value > 0


async def test_lesson_cancelled_while_it_waits_has_taken_nothing() -> None:
    """The gradient that comes afterwards is still there."""
    link = gradient_link(0)
    async with _stream() as stream:
        lesson = await _lesson(stream, 0, lag=0, incoming=link)
        waiting = asyncio.ensure_future(lesson.learn(_frame(0)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        link.put_nowait(ready(()))
        assert len(link) == 1


async def test_lesson_at_its_end_discards_and_counts_the_gradients_on_their_way() -> None:
    """Those that exist are counted; what travels for frames without a gradient is none."""
    link = gradient_link(3)
    async with _stream() as stream:
        lesson = await _lesson(stream, 0, lag=3, incoming=link)
        for gradient in ((INPUT,), (), (INPUT,)):
            link.put_nowait(ready(gradient))
        lesson.end()
        lesson.end()
    assert lesson.learner.statistics().discarded == 2
    assert len(link) == 0


async def test_lesson_whose_backward_raises_tells_it_once_with_the_frame() -> None:
    """The stage at fault reports its error; the stage before only finds that there is no gradient to be had."""

    def wrong(output: Tensor, target: Tensor) -> Tensor:
        return torch.ones(())

    told: list[tuple[type[BaseException], int]] = []

    def tell(error: BaseException, index: int) -> None:
        told.append((type(error), index))

    link = gradient_link(0)
    async with _stream() as first, _stream() as last:
        before = await _lesson(first, 0, lag=0, incoming=link, on_error=tell)
        behind = await _lesson(last, 1, lag=0, outgoing=link, on_error=tell, loss=wrong)
        frame = _frame(0)
        passed = first.enqueue(before.forward(frame), ready(INPUT))
        last.enqueue(behind.forward(frame), passed)
        await behind.learn(frame)
        await before.learn(frame)
        await _done(first)
        await _done(last)
    assert told == [(pa.ConfigurationError, 0)]
    assert before.learner.version == 0


async def test_lesson_on_a_stream_that_is_aborted_is_no_error() -> None:
    """What did not come to run because the pipeline was left is nobody's fault."""
    told: list[BaseException] = []
    async with _stream() as stream:
        lesson = await _lesson(stream, 1, on_error=lambda error, _: told.append(error))
        stream.abort()
        event = await _step(stream, lesson, _frame(0))
        await _done(stream)
        assert isinstance(event.error, WorkAborted)
    assert not told


@pytest.mark.parametrize("lag", [0, 1, 2, 5])
def test_gradient_link_never_makes_the_later_stage_wait(lag: int) -> None:
    """At most lag + 1 gradients can be on their way; there is room for one more."""
    assert gradient_link(lag).capacity == lag + 2
