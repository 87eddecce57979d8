"""JSON lines and CSV: what devices may write, and that nothing else gets through."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from partime_async.errors import ConfigurationError
from partime_async.sockets import Clock, FormatName, Kind, Limits, Message, WireError
from partime_async.sockets.formats import Csv, JsonLines, make_format, note

LIMITS = Limits()


def frames(name: str, *lines: str) -> list[Message]:
    """Return what lines say, read one after the other by one connection."""
    found = make_format(name, LIMITS)
    return [message for line in lines for message in found.decode(bytearray(line.encode()))]


def test_json_of_a_bare_list_is_a_frame_with_the_next_number() -> None:
    """The simplest device sends lists and nothing else."""
    first, second = frames("json", "[1, 2.5]", "3")
    assert (first.array.tolist(), first.sequence, first.clock) == ([1.0, 2.5], 0, Clock.NONE)
    assert (second.array.tolist(), second.sequence) == ([3.0], 1)
    assert first.array.dtype == np.float32


def test_json_of_an_object_tells_all_that_is_known() -> None:
    """Number, time, clock, target and the wish for an answer; what else there is does not matter."""
    line = (
        '{"values": [[1, 2], [3, 4]], "sequence": 9, "captured_at": 2.5, "clock": "wall", "target": 1, "x": 0, '
        '"reply": true}'
    )
    target, frame = frames("json", line)
    assert (target.kind, target.sequence, target.array.tolist(), target.array.dtype.kind) == (Kind.TARGET, 9, 1, "i")
    assert (frame.array.shape, frame.sequence, frame.captured_at, frame.clock) == ((2, 2), 9, 2.5, Clock.WALL)
    assert frame.wants_reply


def test_json_signals_are_signals() -> None:
    """A device says hello and goodbye, and sends late targets, in words."""
    hello, bye, target = frames(
        "json",
        '{"kind": "hello"}',
        '{"kind": "bye", "sequence": 3}',
        '{"kind": "target", "sequence": 2, "values": [1]}',
    )
    assert (hello.kind, bye.kind, bye.sequence) == (Kind.HELLO, Kind.BYE, 3)
    assert (target.kind, target.sequence) == (Kind.TARGET, 2)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "null",
        "[]",
        '["1"]',
        "[null]",
        "[[1], [1, 2]]",
        "[1e400]",
        "[" * 5000 + "]" * 5000,
        "[" * 70 + "1" + "]" * 70,
        "[" * 9 + "1" + "]" * 9,
        '{"values": "abc"}',
        '{"values": [1], "sequence": -1}',
        '{"values": [1], "sequence": 18446744073709551616}',
        '{"values": [1], "sequence": 1.5}',
        '{"values": [1], "clock": "sundial"}',
        '{"values": [1], "kind": "note"}',
        '{"values": [100000000000000000000000000]}',
    ],
)
def test_json_of_anything_else_is_refused(line: str) -> None:
    """What is no tensor of numbers is one error, of the sender."""
    with pytest.raises(WireError):
        frames("json", line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"sequence": 3}', r"there are no values\. Send"),
        ('{"values": "abc"}', r"the values are text\. Send lists of numbers"),
        ("[null, 1]", r"the values are not all numbers\. Send lists"),
        ("[]", r"the values are numbers of shape \(0,\)\. Send lists"),
    ],
)
def test_json_without_numbers_says_in_words_what_it_has(line: str, words: str) -> None:
    """Whoever programs a device knows nothing of numpy's names for types."""
    with pytest.raises(WireError, match=words):
        frames("json", line)


@given(st.binary(max_size=60))
@example(b"\xff\xfe")
@example(b'{"values":[1],"kind":"\\ud800"}')
@pytest.mark.parametrize("name", list(FormatName))
def test_decode_of_any_bytes_gives_messages_or_an_error(name: str, data: bytes) -> None:
    """Random bytes never do anything else, in any format."""
    try:
        messages = make_format(name, LIMITS).decode(bytearray(data))
    except WireError:
        return
    assert all(isinstance(message, Message) for message in messages)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_json_of_any_value_gives_messages_or_an_error(value: object) -> None:
    """Nor does JSON that is well formed and means something else."""
    for line in (value, {"values": value}, {"values": [1], "target": value}, {"values": [1], "sequence": value}):
        try:
            messages = frames("json", json.dumps(line))
        except WireError:
            continue
        assert all(message.array.dtype == np.float32 for message in messages if message.kind is Kind.FRAME)


