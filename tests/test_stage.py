"""One stage's task: credits, order, marks between frames; on simulated streams in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.channel import Channel
from partime_async.clock import LoopClock
from partime_async.devices import CpuDevice, DeviceEvent, DeviceStream, Notifier
from partime_async.errors import WorkAborted
from partime_async.flight import AnyMark, Frame, Mark
from partime_async.frame import Value
from partime_async.stage import MOST_DEPTH, Inbox, Stage, StageStatistics
from partime_async.stateful import StateKeeper
from tests.bench import FRAME, Bench, steps

SERVICE_S = 0.01


def _plus_one(value: Value) -> Value:
    assert isinstance(value, Tensor)
    return value + 1.0


class Entrance:
    """Where the first stage takes from, as from the pipeline's admission: no channel of its own."""

    def __init__(self) -> None:
        self._items: Channel[Frame | AnyMark] = Channel(1000)

    def __len__(self) -> int:
        return len(self._items)

    def put_nowait(self, item: Frame | AnyMark) -> None:
        """Put one in."""
        self._items.put_nowait(item)

    async def get(self) -> Frame | AnyMark:
        """Wait for the next one."""
        return await self._items.get()


class Line:
    """Stages one behind the other, on streams that take a stated time; the test puts frames in and gets them out."""

    def __init__(
        self,
        *,
        stages: int = 1,
        depth: int | None = 2,
        capacity: int = 2,
        service_s: float = SERVICE_S,
        work: Callable[[Value], Value] = _plus_one,
    ) -> None:
        self.inbox = Entrance()
        self.done: list[Frame] = []
        self.streams: list[DeviceStream] = []
        self.stages: list[Stage] = []
        links = [Channel[Frame | AnyMark](capacity) for _ in range(stages - 1)]
        inboxes: list[Inbox] = [self.inbox, *links]
        for number, inbox in enumerate(inboxes):
            stream = pa.SimulatedDevice(service_s).open_stream(
                f"stage {number}", notifier=Notifier(asyncio.get_running_loop()), clock=LoopClock()
            )
            self.streams.append(stream)
            self.stages.append(
                Stage(
                    number,
                    layers=("first", "last"),
                    device="simulated",
                    stream=stream,
                    work=work,
                    depth=depth,
                    inbox=inbox,
                    outbox=links[number] if number + 1 < stages else None,
                    to_host=number + 1 == stages,
                    on_frame=self.done.append,
                    states=StateKeeper(nn.Identity()),
                )
            )
        self.tasks = [asyncio.ensure_future(stage.run()) for stage in self.stages]

    def put(self, count: int = 1, value: Tensor = FRAME) -> list[Frame]:
        """Put frames in."""
        frames = [
            Frame(Bench().feed, number, value, target=None, captured_at=0.0, context=None) for number in range(count)
        ]
        for frame in frames:
            self.inbox.put_nowait(frame)
        return frames

    async def end(self) -> list[StageStatistics]:
        """Stop the tasks and return what the stages say."""
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        for stream in self.streams:
            await stream.aclose(10.0)
        return [stage.statistics(1.0) for stage in self.stages]


@pytest.mark.looptime
@pytest.mark.parametrize("depth", [1, 2, 5])
async def test_stage_enqueues_as_many_frames_as_its_depth(depth: int) -> None:
    """No more frames than `depth` are on the stream, and no less while frames wait."""
    line = Line(depth=depth)
    line.put(20)
    await steps()
    assert line.stages[0].statistics(1.0).enqueued == depth
    assert len(line.inbox) == 20 - depth
    await asyncio.sleep(20 * SERVICE_S + 0.001)
    assert len(line.done) == 20
    await line.end()


@pytest.mark.looptime
async def test_stage_keeps_its_stream_busy_whatever_the_depth() -> None:
    """Twenty frames take twenty service times for one stage, and two more hops for three."""
    for stages in (1, 3):
        line = Line(stages=stages, depth=2)
        line.put(20)
        await asyncio.sleep((20 + stages - 1) * SERVICE_S - SERVICE_S / 10)
        assert len(line.done) == 19
        await asyncio.sleep(SERVICE_S / 5)
        assert len(line.done) == 20
        await line.end()


@pytest.mark.looptime
async def test_stage_with_half_of_its_credits_back_wakes_once_for_several_frames() -> None:
    """The task sleeps until half of the frames are complete, then enqueues as many at once."""
    line = Line(depth=4)
    line.put(20)
    await asyncio.sleep(1.5 * SERVICE_S)
    assert line.stages[0].statistics(1.0).enqueued == 3
    await asyncio.sleep(SERVICE_S)
    assert line.stages[0].statistics(1.0).enqueued == 4
    await asyncio.sleep(20 * SERVICE_S)
    await line.end()


