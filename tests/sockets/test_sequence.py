"""Sequence numbers: gaps, reorder, repeats and restarts are counted exactly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from partime_async.sockets import SequenceCounts
from partime_async.sockets.accounts import Sequence


def counted(*numbers: int, sent: int | None = None) -> SequenceCounts:
    """Return the counts of frames with these numbers."""
    sequence = Sequence()
    for number in numbers:
        sequence.take(number)
    if sent is not None:
        sequence.finish(sent)
    return sequence.counts()


def test_sequence_in_order_has_no_gaps() -> None:
    """It may begin anywhere: who joins late has missed nothing that counts."""
    assert counted(5, 6, 7) == SequenceCounts(numbered=3, distinct=3)


def test_sequence_with_a_gap_counts_what_is_missing_until_it_comes() -> None:
    """A frame that is late is missing first and reordered then."""
    assert counted(0, 1, 4) == SequenceCounts(numbered=5, distinct=3, missing=2)
    assert counted(0, 1, 4, 2) == SequenceCounts(numbered=5, distinct=4, missing=1, reordered=1)


def test_sequence_with_a_repeated_frame_counts_it_once() -> None:
    """A datagram that comes twice is one frame; the caller is told."""
    sequence = Sequence()
    assert [sequence.take(number) for number in (0, 1, 1, 0, 2)] == [True, True, False, False, True]
    assert sequence.counts() == SequenceCounts(numbered=3, distinct=3, repeated=2)


def test_sequence_with_a_lost_tail_is_told_by_the_goodbye() -> None:
    """No gap shows that the last frames are lost; the sender's count does."""
    assert counted(0, 1, sent=5) == SequenceCounts(numbered=5, distinct=2, missing=3)
    assert counted(0, 1, sent=2) == SequenceCounts(numbered=2, distinct=2)
    assert counted(0, 1, sent=1) == SequenceCounts(numbered=2, distinct=2)


def test_sequence_that_begins_anew_counts_on() -> None:
    """A device that has started again has lost nothing by it; its frames before and after add up."""
    assert counted(5000, 5002, 0, 1) == SequenceCounts(numbered=5, distinct=4, missing=1, restarts=1)


@given(st.permutations(range(60)), st.sets(st.integers(0, 59)), st.lists(st.integers(0, 59)))
def test_sequence_of_any_order_agrees_with_a_set(order: list[int], lost: set[int], again: list[int]) -> None:
    """Against the definition: within the window, counts are those of a set of numbers."""
    sequence, seen, highest = Sequence(), set[int](), -1
    reordered = repeated = 0
    numbers = [0, *(number for number in order if number not in lost and number), *again]
    for number in numbers:
        assert sequence.take(number) is (number not in seen)
        reordered += number not in seen and number < highest
        repeated += number in seen
        seen.add(number)
        highest = max(highest, number)
    counts = sequence.counts()
    assert (counts.numbered, counts.distinct) == (highest + 1, len(seen))
    assert (counts.reordered, counts.repeated, counts.missing) == (reordered, repeated, highest + 1 - len(seen))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_sequence_of_any_numbers_adds_up(numbers: list[int]) -> None:
    """Nonsense in the field neither breaks the sum nor costs memory."""
    sequence = Sequence()
    for number in numbers:
        sequence.take(number)
    counts = sequence.counts()
    assert counts.numbered == counts.distinct + counts.missing
    assert counts.distinct + counts.repeated == len(numbers)
    assert sequence._seen.bit_length() <= Sequence.WINDOW
