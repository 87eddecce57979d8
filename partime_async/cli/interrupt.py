"""Ctrl-C: the first one ends the work, a second one does not wait for it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_PATIENCE_S = 1.5
"""Seconds that cancelling may take when nothing is there yet that would be lost."""


class Interrupt:
    """Takes SIGINT and SIGTERM while its `with` block runs, in a task of the main thread's loop.

    Until `when` names an action, the first signal cancels the task, and ends the process if that takes too long: a
    planner or a camera driver cannot be cancelled. Afterwards it calls the action. A second signal always cancels.

    Attributes:
        signal: The first signal that came; None: none did.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._action: Callable[[], None] | None = None
        self._task: asyncio.Task[object] | None = None
        self._timer: threading.Timer | None = None
        self._handled: list[signal.Signals] = []

    @property
    def exit_code(self) -> int:
        """What shells expect of a process ended by this signal; 0 if none came."""
        return 0 if self.signal is None else 128 + self.signal

    def when(self, action: Callable[[], None]) -> None:
        """Name what the first signal does from now on."""
        self._action = action

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._came, number)
            except (NotImplementedError, ValueError, RuntimeError):
                continue  # Windows, or not the main thread: the runner cancels the task on Ctrl-C
            self._handled.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in self._handled:
            asyncio.get_running_loop().remove_signal_handler(number)
        if self._timer is not None:
            self._timer.cancel()

    def _came(self, number: signal.Signals) -> None:
        is_first = self.signal is None
        if is_first:
            self.signal = number
        if is_first and self._action is not None:
            self._action()
            return
        assert self._task is not None
        self._task.cancel()
        if self._timer is None:
            self._timer = threading.Timer(_PATIENCE_S, self._give_up)
            self._timer.daemon = True
            self._timer.start()

    def _give_up(self) -> None:
        sys.stderr.write("interrupted; something that cannot be cancelled was at work\n")
        sys.stderr.flush()
        os._exit(self.exit_code)
