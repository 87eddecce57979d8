"""How long a live frame can wait outside without getting through any later."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from partime_async.devices import DeviceEvent
from partime_async.flight import Frame
from partime_async.forecast import Outlook, Pace, delay_s, has_time_to_learn, spare_s, window
from partime_async.frame import Result

_EVEN = (Pace(0.04, 0.0), Pace(0.04, 0.0))


class _Nobody:
    def finish(self, frame: Frame, result: Result) -> None:
        """Take nothing."""

    def discard(self, frame: Frame) -> None:
        """Take nothing."""


def _frame(admitted_at: float, *stages: tuple[float, float | None]) -> Frame:
    """Make a frame with an event for each stage it is enqueued at: when it began (0.0: it has not), when it ended."""
    frame = Frame(_Nobody(), 0, torch.ones(1), target=None, captured_at=0.0, context=None)
    frame.admitted_at = admitted_at
    for started_at, finished_at in stages:
        event = DeviceEvent()
        event.started_at = started_at
        if finished_at is not None:
            event.finished_at = finished_at
            event.complete()
        frame.events.append(event)
    return frame


def test_spare_of_an_idle_pipeline_is_none() -> None:
    """With nothing in flight a frame gains nothing by waiting."""
    assert spare_s(10.0, [], _EVEN) == 0.0
    assert delay_s(10.0, [], _EVEN) == 0.0


def test_spare_before_the_first_frame_is_none() -> None:
    """Stages that have done nothing yet are taken to need no time."""
    assert spare_s(10.0, [_frame(9.9, (0.0, None))], (Pace(0.0, 0.0), Pace(0.0, 0.0))) == 0.0


def test_spare_behind_a_frame_at_the_first_stage_is_what_that_one_still_needs() -> None:
    """Half way through the first stage, the next frame can wait for the other half, a leeway less."""
    flying = [_frame(10.0, (10.0, None), (0.0, None))]
    assert spare_s(10.02, flying, _EVEN) == pytest.approx(0.02)
    assert delay_s(10.02, flying, _EVEN) == pytest.approx(0.02 - 0.2 * 0.04 - 0.001)


def test_spare_behind_a_frame_that_waits_between_stages_counts_its_wait() -> None:
    """A later stage that has one frame running and one waiting is what the next frame would wait for, too."""
    running = _frame(9.9, (9.9, 9.94), (10.0, None))
    waiting = _frame(9.95, (9.95, 9.99), (0.0, None))
    # The later stage is free at 10.08, and the first one needs 0.04 s to get there.
    assert spare_s(10.0, [running, waiting], _EVEN) == pytest.approx(0.04)


def test_spare_behind_a_stage_that_learns_counts_its_lessons() -> None:
    """A stage takes no frame while it learns from one before, whether that is still in flight or through already."""
    flying = [_frame(10.0, (10.0, None))]
    flying[0].index = 7
    assert spare_s(10.0, flying, (Pace(0.01, 0.02, {7: 0.03}),)) == pytest.approx(0.04)
    waiting = [_frame(10.0, (0.0, None))]
    assert spare_s(10.0, waiting, (Pace(0.01, 0.02, {6: 0.03}),)) == pytest.approx(0.04)
    assert spare_s(10.0, flying, (Pace(0.01, 0.02, {}),)) == pytest.approx(0.01), "no lesson: average or not"
    assert spare_s(10.0, [], (Pace(0.01, 0.02, {7: 0.005}),)) == pytest.approx(0.005)


def _offered(at: float, index: int = 0) -> Frame:
    frame = _frame(at)
    frame.offered_at, frame.index = at, index
    return frame


def _outlook(period_s: float, *lessons: int) -> Outlook:
    """Make one on frames that come so often, after these lessons."""
    outlook = Outlook(2)
    for beat in range(2):
        outlook.offered(beat * period_s)
    for index in lessons:
        taught = _offered(0.0, index)
        taught.is_lesson = True
        outlook.admitted(taught)
    return outlook


def test_time_to_learn_before_the_second_frame_depends_on_the_first() -> None:
    """A frame that waited a good part of a stage's time at its feed, or will inside, is not learned from."""
    frame, outlook = _offered(9.995), Outlook(0)
    assert has_time_to_learn(10.0, frame, [], _EVEN, outlook)
    assert not has_time_to_learn(10.02, frame, [], _EVEN, outlook)
    assert not has_time_to_learn(10.0, frame, [_frame(9.99, (9.99, None), (0.0, None))], _EVEN, outlook)


