"""How many frames of live feeds may be in flight, when the next one is let in, and whether there is time for a lesson.

    stage 0   [ frame 7 ][...spare...][ frame 8 ]
    stage 1        [   frame 6    ][   frame 7   ][ frame 8 ...

Frame 8 could start at stage 0 right behind frame 7, only to wait before stage 1; meanwhile a newer picture could have
taken its place. So it is let in only so late that stage 1 has no time to run dry.

Whether to learn from a frame is asked of the frames behind it, which will find the stages at it: those are played
forward too, as they have come lately. If only the frame itself had to find the stages free, lessons would follow each
other as long as that goes well, and then many frames wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from partime_async.flight import Frame
from partime_async.metrics import MovingAverage

_SLACK = 0.25
"""Share of a stage's time that hops and jitter may take before a window of whole frames runs dry."""

_LEEWAY = 0.2
"""Share of the slowest stage's time by which a frame is let in early, as stages take now more, now less: with a jitter
of 5% it costs less than a hundredth of the frames/s, and makes every frame that much older."""

_PATIENCE = 0.3
"""Share of the time between two frames that frames may wait for a lesson on average: of one lesson in two frames, most
of it falls on one of them. With more, lessons follow each other until frames are lost; with less, now and then two
frames in three go by without one. From 0.28 to 0.35 the training steps/s of the live benchmark hardly change."""

_LONGEST = 2.0
"""How many times the usual time between two frames counts at most: a camera that was covered is no slow camera."""

_WAKING_S = 0.001
"""How late a timer may be; a wait no longer than that is none."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a stage needs for a frame, lately; 0.0 before the first.

    Attributes:
        service_s: Seconds until the frame goes on to the next stage.
        learning_s: Seconds of learning after that, before the stage takes another frame; on average, lessons or not.
        lessons_s: Seconds of learning that each frame in this stage or behind it still costs, by the frame's number.
        lesson_s: Seconds that one lesson takes.
        reach: How many frames after a lesson's own this stage learns from it.
    """

    service_s: float
    learning_s: float = 0.0
    lessons_s: Mapping[int, float] = field(default_factory=dict)
    lesson_s: float = 0.0
    reach: int = 0

    @property
    def period_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.service_s + self.learning_s


def window(paces: Sequence[Pace]) -> int:
    """Return how many frames may be in flight: those that keep the slowest stage busy.

    A frame needs the sum S of the stage times, and one leaves every P, the slowest stage's time: S / P frames in flight
    keep that stage busy, and one more covers for hops and jitter. It bounds what `delay_s` can get wrong.
    """
    periods = [pace.period_s for pace in paces]
    slowest = max(periods)
    if slowest <= 0.0:
        return len(periods) + 1
    return math.floor(sum(periods) / slowest + _SLACK) + 1


def delay_s(now: float, flying: Iterable[Frame], paces: Sequence[Pace]) -> float:
    """Return how many seconds the next frame should still wait outside, where a newer one may take its place.

    Args:
        now: Clock time in seconds.
        flying: The frames in flight, in the order of their admission.
        paces: Of each stage.
    """
    leeway_s = _LEEWAY * max(pace.period_s for pace in paces) + _WAKING_S
    wait_s = spare_s(now, flying, paces) - leeway_s
    return wait_s if wait_s > _WAKING_S else 0.0


def has_time_to_learn(
    now: float, frame: Frame, flying: Iterable[Frame], paces: Sequence[Pace], outlook: Outlook
) -> bool:
    """Tell whether learning from this frame costs no other one: on average, it and those behind it hardly wait.

    Args:
        now: Clock time in seconds.
        frame: Admitted now, and not among those in flight.
        flying: The frames in flight, in the order of their admission.
        paces: Of each stage.
        outlook: On the frames behind it.
    """
    services_s = [pace.service_s for pace in paces]
    free_at = _free_at(now, flying, paces)
    # The last stage learns before the next frame, the others before the one after `reach`.
    horizon = 1 + max(pace.reach for pace in paces) if outlook.period_s else 0
    waits_s = 0.0
    for ahead in range(horizon + 1):
        offered_at = frame.offered_at + ahead * outlook.period_s
        at = max(now, offered_at)
        for stage, pace in enumerate(paces):
            at = max(at, free_at[stage]) + pace.service_s
            taught = frame.index + ahead - pace.reach
            free_at[stage] = at + (pace.lesson_s if taught == frame.index or taught in outlook.lessons else 0.0)
        waits_s += at - offered_at - sum(services_s)
    return waits_s / (horizon + 1) <= _PATIENCE * (outlook.period_s or max(services_s)) + _WAKING_S


def spare_s(now: float, flying: Iterable[Frame], paces: Sequence[Pace]) -> float:
    """Return how much later a frame could be let in and still be through as early as if it were let in now.

    The frames in flight are played forward: what is done is known, what runs or waits takes as long as it did lately.
    """
    through = now
    for pace, free in zip(paces, _free_at(now, flying, paces), strict=True):
        through = max(through, free) + pace.service_s
    return max(0.0, through - now - sum(pace.service_s for pace in paces))


class Outlook:
    """On the frames to come: how often they do, and what they will find the stages at.

    Attributes:
        lessons: The numbers of the latest lessons, as far back as a stage still learns from them.
    """

    __slots__ = ("_offered_at", "_period", "lessons")

    def __init__(self, reach: int) -> None:
        self._offered_at = math.nan
        self._period = MovingAverage(most=_LONGEST)
        self.lessons: deque[int] = deque(maxlen=reach + 1)

    @property
    def period_s(self) -> float:
        """Seconds from one offered frame to the next, lately, of all feeds together; 0.0 before the second."""
        return self._period.value

    def offered(self, now: float) -> None:
        """Take note that a feed got a frame."""
        since_s = now - self._offered_at
        if since_s >= 0.0:
            self._period.update(since_s)
        self._offered_at = now

    def admitted(self, frame: Frame) -> None:
        """Take note of a frame with its number, when it is known whether there is something to learn at its event."""
        if frame.is_lesson:
            self.lessons.append(frame.index)


def _free_at(now: float, flying: Iterable[Frame], paces: Sequence[Pace]) -> list[float]:
    """Return when each stage is through with the frames in flight and their lessons."""
    flying = tuple(flying)
    free_at = [now + _lessons_now_s(stage, pace, flying) for stage, pace in enumerate(paces)]
    for frame in flying:
        at = frame.admitted_at
        for stage, pace in enumerate(paces):
            event = frame.events[stage] if stage < len(frame.events) else None
            if event is not None and event.is_complete:
                at = event.finished_at
            else:
                has_begun = event is not None and event.started_at > 0.0
                begins = event.started_at if event is not None and has_begun else max(at, free_at[stage])
                at = max(begins + pace.service_s, now)
                free_at[stage] = max(free_at[stage], at + pace.lessons_s.get(frame.index, 0.0))
    return free_at


def _lessons_now_s(stage: int, pace: Pace, flying: Sequence[Frame]) -> float:
    """Return how long the stage still learns from frames that have been through it."""
    if not pace.lessons_s:
        return 0.0
    to_come = {frame.index for frame in flying if stage >= len(frame.events) or not frame.events[stage].is_complete}
    return sum(seconds for index, seconds in pace.lessons_s.items() if index not in to_come)
