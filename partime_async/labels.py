"""Targets as live systems have them: with the frame, a few frames later, or never."""

from __future__ import annotations

from dataclasses import dataclass

from partime_async.errors import LabelError
from partime_async.frame import Value

MOST_WITHHELD = 9
"""Targets withheld in a row: a pipeline that never has time to spare learns a little all the same."""


@dataclass(frozen=True, slots=True)
class LabelStatistics:
    """What became of the targets.

    Attributes:
        taken: Met their frame, and the loss was of the two.
        missing: Frames that had no target when they were to be learned from.
        withheld: Not learned from, as the stages had no time to spare; see `Learn.SPARE`.
        refused: Came too late, or for a frame that does not exist.
    """

    taken: int
    missing: int
    withheld: int
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
        self._withheld = 0
        self._in_a_row = 0
        self._refused = 0

    def admit(self, index: int, target: Value | None, *, has_time: bool = True) -> tuple[Value | None, bool]:
        """Note a frame, with the target that came along, if one did.

        Args:
            index: The frame's number.
            target: What came along.
            has_time: Whether there is time to learn. Without it a target is withheld, but never ten in a row.

        Returns:
            The target whose frame this frame's event may learn from, and whether it does.
        """
        self._admitted = index + 1
        if target is not None:
            self._targets[index] = target
        due = index - self._delay
        found = self._targets.pop(due, None)
        if found is None:
            self._missing += due >= 0
            return None, False
        if has_time or self._in_a_row == MOST_WITHHELD:
            self._taken += 1
            self._in_a_row = 0
            return found, True
        self._withheld += 1
        self._in_a_row += 1
        return found, False

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
        return LabelStatistics(self._taken, self._missing, self._withheld, self._refused)