@pytest.mark.parametrize(("period_s", "has_time"), [(0.08, True), (0.04, False)])
def test_time_to_learn_is_there_if_the_frames_behind_hardly_wait(period_s: float, has_time: bool) -> None:
    """The frame finds the stages free; whether the lesson is over when the next ones come decides."""
    paces = (Pace(0.02, lesson_s=0.05, reach=1), Pace(0.02, lesson_s=0.05))
    assert has_time_to_learn(10.0, _offered(10.0), [], paces, _outlook(period_s)) is has_time


def test_time_to_learn_counts_the_lessons_that_earlier_frames_left_to_the_first_stages() -> None:
    """A stage that learns frames later than the last one is busy with those lessons, too."""
    paces = (Pace(0.02, lesson_s=0.05, reach=2), Pace(0.02))
    assert has_time_to_learn(10.0, _offered(10.0, 7), [], paces, _outlook(0.05, 3, 4))
    assert not has_time_to_learn(10.0, _offered(10.0, 7), [], paces, _outlook(0.05, 5, 6))


def test_time_to_learn_settles_at_every_other_frame_where_that_is_all_there_is_time_for() -> None:
    """Lessons that take one and a half periods of both stages come every other frame, not in a row and then none."""
    period_s = 0.03
    paces = (Pace(0.01, lesson_s=0.03, reach=2), Pace(0.01, lesson_s=0.03))
    outlook, free_at, taught = Outlook(2), [0.0, 0.0], []
    for index in range(40):
        now = index * period_s
        frame = _offered(now, index)
        outlook.offered(now)
        behind = [
            Pace(0.01, 0.0, {-1: max(0.0, free - now)}, 0.03, pace.reach)
            for pace, free in zip(paces, free_at, strict=True)
        ]
        frame.is_lesson = has_time_to_learn(now, frame, [], behind, outlook)
        outlook.admitted(frame)
        taught.append(frame.is_lesson)
        at = now
        for stage, pace in enumerate(paces):
            at = max(at, free_at[stage]) + pace.service_s
            lesson = index - pace.reach
            free_at[stage] = at + pace.lesson_s * (lesson >= 0 and taught[lesson])
    assert taught[10:] == [True, False] * 15 or taught[10:] == [False, True] * 15


def test_outlook_after_a_pause_is_hardly_changed() -> None:
    """A camera that was covered for a while is no slow camera; one that has become slow is soon taken for one."""
    outlook = Outlook(0)
    for now in (0.0, 0.03, 0.06, 10.0):
        outlook.offered(now)
    assert outlook.period_s < 0.04
    for beat in range(40):
        outlook.offered(10.2 + 0.2 * beat)
    assert outlook.period_s == pytest.approx(0.2, rel=0.05)


def test_spare_behind_a_frame_that_takes_longer_than_ever_is_none() -> None:
    """Work that is overdue is taken to end now: the next frame is let in at once."""
    assert spare_s(10.0, [_frame(9.0, (9.0, None))], (Pace(0.04, 0.0),)) == 0.0


def test_window_keeps_the_slowest_stage_busy() -> None:
    """As many frames as the slowest stage's time goes into the sum, and one more; before the first, one per stage."""
    assert window(_EVEN) == 3
    assert window((Pace(0.01, 0.0), Pace(0.04, 0.04))) == 2
    assert window((Pace(0.0, 0.0),) * 4) == 5


@given(
    services_s=st.lists(st.floats(0.001, 0.1), min_size=1, max_size=5),
    admissions_s=st.lists(st.floats(0.0, 0.05), max_size=4),
)
def test_spare_never_makes_a_frame_later(services_s: list[float], admissions_s: list[float]) -> None:
    """Let in after the spare time or at once, a frame is through at the same moment."""
    paces = [Pace(service_s, 0.0) for service_s in services_s]
    now = 10.0
    flying, free_at = [], [now] * len(paces)
    for ago in sorted(admissions_s, reverse=True):
        flying.append(_frame(now - ago, *((0.0, None) for _ in paces)))
        _pass(now - ago, paces, free_at, now)
    spare = spare_s(now, flying, paces)
    assert _pass(now + spare, paces, list(free_at), now) == pytest.approx(_pass(now, paces, list(free_at), now))
    if spare:
        late = 0.001
        assert _pass(now + spare + late, paces, list(free_at), now) == pytest.approx(
            _pass(now, paces, list(free_at), now) + late
        )


def _pass(at: float, paces: list[Pace], free_at: list[float], now: float) -> float:
    """Take a frame through stages that are free from then on; return when it is through."""
    for stage, pace in enumerate(paces):
        at = free_at[stage] = max(max(at, free_at[stage]) + pace.service_s, now)
    return at
