"""What every device offers: streams that run enqueued work in order, and events that say when it is done.

    stage task (event loop)          device thread / GPU
    -----------------------          ---------------------------------------
    event = stream.enqueue(...)  ->  waits for `source` ON THE DEVICE, runs
    passes (frame, event) on at once; the next stage enqueues after `event`
    on_complete(event)           <-  announced through the Notifier, in batches

So the order of work is settled on the device, and the event loop only admits, counts, delivers and cancels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar, runtime_checkable

from torch import device as torch_device
from torch import nn

from partime_async.clock import Clock
from partime_async.devices.notifier import Notifier
from partime_async.frame import Value

T = TypeVar("T")
Work = Callable[[Value], Value]
"""What a stage does to a frame: the values in, the values out, on the stage's device."""


class DeviceEvent:
    """The completion of one piece of enqueued work; happens once.

    An event may be waited for from any thread (`wait`), by other streams on the device side, and is announced to the
    event loop by calling `on_complete` there.

    Attributes:
        value: What the work returned. Dropped (None) once the one consumer has read it: see `release`.
        error: What the work raised, or what the work it came after raised; then `value` stays None.
        origin: The stream on which `error` was raised first.
        started_at: Clock time in seconds at which the work began.
        finished_at: Clock time in seconds at which the work ended.
        is_complete: Whether the work has ended, well or not.
    """

    __slots__ = ("_gate", "error", "finished_at", "is_complete", "on_complete", "origin", "started_at", "value")

    def __init__(self, on_complete: Callable[[DeviceEvent], None] | None = None) -> None:
        self.value: Value | None = None
        self.error: BaseException | None = None
        self.origin: DeviceStream | None = None
        self.started_at = 0.0
        self.finished_at = 0.0
        self.is_complete = False
        self.on_complete = on_complete
        # A bare lock, held until completion: a third of the cost of threading.Event, and one waiter is the rule.
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self) -> None:
        """Block the calling thread (never the event loop's) until the work has ended."""
        if not self.is_complete:
            self._gate.acquire()
            self._gate.release()

    def complete(self) -> None:
        """Mark the work as ended; only the stream that ran it calls this, after it set the other attributes."""
        self.is_complete = True
        self._gate.release()

    def fail(self, error: BaseException, origin: DeviceStream | None) -> None:
        """Note that there is no value, and why."""
        self.error = error
        self.origin = origin

    def release(self) -> None:
        """Let go of the value: its consumer has read it (or will not)."""
        self.value = None


def ready(value: Value) -> DeviceEvent:
    """Return an event that is complete already, for values that come from the host."""
    event = DeviceEvent()
    event.value = value
    event.complete()
    return event


def without_frames_of(file: str, error: BaseException) -> BaseException:
    """Return the error with a traceback that starts in the work, not in the stream (in `file`) that ran it.

    Each frame of a traceback keeps its callers, and the frames of a stream hold the job, which holds the error: a
    cycle, in which all tensors of these frames would wait for the garbage collector. So frames that have returned are
    cleared; one that still runs has to delete its `job` itself.
    """
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == file:
        with suppress(RuntimeError):  # it still runs
            frames.tb_frame.clear()
        frames = frames.tb_next
    return error.with_traceback(frames)


@runtime_checkable
class DeviceStream(Protocol):
    """A queue of work on one device, run strictly in the order it was enqueued.

    Attributes:
        name: For threads, logs and errors.
        busy_s: Seconds spent running work so far.
    """

    name: str
    busy_s: float

    def prepare(self, module: nn.Module, example: Value, *, capture: bool) -> tuple[Work, Value]:
        """Place a module on the device and make it callable there; blocks, so never on the event loop.

        Weights, buffers and random state end as they began.

        Args:
            module: A stage's partition; moved to the device in place.
            example: Values as the stage will get them.
            capture: Try to run the module as one recorded call; where that would change a result, run it eagerly.

        Returns:
            The work for `enqueue`, and an example of what it gives.
        """
        ...

    def enqueue(
        self,
        work: Work,
        source: DeviceEvent,
        on_complete: Callable[[DeviceEvent], None] | None = None,
        *,
        to_host: bool = False,
        is_background: bool = False,
    ) -> DeviceEvent:
        """Enqueue work behind all earlier work and behind `source`; returns at once.

        Args:
            work: Called with the value of `source`, moved to this device if need be.
            source: The event that brings the input; its value is released when the work has read it. If it failed,
                the work is skipped and the failure passed on.
            on_complete: Called on the event loop once the work has ended; calls for one stream come in order.
            to_host: Bring the result to host memory.
            is_background: Nobody waits for its end, which may be announced with that of the next work; and the ends of
                what was enqueued before are announced before it begins.
        """
        ...

    def abort(self) -> None:
        """Fail everything that has not started with `WorkAborted`; what runs now runs on. Idempotent."""
        ...

    async def aclose(self, timeout_s: float) -> None:
        """Run what is enqueued, then free the stream's thread and buffers.

        Raises:
            DeadlineExceeded: Work that cannot be interrupted was still running after `timeout_s` seconds.
        """
        ...


@runtime_checkable
class Device(Protocol):
    """A place where streams live.

    Attributes:
        name: As written in `devices=[...]`.
        torch_device: Where its tensors are.
        lanes: How many streams can really run at the same time on it.
    """

    name: str
    torch_device: torch_device
    lanes: int

    def timed(self, run: Callable[[], None]) -> float:
        """Run this on the calling thread, wait until the device is done with it, and return the seconds it took."""
        ...

    def open_stream(
        self, name: str, *, notifier: Notifier[DeviceEvent], clock: Clock, threads: int = 1
    ) -> DeviceStream:
        """Open a stream.

        Args:
            name: For threads, logs and errors.
            notifier: Announces completions to the event loop.
            clock: Stamps events.
            threads: Intra-op threads of work on a CPU.
        """
        ...