def test_csv_without_names_is_all_values() -> None:
    """Comma, semicolon, tab and blanks around numbers are all understood."""
    read = frames("csv", "1,2.5", "3; 4", "5\t6e0\r")
    assert [message.array.tolist() for message in read] == [[1.0, 2.5], [3.0, 4.0], [5.0, 6.0]]
    assert [message.sequence for message in read] == [0, 1, 2]


def test_csv_with_names_finds_number_and_time() -> None:
    """The first line may name the columns, as files from data loggers do."""
    read = frames("csv", '"time",x,seq,y', "0.5,1,7,2", "nan,1,8,2")
    assert [(message.array.tolist(), message.sequence) for message in read] == [([1.0, 2.0], 7), ([1.0, 2.0], 8)]
    assert (read[0].captured_at, read[0].clock) == (0.5, Clock.MONOTONIC)
    assert (read[1].captured_at, read[1].clock) == (None, Clock.NONE)


@pytest.mark.parametrize(
    "lines", [("x,y", "x,y"), ("1,2", "x,y"), ("seq", "1"), ("seq,x", "-1,2"), ("seq,x", "1.5,2"), ("?,!",)]
)
def test_csv_of_anything_else_is_refused(lines: tuple[str, ...]) -> None:
    """Names come first or not at all, and a line has values."""
    with pytest.raises(WireError):
        frames("csv", *lines)


def test_csv_comments_name_columns_and_say_goodbye() -> None:
    """What cannot be said in numbers is a comment; other comments say nothing."""
    read = frames("csv", "# made by hand", "# columns: sequence, values", "4,1,2", "# hello", "# bye 5", "# bye")
    assert [message.kind for message in read] == [Kind.FRAME, Kind.HELLO, Kind.BYE, Kind.BYE]
    assert [message.sequence for message in read] == [4, 0, 5, 5]
    assert read[0].array.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", list(FormatName))
def test_encode_of_a_result_can_be_read_in_the_same_format(name: str) -> None:
    """What one side writes the other reads: values, number, and where the format has them, time and kind."""
    sent = Message(np.array([1.5, -2.0, 0.1], np.float32), 12, 3.25, Kind.RESULT, Clock.WALL)
    form = make_format(name, LIMITS)
    reader = make_format(name, LIMITS)
    for line in form.greeting.splitlines():
        reader.decode(bytearray(line))
    [got] = reader.decode(bytearray(form.encode(sent).rstrip(b"\n") if form.is_text else form.encode(sent)))
    assert got.array.tolist() == sent.array.tolist()
    assert got.sequence == 12
    if name != "csv":
        assert (got.captured_at, got.clock, got.kind) == (3.25, Clock.WALL, Kind.RESULT)


def test_encode_of_a_note_is_readable_by_people_and_machines() -> None:
    """Errors come as JSON objects, as comments in CSV."""
    told = note({"error": "no"}, 3)
    assert JsonLines(LIMITS).encode(told) == b'{"error":"no"}\n'
    assert Csv(LIMITS).encode(told) == b'# {"error":"no"}\n'


def test_encode_of_what_is_no_number_is_null_in_json() -> None:
    """JSON has no NaN: it is written as null, which every reader understands."""
    assert b'"values":[null]' in JsonLines(LIMITS).encode(Message(np.array([np.nan], np.float32), 0, kind=Kind.RESULT))


def test_make_format_of_an_unknown_name_is_refused() -> None:
    """A name that means nothing lists those that do."""
    with pytest.raises(ConfigurationError, match="binary, json, csv"):
        make_format("xml", LIMITS)