@pytest.mark.looptime
async def test_stage_without_a_depth_runs_further_ahead_the_shorter_its_work() -> None:
    """An adaptive stage enqueues some two milliseconds of work, at least two frames, at most sixteen."""
    for service_s, expected in ((0.01, 2), (0.0005, 4), (0.00001, MOST_DEPTH)):
        line = Line(depth=None, service_s=service_s)
        for _ in range(30):
            line.put(1)
            await asyncio.sleep(2 * service_s)
        line.put(50)
        await steps()
        assert line.stages[0].statistics(1.0).enqueued == expected
        await asyncio.sleep(60 * service_s)
        await line.end()


@pytest.mark.looptime
async def test_link_to_an_adaptive_stage_holds_as_many_frames_as_it_runs_ahead() -> None:
    """The channel in front of a stage without a depth grows and shrinks with what the stage has enqueued."""
    line = Line(stages=2, depth=None, service_s=0.0005)
    for _ in range(30):
        line.put(1)
        await asyncio.sleep(0.001)
    queue = line.stages[1].statistics(1.0).queue
    assert queue is not None
    assert queue.capacity == 4
    await line.end()


@pytest.mark.looptime
async def test_frames_pass_the_stages_in_order_with_their_events_and_versions() -> None:
    """Frames come out in the order they went in, each with one event and one weight version per stage."""
    line = Line(stages=3)
    frames = line.put(10)
    await asyncio.sleep(1.0)
    assert line.done == frames
    for frame in frames:
        assert frame.value is None
        assert frame.versions == [0, 0, 0]
        assert len(frame.events) == 3
        starts = [event.started_at for event in frame.events]
        assert starts == sorted(starts)
        assert frame.event is frame.events[-1]
        assert frame.events[-1].value is not None
        assert torch.equal(torch.as_tensor(frame.events[-1].value), FRAME + 3)
    statistics = await line.end()
    assert [(stage.frames, stage.failed, stage.enqueued) for stage in statistics] == [(10, 0, 0)] * 3
    assert statistics[1].busy_s == pytest.approx(10 * SERVICE_S)
    assert statistics[1].service_s.p50 == pytest.approx(SERVICE_S, rel=0.05)


@pytest.mark.looptime
async def test_frames_in_flight_never_exceed_what_depth_and_capacity_allow() -> None:
    """With a slow last stage, no more frames wait inside than the stages may hold."""
    line = Line(stages=3, depth=2, capacity=1)
    line.put(100)
    peak = 0
    for _ in range(4 * 103):
        await asyncio.sleep(SERVICE_S / 4)
        peak = max(peak, 100 - len(line.inbox) - len(line.done))
    assert len(line.done) == 100
    assert peak <= 3 * 2 + 2 * (1 + 1)
    await line.end()


@pytest.mark.looptime
async def test_failure_is_counted_where_it_happened_and_passed_on_by_the_others() -> None:
    """A frame that fails in the first stage is no failure of the second, and the next frames go on."""

    def fail_on_two(value: Value) -> Value:
        assert isinstance(value, Tensor)
        if value[0, 0] == 2.0:
            raise ValueError("two")
        return value

    line = Line(stages=2, work=fail_on_two)
    line.put(1)
    bad = line.put(1, FRAME * 2)[0]
    line.put(1)
    await asyncio.sleep(1.0)
    assert [frame.event is not None and frame.event.error is None for frame in line.done] == [True, False, True]
    assert bad.event is not None
    assert bad.event.origin is line.streams[0]
    assert [(stage.frames, stage.failed) for stage in await line.end()] == [(3, 1), (3, 0)]


# -- marks ------------------------------------------------------------------------------------------------------------


@pytest.mark.looptime
async def test_mark_acts_in_every_stage_between_the_same_two_frames() -> None:
    """What a mark sees in each stage is the work of the frames before it, and of none behind it."""
    seen: list[list[int]] = [[], []]
    counts = [0, 0]

    def work_of(stage: int) -> Callable[[Value], Value]:
        def work(value: Value) -> Value:
            counts[stage] += 1
            return value

        return work

    line = Line(stages=2)
    for number, stage in enumerate(line.stages):
        stage._work = work_of(number)
    marks = []
    for batch in (3, 4, 0, 2):
        line.put(batch)
        mark = Mark([lambda stage=stage: seen[stage].append(counts[stage]) for stage in range(2)])  # type: ignore[misc]
        line.inbox.put_nowait(mark)
        marks.append(mark)
    await asyncio.sleep(1.0)
    for mark in marks:
        await mark.wait()
    assert seen == [[3, 7, 7, 9]] * 2
    await line.end()


