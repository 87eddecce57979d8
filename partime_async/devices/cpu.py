"""The CPU as a device: a stream is a worker thread that runs ahead over what is enqueued."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from partime_async.clock import Clock
from partime_async.devices.base import DeviceEvent, DeviceStream, Work, ready, without_frames_of
from partime_async.devices.capture import capture as record
from partime_async.devices.capture import trial_copy, unchanged
from partime_async.devices.notifier import Notifier
from partime_async.errors import ConfigurationError, DeadlineExceeded, WorkAborted
from partime_async.frame import Value
from partime_async.metrics import MovingAverage

_COALESCE_S = 0.0005
"""Completions are held back at most this long, and only while more work waits: one wake-up then serves several."""


class CpuDevice:
    """The host's processors.

    Args:
        lanes: How many streams can run at the same time; the number of usable cores by default.
        niceness: By how much stage threads are nicer than the thread that makes them (Linux). With 10, an event loop
            on a machine that the stages fill answers in 1 ms instead of 3; but then any other busy process takes the
            cores from the stages, up to nine tenths of them.

    Raises:
        ConfigurationError: `lanes` is below 1, or `niceness` not from 0 to 19.
    """

    def __init__(self, lanes: int | None = None, *, niceness: int = 0) -> None:
        if lanes is not None and lanes < 1:
            raise ConfigurationError(f"lanes is {lanes}; a device runs at least 1 stream. Pass 1 or more.")
        if not 0 <= niceness <= 19:
            raise ConfigurationError(f"niceness is {niceness}. Pass 0 to 19.")
        self._niceness = niceness
        self.name = "cpu"
        self.torch_device = torch.device("cpu")
        self.lanes = lanes or usable_cores()

    def timed(self, run: Callable[[], None]) -> float:
        """Run this and return the seconds it took."""
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def open_stream(
        self, name: str, *, notifier: Notifier[DeviceEvent], clock: Clock, threads: int = 1
    ) -> DeviceStream:
        """Open a stream: start its worker thread."""
        return CpuStream(name, notifier=notifier, clock=clock, threads=threads, niceness=self._niceness)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_NOTHING = ready(())


class _Job(DeviceEvent):
    """An event that carries its own work: one allocation per frame and stage."""

    __slots__ = ("is_background", "source", "work")

    def __init__(
        self,
        work: Work | None,
        source: DeviceEvent,
        on_complete: Callable[[DeviceEvent], None] | None,
        *,
        is_background: bool = False,
    ) -> None:
        super().__init__(on_complete)
        self.is_background = is_background
        self.work = work
        self.source = source


class CpuStream:
    """One worker thread with its own intra-op thread count; see `DeviceStream`."""

    def __init__(
        self, name: str, *, notifier: Notifier[DeviceEvent], clock: Clock, threads: int, niceness: int = 0
    ) -> None:
        self.name = name
        self.busy_s = 0.0
        self._notifier = notifier
        self._now = clock.now
        self._threads = threads
        self._niceness = niceness
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._is_aborted = False
        self._closed: asyncio.Future[None] | None = None
        # A daemon: work that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def prepare(self, module: nn.Module, example: Value, *, capture: bool) -> tuple[Work, Value]:
        """Record or warm up the module on the worker thread; see `DeviceStream.prepare`."""
        prepared: list[Work] = []

        def build(value: Value) -> Value:
            recorded = record(module, value) if capture else None
            prepared.append(recorded or module)
            # A copy warms up: whatever state the module keeps, in buffers or in Python, stays as it is.
            trial = trial_copy(module)
            with unchanged(trial):
                output: Value = trial(value)
            return output

        event = self.enqueue(build, ready(example))
        event.wait()
        if event.error is not None:
            raise event.error
        assert event.value is not None
        return prepared[0], event.value

    def enqueue(
        self,
        work: Work,
        source: DeviceEvent,
        on_complete: Callable[[DeviceEvent], None] | None = None,
        *,
        to_host: bool = False,
        is_background: bool = False,
    ) -> DeviceEvent:
        """Enqueue work; see `DeviceStream.enqueue`."""
        job = _Job(work, source, on_complete, is_background=is_background)
        self._jobs.put(job)
        return job

    def abort(self) -> None:
        """Fail what has not started; see `DeviceStream.abort`."""
        self._is_aborted = True

    async def aclose(self, timeout_s: float) -> None:
        """Finish and end the thread; see `DeviceStream.aclose`."""
        if self._closed is None:
            # One last job however often this is called: behind it nobody reads the queue.
            closed = self._closed = asyncio.get_running_loop().create_future()
            self._jobs.put(_Job(None, _NOTHING, lambda _: closed.set_result(None)))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._closed)
        except TimeoutError:
            what = f"{self.name} did not finish work that cannot be interrupted"
            raise DeadlineExceeded(what, timeout_s) from None
        self._thread.join()

    def _run(self) -> None:
        # Both are thread-local; reading the count back is what pins it.
        torch.set_num_threads(self._threads)
        torch.get_num_threads()
        _be_nicer_by(self._niceness)
        finished: list[tuple[Callable[[DeviceEvent], None], DeviceEvent]] = []
        service = MovingAverage()
        held_since = 0.0
        with torch.no_grad():
            while True:
                job = self._jobs.get()
                source = job.source
                if job.is_background or not source.is_complete:
                    # It may take long: whoever waits for what is done here must not wait for that, too.
                    self._announce(finished)
                    source.wait()
                is_last = job.work is None
                self._execute(job, source)
                if job.on_complete is not None:
                    if not finished:
                        held_since = job.finished_at
                    finished.append((job.on_complete, job))
                service.update(job.finished_at - job.started_at)
                is_soon = job.finished_at - held_since + service.value < _COALESCE_S
                # Each wake-up of the loop takes the interpreter, and perhaps the core, from a stage.
                may_wait = is_soon or (job.is_background and job.error is None)
                if is_last or not may_wait or self._jobs.empty():
                    self._announce(finished)
                if is_last:
                    return

    def _execute(self, job: _Job, source: DeviceEvent) -> None:
        work, job.work = job.work, None
        job.started_at = job.finished_at = self._now()
        if source.error is not None:
            job.fail(source.error, source.origin)
        elif work is None:
            pass
        elif self._is_aborted:
            job.fail(WorkAborted(f"{self.name} was aborted before it came to this work."), self)
        else:
            try:
                assert source.value is not None
                job.value = work(_on_host(source.value))
            except BaseException as error:
                # Also SystemExit and the like: an unhandled one would end the thread, and all that wait for it.
                job.fail(without_frames_of(__file__, error), self)
            job.finished_at = self._now()
            self.busy_s += job.finished_at - job.started_at
        source.release()
        job.source = _NOTHING
        job.complete()
        del job, source, work  # an error keeps this frame: see `without_frames_of`

    def _announce(self, finished: list[tuple[Callable[[DeviceEvent], None], DeviceEvent]]) -> None:
        if finished:
            self._notifier.post(finished)
            finished.clear()


def _on_host(value: Value) -> Value:
    """Return the value in host memory; from another device, whose event is complete, this blocks for the copy."""
    if isinstance(value, Tensor):
        return value if value.is_cpu else value.cpu()
    return value if all(tensor.is_cpu for tensor in value) else tuple(tensor.cpu() for tensor in value)


def _be_nicer_by(niceness: int) -> None:
    if niceness and sys.platform == "linux":  # elsewhere, niceness belongs to the process
        thread = threading.get_native_id()
        with suppress(OSError):
            # More than what it inherited: a process that is nice already must not have its stages overtake its loop.
            os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + niceness, 19))
