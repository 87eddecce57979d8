"""CUDA devices: a stream is a `torch.cuda.Stream`, fed by a launcher thread and watched by a waiter thread.

    event loop        launcher (one per device)          GPU                    waiter (one per stream)
    ----------        -------------------------          ---                    -----------------------
    enqueue(job) -->  copy in, launch work,       -->    "in"   copies   -->    sleeps until the GPU has passed the
    goes on           copy out, record events;           "work" kernels         job's last event; completes the job,
                      goes on with the next job          "out"  copies          posts to the loop, drops tensors

**Order** is made on the device: "work" waits for the event behind the source's work, "out" for the event behind its
own work, and "in" for nothing, so that a frame's copy overlaps with the work on the frame before. The three are
`torch.cuda.Stream`s of one `CudaStream`, opened when first needed. A copy from another GPU runs on a stream of that
GPU (PyTorch copies on the *source's* current stream and ties it to the destination's): one of our own, since on the
producer's it would queue behind the frames the producer has run ahead to, and hold the producer up.

**Memory.** PyTorch's allocator gives a freed block to the next allocation on the *same* stream at once. That is right
while only this stream uses it; a tensor that another stream reads must not be freed until the device has read it. So
a job keeps its source, and with it the input, until its waiter saw the job's last event. Then a hop between two
stages on one GPU moves nothing, and needs neither `record_stream` nor static buffers. (A ring of static buffers per
hop was rejected: it costs a launch and the memory bandwidth of a copy, and only recorded graphs need addresses that
stay.) Two cases are left. A module that keeps its input beyond the call: seen when it is prepared, and given a copy in
the memory of its own stream. A result that stays on the device and leaves the library: its user calls `record_stream`
before dropping it while kernels that read it may still be pending.

Host memory is another matter: only page-locked memory is copied in the background, and allocating it stops the
device. Pageable frames and results go through slots that are allocated once (`Transfers`); the tensor that a caller
gets is an ordinary one. A page-locked frame goes directly, and must not be rewritten before its result is there.

**Deadlock** cannot be. What is launched completes without the launcher: its device events come after launches only,
and its waiter waits for nothing but the device and the completion of sources, which were launched before it. The
launcher waits for nothing but slots, which belong to jobs that are launched. And `_admit` holds a job back only for
sources that were enqueued before it. So the job that was enqueued first of all that are not complete goes on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from partime_async.clock import Clock
from partime_async.devices.base import DeviceEvent, DeviceStream, Work, ready, without_frames_of
from partime_async.devices.capture import trial_copy
from partime_async.devices.cuda_event import CudaEvent, Launcher, is_launched_before, wait_until_usable
from partime_async.devices.cuda_runtime import RUNTIME, CudaRuntime, TorchEvent
from partime_async.devices.cuda_transfers import Transfers, as_tuple
from partime_async.devices.notifier import Notifier
from partime_async.errors import ConfigurationError, DeadlineExceeded, DeviceError, WorkAborted
from partime_async.frame import Value

_NOTHING = ready(())


def cuda_device_count() -> int:
    """Return how many CUDA devices this process can use."""
    return RUNTIME.device_count()


class CudaDevice:
    """One GPU.

    Args:
        index: As in ``cuda:0``.
        lanes: How many streams are expected to run at the same time. One launcher serves the device, and one stage
            alone can fill it: more than 1 is for who measured that it pays.
        slots: Page-locked buffers per stream and direction; a stream whose results go to the host runs at most this
            many frames ahead.
        runtime: What stands for `torch.cuda`.

    Raises:
        ConfigurationError: `lanes` or `slots` is below 1.
        DeviceError: This machine has no such device, or PyTorch cannot use it.
    """

    def __init__(self, index: int = 0, *, lanes: int = 1, slots: int = 4, runtime: CudaRuntime = RUNTIME) -> None:
        for label, number in (("lanes", lanes), ("slots", slots)):
            if number < 1:
                raise ConfigurationError(f"{label} is {number}. Pass 1 or more.")
        count = runtime.device_count()
        if not 0 <= index < count:
            remedy = (
                "Choose a smaller index." if count else "Use 'cpu', or install a CUDA build of PyTorch and the driver."
            )
            raise DeviceError(f"cuda:{index} does not exist: PyTorch finds {count} CUDA device(s) here. {remedy}")
        self.index = index
        self.name = f"cuda:{index}"
        self.torch_device = torch.device("cuda", index)
        self.lanes = lanes
        self._slots = slots
        self._runtime = runtime
        self._launcher = Launcher(f"{self.name} launcher")

    def timed(self, run: Callable[[], None]) -> float:
        """Run this and return the seconds until the device was done with it, launches included."""
        self._runtime.settle(self.index)
        began = time.perf_counter()
        run()
        self._runtime.settle(self.index)
        return time.perf_counter() - began

    def open_stream(
        self, name: str, *, notifier: Notifier[DeviceEvent], clock: Clock, threads: int = 1
    ) -> DeviceStream:
        """Open a stream: start its threads. The device is first touched by a launch; `threads` has no part in it."""
        transfers = Transfers(self.index, slots=self._slots, runtime=self._runtime)
        return CudaStream(
            name,
            transfers=transfers,
            runtime=self._runtime,
            index=self.index,
            launcher=self._launcher,
            notifier=notifier,
            clock=clock,
        )


class CudaStream:
    """Launches work on one GPU in order; see `DeviceStream` and the text of this module."""

    def __init__(
        self,
        name: str,
        *,
        transfers: Transfers,
        runtime: CudaRuntime,
        index: int,
        launcher: Launcher,
        notifier: Notifier[DeviceEvent],
        clock: Clock,
    ) -> None:
        self.name = name
        self.busy_s = 0.0
        self._transfers = transfers
        self._runtime = runtime
        self._index = index
        self._launcher = launcher
        self._notifier = notifier
        self._now = clock.now
        self._is_aborted = False
        self._keeps_input = False
        self._closed: asyncio.Future[None] | None = None
        self._arrivals: SimpleQueue[CudaEvent] | None = None
        self._in_flight: SimpleQueue[CudaEvent] = SimpleQueue()
        launcher.open()
        self._threads: list[threading.Thread] = []
        self._start(self._watch, f"{name} waiter")

    def prepare(self, module: nn.Module, example: Value, *, capture: bool) -> tuple[Work, Value]:
        """Move the module to the device and warm it up; see `DeviceStream.prepare`.

        With `capture`, too, the module runs eagerly: graphs are not recorded yet.
        """
        event = self.enqueue(partial(self._build, module, example), ready(example))
        event.wait()
        error, output = event.error, event.value
        del event
        if error is not None:
            try:
                raise error
            finally:
                del error  # or this frame and the error keep each other alive
        assert output is not None
        return module, output

    def enqueue(
        self,
        work: Work,
        source: DeviceEvent,
        on_complete: Callable[[DeviceEvent], None] | None = None,
        *,
        to_host: bool = False,
        is_background: bool = False,
    ) -> DeviceEvent:
        """Enqueue work; see `DeviceStream.enqueue`.

        A value on a GPU that comes from outside is taken as ready behind what the calling thread has launched there, as
        for any call of PyTorch.
        """
        before: tuple[TorchEvent, ...] = ()
        if not isinstance(source, CudaEvent) and source.value is not None:
            indices = {tensor.get_device() for tensor in as_tuple(source.value) if tensor.is_cuda}
            before = tuple(map(self._runtime.record_caller, indices))
        job = CudaEvent(self._launch, self._launcher, work, source, on_complete, to_host=to_host, before=before)
        self._put(job)
        return job

    def abort(self) -> None:
        """Fail what has not been launched; see `DeviceStream.abort`."""
        self._is_aborted = True

    async def aclose(self, timeout_s: float) -> None:
        """Finish, end the threads and give the device's streams back; see `DeviceStream.aclose`."""
        if self._closed is None:
            closed = self._closed = asyncio.get_running_loop().create_future()
            self._put(CudaEvent(self._launch, self._launcher, None, _NOTHING, lambda _: _settle(closed)))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._closed)
        except TimeoutError:
            raise DeadlineExceeded(f"{self.name} did not finish work that cannot be interrupted", timeout_s) from None
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()
        if threads:
            self._launcher.close()
            self._transfers.close()

    def _start(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _put(self, job: CudaEvent) -> None:
        if self._arrivals is None and not is_launched_before(self._launcher, job.source):
            # From here on all jobs of this stream take this way, or they would overtake.
            self._arrivals = SimpleQueue()
            self._start(partial(self._admit, self._arrivals), f"{self.name} arrivals")
        if self._arrivals is None:
            job.is_direct = True
            self._launcher.put(job)
        else:
            self._arrivals.put(job)

    def _admit(self, arrivals: SimpleQueue[CudaEvent]) -> None:
        """Pass jobs on when their sources can be used: the launcher must not wait, for the sources may need it, too."""
        is_last = False
        while not is_last:
            job = arrivals.get()
            is_last = job.work is None
            wait_until_usable(job.source)
            self._launcher.put(job)
            del job  # or it would live until the next one comes

    def _launch(self, job: CudaEvent) -> None:
        """Launch a job; on the launcher's thread. Nothing is raised: whatever happens is the job's."""
        source = job.source
        value = source.value  # read before `error`: a source that fails late sets its error, then drops its value
        if source.error is not None:
            job.fail(source.error, source.origin)
        elif job.work is not None and self._is_aborted:
            job.fail(WorkAborted(f"{self.name} was aborted before it came to this work."), self)
        elif job.work is not None:
            try:
                assert value is not None
                self._run(job, job.work, value)
            except BaseException as error:
                job.fail(without_frames_of(__file__, error), self)
        job.launched()
        self._in_flight.put(job)
        del job, source, value  # an error keeps this frame: see `without_frames_of`

    def _run(self, job: CudaEvent, work: Work, value: Value) -> None:
        runtime, transfers = self._runtime, self._transfers
        brought = transfers.bring(job, value)
        lane = transfers.lane("work")
        with runtime.use(lane):
            if self._keeps_input:
                brought = _copied(brought)
            job.started = runtime.record(lane, is_timed=True)
            try:
                output = work(brought)
            finally:
                # Work that raises has launched something before: its input is needed until that is done.
                job.ended = job.done = runtime.record(lane, is_timed=True)
        if job.to_host:
            transfers.send(job, output)
        else:
            job.value = output

    def _watch(self) -> None:
        """Complete jobs when the device has passed them; the waiter's thread."""
        torch.set_num_threads(1)  # for copies out of page-locked memory; thread-local, pinned by reading it back
        torch.get_num_threads()
        is_last = False
        while not is_last:
            job = self._in_flight.get()
            is_last = job.work is None
            self._finish(job)
            del job  # or it would live until the next one comes

    def _finish(self, job: CudaEvent) -> None:
        job.started_at = job.finished_at = self._now()
        try:
            if job.done is not None:
                self._collect(job)
        except BaseException as error:
            if job.error is None:
                job.fail(without_frames_of(__file__, error), self)
        # The source's own waiter comes first: an error that shows on the device only is then known to be the source's.
        job.source.wait()
        if job.source.error is not None:
            job.fail(job.source.error, job.source.origin)
        if job.error is not None:
            job.value = None
        self._transfers.give_back(job)
        job.source.release()
        job.source = _NOTHING
        job.work = job.output = None
        job.held = job.before = ()
        job.complete()
        if job.on_complete is not None:
            # One by one: the Notifier makes one wake-up of what piled up, and the next job may take long.
            self._notifier.post([(job.on_complete, job)])
        del job  # an error keeps this frame: see `without_frames_of`

    def _collect(self, job: CudaEvent) -> None:
        runtime = self._runtime
        assert job.done is not None
        runtime.synchronize(job.done)
        job.started_at = job.finished_at = self._now()
        if job.started is not None and job.ended is not None:
            job.started_at -= runtime.elapsed_s(job.started, job.done)
            self.busy_s += runtime.elapsed_s(job.started, job.ended)
        if job.to_host and job.error is None:
            job.value = self._transfers.collect(job)
            job.finished_at = self._now()

    def _build(self, module: nn.Module, example: Value, value: Value) -> Value:
        """Place and warm up a module; runs as work on the launcher's thread, where `value` is the example brought."""
        runtime = self._runtime
        runtime.settle(self._index)  # the weights may still be on their way, on any stream
        runtime.place(module, self._index)
        with runtime.same_random_state(self._index):
            trial, given = trial_copy(module, shares_parameters=True), _copied(value)
            storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in as_tuple(given)]  # type: ignore[no-untyped-call]
            result: Value = trial(given)
            self._transfers.expect(example, result)
            output = _copied(result)
            del given, result
            self._keeps_input = not all(storage.expired() for storage in storages)  # type: ignore[no-untyped-call]
        return output


def _copied(value: Value) -> Value:
    return value.clone() if isinstance(value, Tensor) else tuple(tensor.clone() for tensor in value)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