@pytest.mark.looptime
async def test_mark_that_changes_weights_counts_up_the_version_of_every_stage() -> None:
    """Frames before it have the old version in all stages, frames behind it the new one, and others change nothing."""
    line = Line(stages=2)
    before = line.put(3)
    line.inbox.put_nowait(Mark([lambda: None] * 2, changes_weights=True))
    behind = line.put(3)
    line.inbox.put_nowait(Mark([lambda: None] * 2))
    last = line.put(1)
    await asyncio.sleep(1.0)
    assert [frame.versions for frame in before] == [[0, 0]] * 3
    assert [frame.versions for frame in behind + last] == [[1, 1]] * 4
    await line.end()


@pytest.mark.looptime
async def test_mark_returns_the_results_of_the_actions_in_the_order_of_the_stages() -> None:
    """Whoever waits for a mark gets what each stage's action returned; a second waiter may give up."""
    line = Line(stages=3)
    mark = Mark([lambda: "a", lambda: "b", lambda: "c"])
    told: list[str] = []
    mark.when_done(lambda: told.append("done"))
    line.inbox.put_nowait(mark)
    impatient = asyncio.ensure_future(mark.wait())
    await steps(1)
    impatient.cancel()
    assert await mark.wait() == ["a", "b", "c"]
    assert told == ["done"]
    await line.end()


@pytest.mark.looptime
async def test_mark_whose_action_raises_tells_which_stage_it_was() -> None:
    """An action's error reaches the waiter as that of its stage, for no frame, and the stream goes on."""

    def fail() -> None:
        raise KeyError("missing")

    line = Line(stages=2)
    mark = Mark([lambda: None, fail])
    line.inbox.put_nowait(mark)
    line.put(2)
    with pytest.raises(pa.StageError, match="stage 1") as caught:
        await mark.wait()
    assert (caught.value.stage, caught.value.index) == (1, None)
    assert isinstance(caught.value.__cause__, KeyError)
    await asyncio.sleep(1.0)
    assert len(line.done) == 2
    await line.end()


async def test_mark_aborted_between_two_stages_changes_the_weights_of_all() -> None:
    """If an abort catches a weight swap half-way, the other stages swap too: no network has weights of two versions."""
    swapped: list[int] = []
    loop, has_begun = asyncio.get_running_loop(), asyncio.Event()

    def swap_first() -> None:
        swapped.append(0)
        loop.call_soon_threadsafe(has_begun.set)

    mark = Mark([swap_first, lambda: swapped.append(1)], changes_weights=True)
    streams = [_cpu_stream(0), _cpu_stream(1)]
    mark.enqueue(0, streams[0], ("a", "b"))
    await has_begun.wait()
    streams[1].abort()
    mark.enqueue(1, streams[1], ("c", "d"))
    await mark.wait()
    assert swapped == [0, 1]
    for stream in streams:
        await stream.aclose(10.0)


async def test_mark_aborted_before_it_began_changes_no_weights() -> None:
    """If an abort comes before the first stage has acted, nothing is changed and the waiter is told."""
    swapped: list[int] = []
    mark = Mark([lambda: swapped.append(0), lambda: swapped.append(1)], changes_weights=True)
    stream = _cpu_stream(0)
    stream.abort()
    mark.enqueue(0, stream, ("a", "b"))
    mark.conclude(WorkAborted("left"))
    with pytest.raises(WorkAborted):
        await mark.wait()
    await stream.aclose(10.0)
    assert swapped == []


def _cpu_stream(number: int) -> DeviceStream:
    notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())
    return CpuDevice().open_stream(f"stage {number}", notifier=notifier, clock=LoopClock())


async def test_stage_ended_while_it_waits_for_credits_takes_late_completions_in_silence() -> None:
    """A completion that is announced between a stage's cancellation and its end disturbs nobody."""
    line = Line(depth=1, service_s=0.0005)
    line.put(3)
    await steps()
    line.tasks[0].cancel()
    event = DeviceEvent()
    line.stages[0]._complete(event)
    assert line.stages[0].statistics(1.0).enqueued == 0
    line.stages[0]._enqueued += 1
    await line.end()
