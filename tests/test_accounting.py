"""Promise 2: every frame offered is in one place at every moment and ends in one way, whatever happens in which order.

A random driver does everything that clients may do, in any order, to a pipeline of simulated stages in virtual time,
and looks at the accounts of every feed, and of the pipeline, after every step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

import looptime
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import partime_async as pa
from partime_async.accounting import Accounts
from partime_async.clock import LoopClock
from tests.nets import assert_accounted, assert_all_ended, command, commanded

GOOD, FAILING, INVALID = command(1.0), command(101.0), torch.ones(2, 2)
FRAMES = st.sampled_from([GOOD, GOOD, GOOD, FAILING, INVALID])
POLICIES = st.sampled_from(list(pa.Overflow))


class Client:
    """A feed, what its calls and reads have come to, and those that still wait."""

    def __init__(self, feed: pa.Feed) -> None:
        self.feed = feed
        self.offered = 0
        self.results: list[pa.Result] = []
        self.reader: asyncio.Task[None] | None = None
        self.leaving: asyncio.Task[None] | None = None

    async def put(self, frame: torch.Tensor, *, is_waiting: bool) -> None:
        """Offer a frame and count whether it was taken note of."""
        refused = False
        self.offered += 1
        try:
            if is_waiting:
                await self.feed.put(frame)
            else:
                self.feed.put_nowait(frame)
        except (pa.FeedFull, pa.FrameError):
            pass
        except (pa.FeedClosed, pa.PipelineNotRunning, pa.StageError):
            refused = True
        if refused and self.feed.accounts.counts().offered < self.offered:
            self.offered -= 1  # it was refused before it was offered

    async def read(self) -> None:
        """Read one result, or the end."""
        with suppress(StopAsyncIteration, pa.StageError, pa.PipelineNotRunning):
            self.results.append(await anext(self.feed))

    async def leave(self, error: BaseException | None) -> None:
        """Leave the feed's block."""
        await self.feed.__aexit__(type(error) if error else None, error, None)

    def check(self) -> None:
        """Compare the feed's account with what was seen from outside."""
        frames = self.feed.accounts.counts()
        assert_accounted(frames)
        assert frames.offered == self.offered
        good = [result for result in self.results if result.error is None]
        assert frames.delivered == len(good)
        assert frames.failed >= len(self.results) - len(good)
        for numbers in ([result.index for result in self.results], [result.sequence for result in self.results]):
            assert numbers == sorted(set(numbers)), "results came out of order, or twice"


