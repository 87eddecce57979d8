"""Targets as live systems have them: with the frame, a few frames later, or never."""

from __future__ import annotations

from dataclasses import dataclass

from partime_async.errors import LabelError
from partime_async.frame import Value


@dataclass(frozen=True, slots=True)
class LabelStatistics:
    """What became of the targets.

    Attributes:
        taken: Met their frame, and the loss was of the two.
        missing: Frames that had no target when they were to be learned from.
        refused: Came too late, or for a frame that does not exist.
    """

    taken: int
    missing: int
    refused: int


class LabelBook:
    """Holds each target until the event that learns from its frame: `delay` admissions after the frame's own.

    Which event that is never depends on when the target came, only whether it came in time. At most `delay` + 1 targets
    are held.

    Args:
        delay: The learner's `label_delay`, in frames.
    """

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self._admitted = 0
        self._targets: dict[int, Value] = {}
        self._taken = 0
        self._missing = 0
        self._refused = 0

    def admit(self, index: int, target: Value | None) -> Value | None:
        """Note a frame, with the target that came along, if one did; return the target that its event learns from."""
        self._admitted = index + 1
        if target is not None:
            self._targets[index] = target
        due = index - self._delay
        found = self._targets.pop(due, None)
        if found is not None:
            self._taken += 1
        elif due >= 0:
            self._missing += 1
        return found

    def label(self, index: int, target: Value) -> None:
        """Take the target of a frame that was admitted before.

        Raises:
            LabelError: The frame was not admitted yet, or its event has passed.
        """
        # The event that learns from this frame is that of frame index + delay: it must not have been admitted.
        latest = self._admitted - 1
        if not 0 <= index <= latest or index + self._delay <= latest:
            self._refused += 1
            raise LabelError(index, latest, self._delay)
        self._targets[index] = target

    def statistics(self) -> LabelStatistics:
        """Return what became of the targets so far."""
        return LabelStatistics(self._taken, self._missing, self._refused)
