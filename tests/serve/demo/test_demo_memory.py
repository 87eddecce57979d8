"""What is kept of the pictures that were taught."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from partime_async.serve.demo.memory import EXAM_EVERY, EXAMS, REHEARSED, THUMBNAIL, Memory, packed

PICTURE = np.zeros((THUMBNAIL[1], THUMBNAIL[0], 3), np.uint8)


def teach(memory: Memory, label: int, count: int) -> None:
    """Show so many pictures of a class, each a number."""
    for number in range(count):
        is_exam = memory.is_for_exam(label)
        memory.count(label)
        value = torch.tensor([float(number)])
        if is_exam:
            memory.examine(label, value, PICTURE)
        else:
            memory.keep(label, value)


def test_memory_taught_without_end_keeps_a_bounded_fair_sample() -> None:
    """However many pictures come, so many are kept, and old ones are as likely to be there as new ones."""
    ages = []
    for seed in range(30):
        memory = Memory(seed)
        teach(memory, 0, 1200)
        drawer = memory.drawers[0]
        assert len(drawer.rehearsed) == REHEARSED
        assert len(drawer.exams) == EXAMS
        assert drawer.seen == 1200
        ages += [float(value) for value in drawer.rehearsed]
    assert 500 < np.mean(ages) < 700


def test_memory_of_a_short_press_has_an_exam() -> None:
    """Even a press of half a second leaves a picture for the examination, which is not rehearsed."""
    memory = Memory()
    teach(memory, 3, EXAM_EVERY)
    drawer = memory.drawers[3]
    assert [float(exam.value) for exam in drawer.exams] == [EXAM_EVERY // 2 - 1]
    assert EXAM_EVERY // 2 - 1 not in [float(value) for value in drawer.rehearsed]


def test_memory_lessons_take_classes_in_turn_but_for_the_one_being_taught() -> None:
    """Every other class is rehearsed equally often, however many pictures it has; the only class is rehearsed, too."""
    memory = Memory()
    assert memory.lesson(instead_of=None) is None
    teach(memory, 0, 10)
    alone = memory.lesson(instead_of=0)
    assert alone is not None
    assert alone[0] == 0
    for label, count in ((1, 200), (2, 30)):
        teach(memory, label, count)
    chosen = [memory.lesson(instead_of=1) for _ in range(40)]
    assert Counter(pick[0] for pick in chosen if pick is not None) == {0: 20, 2: 20}


def test_memory_exams_take_turns_and_tell_the_retention() -> None:
    """Every examination comes up in turn; the retention is the share of right answers among those asked."""
    memory = Memory()
    assert memory.exam() is None
    teach(memory, 0, 3 * EXAM_EVERY)
    drawer = memory.drawers[0]
    assert drawer.retention is None
    asked = [memory.exam() for _ in range(3)]
    assert {id(pick[1]) for pick in asked if pick is not None} == {id(exam) for exam in drawer.exams}
    drawer.exams[0].is_right, drawer.exams[1].is_right = True, False
    assert drawer.retention == 0.5


def test_memory_examined_between_rehearsals_asks_about_every_picture() -> None:
    """Two rehearsals for each question, as the service has them, leave no picture out."""
    memory = Memory()
    for label in (0, 1, 2):
        teach(memory, label, EXAM_EVERY * EXAMS)
    count = 3 * EXAMS
    asked = set()
    for _ in range(count):
        memory.lesson(instead_of=None)
        memory.lesson(instead_of=None)
        chosen = memory.exam()
        assert chosen is not None
        asked.add(id(chosen[1]))
    assert len(asked) == count


def test_memory_restored_is_as_it_was_and_stays_apart_from_the_copy() -> None:
    """Going back to a copy brings the pictures back, and what comes later does not change the copy."""
    memory = Memory()
    teach(memory, 0, 40)
    copy = memory.copy()
    for _ in range(2):
        memory.forget(0)
        teach(memory, 0, 5)
        memory.restore(copy)
        assert memory.drawers[0].seen == 40
        assert len(memory.drawers[0].exams) == 3
        assert memory.drawers[0].is_changed


def test_packed_thumbnail_has_three_bytes_a_pixel() -> None:
    """A thumbnail goes out as plain pixels, whatever its memory looks like."""
    assert len(packed(PICTURE[:, ::-1])) == 3 * THUMBNAIL[0] * THUMBNAIL[1]