class AnythingInAnyOrder(RuleBasedStateMachine):
    """Clients of one pipeline that do what they like."""

    @initialize(
        stages=st.integers(1, 3),
        depth=st.sampled_from([None, 1, 2]),
        capacity=st.integers(1, 3),
        on_error=st.sampled_from(["fail_frame", "fail_frame", "stop"]),
        times_ms=st.lists(st.sampled_from([0.0, 1.0, 5.0]), min_size=3, max_size=3),
    )
    def enter(self, stages: int, depth: int | None, capacity: int, on_error: str, times_ms: list[float]) -> None:
        """Enter a pipeline on a loop of virtual time."""
        self.loop = looptime.new_event_loop()
        self.clients: list[Client] = []
        self.calls: list[asyncio.Task[None]] = []
        self.processed = 0
        self.complaints: list[object] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))

        async def enter() -> None:
            self.pipeline = pa.Pipeline(
                commanded(3),
                GOOD,
                stages=stages,
                devices=[pa.SimulatedDevice(time_ms / 1e3) for time_ms in times_ms],
                depth=depth,
                capacity=capacity,
                on_error=on_error,
                clock=LoopClock(),
            )
            await self.pipeline.__aenter__()

        self.loop.run_until_complete(enter())
        self.direct = self.pipeline._run.direct

    def _do(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a call that may have to wait, and let everybody take a few steps."""

        async def begin() -> asyncio.Task[None]:
            task = asyncio.ensure_future(work)
            await self._settle()
            return task

        task = self.loop.run_until_complete(begin())
        self.calls = [call for call in [*self.calls, task] if not call.done()]
        return task

    async def _settle(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    @rule(overflow=POLICIES, capacity=st.integers(1, 3), max_age_ms=st.sampled_from([None, None, 3, 20]))
    def open_feed(self, overflow: str, capacity: int, max_age_ms: float | None) -> None:
        """Open another feed, of at most four."""
        if sum(client.leaving is None for client in self.clients) == 4:
            return

        async def open_feed() -> None:
            max_age_s = None if max_age_ms is None else max_age_ms / 1e3
            feed = self.pipeline.feed(overflow=overflow, capacity=capacity, max_age_s=max_age_s)
            try:
                await feed.__aenter__()
            except pa.StageError:
                return  # the pipeline has stopped
            self.clients.append(Client(feed))

        self._do(open_feed())

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), frame=FRAMES, is_waiting=st.booleans(), count=st.integers(1, 4))
    def put(self, data: st.DataObject, frame: torch.Tensor, is_waiting: bool, count: int) -> None:
        """Offer a few frames to a feed."""
        client = data.draw(st.sampled_from(self.clients))
        for _ in range(count):
            self._do(client.put(frame, is_waiting=is_waiting))

    @rule(frame=FRAMES)
    def process(self, frame: torch.Tensor) -> None:
        """Ask for one frame's result."""

        async def process() -> None:
            try:
                await self.pipeline.process(frame)
                self.processed += 1
            except (pa.FrameError, pa.StageError, pa.PipelineNotRunning, pa.FrameDropped, pa.FeedClosed):
                pass

        self._do(process())

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Wait for a feed's next result, unless somebody does already."""
        client = data.draw(st.sampled_from(self.clients))
        if client.reader is None or client.reader.done():
            client.reader = self._do(client.read())

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel a call that waits."""
        data.draw(st.sampled_from(self.calls)).cancel()
        self.loop.run_until_complete(self._settle())

    @rule(ms=st.sampled_from([0.5, 1.0, 4.0, 30.0]))
    def wait(self, ms: float) -> None:
        """Let some time pass."""
        self.loop.run_until_complete(asyncio.sleep(ms / 1e3))

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), how=st.sampled_from(["close", "abort", "discard_results"]))
    def end_feed(self, data: st.DataObject, how: str) -> None:
        """Close or abort a feed, or give up its results."""
        feed = data.draw(st.sampled_from(self.clients)).feed

        async def end() -> None:
            getattr(feed, how)()

        self._do(end())

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), error=st.sampled_from([None, KeyError()]))
    def leave_feed(self, data: st.DataObject, error: BaseException | None) -> None:
        """Leave a feed's block, normally or by an error."""
        client = data.draw(st.sampled_from(self.clients))
        if client.leaving is None:
            client.leaving = self._do(client.leave(error))

    @rule(is_load=st.booleans())
    def mark(self, is_load: bool) -> None:
        """Send a mark through."""

        async def send() -> None:
            try:
                state = await self.pipeline.state_dict()
                if is_load:
                    await self.pipeline.load_state_dict(state)
            except (pa.StageError, pa.PipelineNotRunning):
                pass

        self._do(send())

    @invariant()
    def accounts_are_exact(self) -> None:
        """Every feed's account adds up and tells what was seen; the pipeline's is the sum of them all."""
        if not hasattr(self, "pipeline"):
            return
        total = Accounts()
        total.add(self.direct.accounts)
        for client in self.clients:
            client.check()
            total.add(client.feed.accounts)
        assert_accounted(self.direct.accounts.counts())
        assert self.direct.accounts.counts().delivered == self.processed
        assert self.pipeline.statistics().frames == total.counts()
        assert not self.complaints, self.complaints

    def teardown(self) -> None:
        """Leave the pipeline; then nothing waits, flies or lies unread, and no task is left."""
        if not hasattr(self, "pipeline"):
            return
        run = self.pipeline._run

        async def leave() -> None:
            error = KeyError() if len(self.clients) % 2 else None
            with suppress(pa.StageError):
                await self.pipeline.__aexit__(type(error) if error else None, error, None)
                assert run.error is None or error is not None, "what stopped the pipeline is raised at its end"
            await asyncio.wait_for(asyncio.gather(*self.calls, return_exceptions=True), 10.0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        try:
            self.loop.run_until_complete(leave())
            for client in self.clients:
                client.check()
                assert_all_ended(client.feed.accounts.counts())
            assert_all_ended(self.direct.accounts.counts())
            assert not self.complaints, self.complaints
        finally:
            self.loop.close()


AnythingInAnyOrder.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # Without the explanation of failures, which traces every line and takes ten times as long.
    phases=[phase for phase in Phase if phase is not Phase.explain],
)
TestAnythingInAnyOrder = AnythingInAnyOrder.TestCase
