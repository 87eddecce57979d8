"""A job for a GPU, and the thread that launches jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch
from torch import Tensor

from partime_async.devices.base import DeviceEvent, Work
from partime_async.devices.cuda_runtime import TorchEvent
from partime_async.frame import Value


class CudaEvent(DeviceEvent):
    """The completion of work on a GPU: launched first, then complete. Carries the work: one allocation per frame.

    Attributes:
        launch: Launches this job; called by `launcher`.
        launcher: Whose thread launches it.
        work: What to do; None for the last job of a stream.
        source: The event that brings the input; kept until the device has read it.
        to_host: Whether the result goes to the host; then there is no `value` before completion.
        before: Events behind the work that made the input, where the source does not know one.
        is_direct: Whether it was put in the launcher's queue at once.
        is_launched: Whether the launcher is done with it; from then on `value` and `ended` can be used on the device.
        started: The device event before the work; None if nothing was launched.
        ended: The device event behind the work.
        done: The device event behind all that was launched for this job.
        output: What goes to the host.
        slot: The page-locked tensors it goes through, if any.
        held: Tensors that the device uses until `done`.
    """

    __slots__ = (
        "_launch_gate",
        "before",
        "done",
        "ended",
        "held",
        "is_direct",
        "is_launched",
        "launch",
        "launcher",
        "output",
        "slot",
        "source",
        "started",
        "to_host",
        "work",
    )

    def __init__(
        self,
        launch: Callable[[CudaEvent], None],
        launcher: Launcher,
        work: Work | None,
        source: DeviceEvent,
        on_complete: Callable[[DeviceEvent], None] | None,
        *,
        to_host: bool = False,
        before: tuple[TorchEvent, ...] = (),
    ) -> None:
        super().__init__(on_complete)
        self.launch = launch
        self.launcher = launcher
        self.work = work
        self.source = source
        self.to_host = to_host
        self.before = before
        self.is_direct = False
        self.is_launched = False
        self.started: TorchEvent | None = None
        self.ended: TorchEvent | None = None
        self.done: TorchEvent | None = None
        self.output: Value | None = None
        self.slot: tuple[Tensor, ...] | None = None
        self.held: tuple[Tensor, ...] = ()
        self._launch_gate = threading.Lock()
        self._launch_gate.acquire()

    def wait_until_launched(self) -> None:
        """Block the calling thread (never the event loop's) until the launcher is done with this job."""
        if not self.is_launched:
            self._launch_gate.acquire()
            self._launch_gate.release()

    def launched(self) -> None:
        """Mark the job as launched; only its stream calls this."""
        self.is_launched = True
        self._launch_gate.release()


def is_launched_before(launcher: Launcher, source: DeviceEvent) -> bool:
    """Tell whether a launcher will find the source launched when it comes to a job that is put now.

    A source whose value comes over the host has to be complete.
    """
    if not isinstance(source, CudaEvent) or source.to_host:
        return source.is_complete
    return source.is_launched or (source.is_direct and source.launcher is launcher)


def wait_until_usable(source: DeviceEvent) -> None:
    """Block the calling thread until work behind the source can be launched."""
    if isinstance(source, CudaEvent) and not source.to_host:
        source.wait_until_launched()
    else:
        source.wait()


class Launcher:
    """The thread that launches for all streams of a device, in the order of `put`; it ends with the last stream.

    One for all, for an eager launch takes the interpreter 5-10 us per operator: threads would only fight for its lock.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[CudaEvent | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._users = 0
        self._thread: threading.Thread | None = None
        self.put = self._jobs.put

    def open(self) -> None:
        """Count one more stream."""
        with self._lock:
            self._users += 1
            if self._thread is None:
                # A daemon: work that never returns must not keep the process alive.
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Count one stream less, whose jobs have all been launched."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._thread is not None:
                self.put(None)
                self._thread.join()
                self._thread = None

    def _run(self) -> None:
        torch.set_num_threads(1)  # for copies into page-locked memory; thread-local, pinned by reading it back
        torch.get_num_threads()
        with torch.no_grad():
            while (job := self._jobs.get()) is not None:
                job.launch(job)
                del job  # or it would live until the next one comes
