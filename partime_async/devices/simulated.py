"""A device whose work takes a stated time: for scaling tests, planning and teaching, on a real or a virtual clock."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import torch
from torch import nn

from partime_async.clock import Clock
from partime_async.devices.base import DeviceEvent, DeviceStream, Work, without_frames_of
from partime_async.devices.capture import trial_copy, unchanged
from partime_async.devices.notifier import Notifier
from partime_async.errors import ConfigurationError, DeadlineExceeded, WorkAborted
from partime_async.frame import Value


class SimulatedDevice:
    """A device on which every piece of work takes `service_s` and every input `transfer_s` to arrive.

    The work itself is done on the event loop when it is enqueued, so results are real: keep it tiny. Its completion is
    announced when the stated time has passed. Times follow from each other, not from when the loop woke up: a late
    timer delays one announcement and no other work.

    Args:
        service_s: Seconds of one piece of work.
        transfer_s: Seconds to bring the values of the stage before, while this device works on.

    Raises:
        ConfigurationError: A negative time.
    """

    def __init__(self, service_s: float, *, transfer_s: float = 0.0) -> None:
        for label, seconds in (("service_s", service_s), ("transfer_s", transfer_s)):
            if not seconds >= 0:
                raise ConfigurationError(f"{label} is {seconds}; a simulated time is 0 or more seconds.")
        self.service_s = service_s
        self.transfer_s = transfer_s
        self.name = f"simulated:{service_s * 1e3:g}ms" + (f"+{transfer_s * 1e3:g}ms" if transfer_s else "")
        self.torch_device = torch.device("cpu")
        self.lanes = 2**31  # as many streams as anybody opens

    def timed(self, run: Callable[[], None]) -> float:
        """Run this and return the seconds it is said to take."""
        run()
        return self.service_s

    def open_stream(
        self, name: str, *, notifier: Notifier[DeviceEvent], clock: Clock, threads: int = 1
    ) -> DeviceStream:
        """Open a stream; `notifier` and `threads` have no part in it."""
        return SimulatedStream(name, clock=clock, service_s=self.service_s, transfer_s=self.transfer_s)


class SimulatedStream:
    """A queue of timed work; see `DeviceStream`."""

    def __init__(self, name: str, *, clock: Clock, service_s: float, transfer_s: float) -> None:
        self.name = name
        self.busy_s = 0.0
        self._now = clock.now
        self._service_s = service_s
        self._transfer_s = transfer_s
        self._free_at = 0.0
        self._pending: deque[tuple[DeviceEvent, asyncio.TimerHandle]] = deque()
        self._idle: asyncio.Future[None] | None = None
        self._is_aborted = False

    def prepare(self, module: nn.Module, example: Value, *, capture: bool) -> tuple[Work, Value]:
        """Return the module as it is: a simulated device has nothing to place or record."""
        trial = trial_copy(module)
        with torch.no_grad(), unchanged(trial):
            output: Value = trial(example)
        return torch.no_grad()(module.__call__), output

    def enqueue(
        self,
        work: Work,
        source: DeviceEvent,
        on_complete: Callable[[DeviceEvent], None] | None = None,
        *,
        to_host: bool = False,
        is_background: bool = False,
    ) -> DeviceEvent:
        """Do the work now and complete it when its time has passed; see `DeviceStream.enqueue`."""
        event = DeviceEvent(on_complete)
        arrives_at = max(self._now(), source.finished_at) + self._transfer_s
        event.started_at = max(arrives_at, self._free_at)
        event.finished_at = event.started_at
        if source.error is not None:
            event.fail(source.error, source.origin)
        elif self._is_aborted:
            event.fail(WorkAborted(f"{self.name} was aborted before it came to this work."), self)
        else:
            assert source.value is not None
            event.finished_at += self._service_s
            try:
                event.value = work(source.value)
            except Exception as error:
                event.fail(without_frames_of(__file__, error), self)
        source.release()
        self._free_at = event.finished_at
        timer = asyncio.get_running_loop().call_later(event.finished_at - self._now(), self._complete_due, event)
        self._pending.append((event, timer))
        return event

    def abort(self) -> None:
        """Fail what has not started; see `DeviceStream.abort`."""
        self._is_aborted = True
        now = self._now()
        for event, timer in self._pending:
            if event.started_at > now:
                timer.cancel()
                event.value = None
                event.started_at = event.finished_at = now
                event.fail(WorkAborted(f"{self.name} was aborted before it came to this work."), self)
        self._complete_due(None)

    async def aclose(self, timeout_s: float) -> None:
        """Wait for what is enqueued; see `DeviceStream.aclose`."""
        if self._pending:
            self._idle = self._idle or asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.shield(self._idle)
            except TimeoutError:
                for _, timer in self._pending:
                    timer.cancel()
                raise DeadlineExceeded(f"{self.name} did not finish its simulated work", timeout_s) from None

    def _complete_due(self, due: DeviceEvent | None) -> None:
        # Timers of one deadline may fire in any order: complete in the order of the stream, up to the one that is due.
        last = due.finished_at if due is not None else self._now()
        while self._pending and self._pending[0][0].finished_at <= last:
            event, timer = self._pending.popleft()
            timer.cancel()
            self.busy_s += event.finished_at - event.started_at
            event.complete()
            if event.on_complete is not None:
                # Not from within: `abort` is no place for callbacks, and one that raises must not stop the others.
                asyncio.get_running_loop().call_soon(event.on_complete, event)
        if not self._pending and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
