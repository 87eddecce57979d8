"""Where messages end: however they are cut into chunks, and whatever comes, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partime_async.sockets import Limits, WireError, wire
from partime_async.sockets.framing import Framing, LengthPrefixed, Lines, Whole

LIMITS = Limits(message_bytes=100)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Return the data in chunks of these sizes, and the rest."""
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [chunk for chunk in (*chunks, data) if chunk]


def drained(framing: Framing) -> tuple[list[bytes], int]:
    """Return the messages that are there, and how often there was an error."""
    messages: list[bytes] = []
    errors = 0
    while True:
        try:
            message = framing.next_message()
        except WireError as error:
            errors += 1
            if error.is_fatal:
                return messages, errors
            continue
        if message is None:
            return messages, errors
        messages.append(bytes(message))


@given(st.lists(st.lists(st.floats(width=32), min_size=1, max_size=5), max_size=8), st.lists(st.integers(1, 50)))
def test_length_prefixed_in_any_chunks_gives_the_same_messages(frames: list[list[float]], sizes: list[int]) -> None:
    """Chunks are the network's business."""
    sent = [wire.encode(values, sequence=number) for number, values in enumerate(frames)]
    framing, got = LengthPrefixed(LIMITS), []
    for chunk in cut(b"".join(sent), sizes):
        framing.receive(chunk)
        messages, errors = drained(framing)
        assert not errors
        got += messages
    assert got == sent
    assert not framing.is_midway


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\xff\xff\xff\xffpt", "too_long"),
        (b"\xff\xff\xff\xff", "too_long"),
        (b"GET / HTTP/1.1\r\n", "magic"),
        (b"\x05\x00\x00\x00pt\x01\x01", "length"),
        (b"\x00\x00\x00\x00pt", "length"),
    ],
)
def test_length_prefixed_refuses_a_length_before_it_keeps_anything(data: bytes, cause: str) -> None:
    """Four gigabytes are refused by their number, a web browser by its first words, and there is no way to go on."""
    framing = LengthPrefixed(LIMITS)
    framing.receive(data)
    with pytest.raises(WireError) as caught:
        framing.next_message()
    assert caught.value.is_fatal
    assert caught.value.cause == cause


@given(st.lists(st.binary(max_size=60)))
def test_length_prefixed_of_rubbish_never_keeps_more_than_a_message_and_a_chunk(chunks: list[bytes]) -> None:
    """Memory is bounded by the limit and by what arrives at once."""
    framing = LengthPrefixed(LIMITS)
    for chunk in chunks:
        framing.receive(chunk)
        _, errors = drained(framing)
        if errors:
            return
        assert len(framing._buffer) < LIMITS.message_bytes + 60


lines = st.lists(st.binary(min_size=1, max_size=80).map(lambda line: line.replace(b"\n", b".")), max_size=8)


@given(lines, st.lists(st.integers(1, 50)))
def test_lines_in_any_chunks_gives_the_same_lines(texts: list[bytes], sizes: list[int]) -> None:
    """Lines come as they were, but for blank ones."""
    framing, got = Lines(LIMITS), []
    for chunk in cut(b"".join(line + b"\n" for line in texts), sizes):
        framing.receive(chunk)
        messages, errors = drained(framing)
        assert not errors
        got += messages
    assert got == [line for line in texts if not line.isspace()]


@given(st.integers(101, 400), st.lists(st.integers(1, 50)))
def test_lines_too_long_are_skipped_once_and_the_next_is_found(length: int, sizes: list[int]) -> None:
    """A line that is too long costs one error, however it arrives; the next comes through, and memory is bounded."""
    framing, got, errors = Lines(LIMITS), [], 0
    for chunk in cut(b"x" * length + b"\nnext\n", sizes):
        framing.receive(chunk)
        messages, wrong = drained(framing)
        got += messages
        errors += wrong
        assert len(framing._buffer) <= LIMITS.message_bytes
    assert (got, errors) == ([b"next"], 1)


def test_whole_takes_a_chunk_as_one_message_or_as_lines() -> None:
    """A datagram is one binary message, or some lines of text whose last one needs no end."""
    binary, text = Whole(LIMITS, is_text=False), Whole(LIMITS, is_text=True)
    for framing in (binary, text):
        framing.receive(b"a\nb\n\nc")
    assert drained(binary) == ([b"a\nb\n\nc"], 0)
    assert drained(text) == ([b"a", b"b", b"c"], 0)
    binary.receive(b"x" * 101)
    assert drained(binary) == ([], 1)
    assert not binary.is_midway
