"""The binary format: what it looks like, that it comes back as it was, and that nothing else comes back at all."""

from __future__ import annotations

import math
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from partime_async.errors import FrameError
from partime_async.sockets import Clock, Kind, Limits, Message, WireError, wire

GOLDEN = bytes.fromhex(
    "24000000"  # 36 bytes follow: 24 of the header, 4 of the shape, 8 of the data
    "7074"  # magic: "pt"
    "01"  # version
    "01"  # kind: frame
    "0700000000000000"  # sequence 7
    "000000000000f83f"  # captured at 1.5 s
    "01"  # float32
    "01"  # one dimension
    "01"  # monotonic clock
    "01"  # wants a reply
    "02000000"  # shape (2,)
    "0000803f00000040"  # 1.0, 2.0
)

DTYPES = ["f4", "f8", "f2", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]
arrays = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in DTYPES]), hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)
)


def test_encode_of_a_vector_gives_the_documented_bytes() -> None:
    """The bytes are those of docs/wire.md, which C programs write."""
    values = np.array([1.0, 2.0], np.float32)
    assert wire.encode(values, sequence=7, captured_at=1.5, wants_reply=True) == GOLDEN


def test_header_lies_as_a_c_struct_does() -> None:
    """No field needs packing: a C compiler lays the struct out in the same way."""
    assert struct.calcsize("@IBBBBQdBBBB") == wire.HEADER.size == 28


@given(arrays, st.integers(0, 2**64 - 1), st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_decode_of_an_encoded_message_returns_it(array: np.ndarray, sequence: int, captured_at: float | None) -> None:
    """Whatever can be sent arrives as it was: values bit for bit, shape, dtype, number and time."""
    message = wire.decode(
        bytearray(wire.encode(array, sequence=sequence, captured_at=captured_at, clock=Clock.WALL, kind=Kind.TARGET))
    )
    assert message.array.tobytes() == np.ascontiguousarray(array).tobytes()
    assert (message.array.shape, message.array.dtype) == (array.shape, array.dtype)
    assert (message.sequence, message.captured_at, message.kind) == (sequence, captured_at, Kind.TARGET)
    assert message.clock is (Clock.NONE if captured_at is None else Clock.WALL)
    assert message.array.flags.aligned


@given(st.binary(max_size=200))
def test_decode_of_any_bytes_gives_a_message_or_a_frame_error(data: bytes) -> None:
    """Random bytes never do anything else."""
    assert issubclass(WireError, FrameError)
    with suppress(WireError):
        assert isinstance(wire.decode(data), Message)


@given(st.data())
@settings(max_examples=300)
def test_decode_of_a_damaged_message_gives_a_message_or_a_frame_error(data: st.DataObject) -> None:
    """Nor does a good message with some bytes changed, cut off or added, which gets further into the decoder."""
    damaged = bytearray(GOLDEN)
    for position in data.draw(st.lists(st.integers(0, len(GOLDEN) - 1), max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] + data.draw(st.binary(max_size=8))
    if data.draw(st.booleans()) and len(damaged) >= 4:
        damaged[:4] = (len(damaged) - 4).to_bytes(4, "little")
    try:
        message = wire.decode(damaged)
    except WireError:
        return
    assert message.array.nbytes <= len(damaged)


@pytest.mark.parametrize(
    ("position", "replacement", "cause"),
    [
        (4, b"xx", "magic"),
        (6, b"\x02", "magic"),
        (7, b"\x00", "header"),
        (26, b"\x03", "header"),
        (27, b"\x04", "header"),
        (24, b"\x00", "dtype"),
        (24, b"\x0d", "dtype"),
        (25, b"\x09", "shape"),
        (25, b"\xff", "shape"),
        (28, b"\x00\x00\x00\x00", "shape"),
        (28, b"\xff\xff\xff\xff", "shape"),
        (0, b"\x25", "length"),
    ],
)
def test_decode_names_what_is_wrong(position: int, replacement: bytes, cause: str) -> None:
    """Every field has its own cause, for counting, and the text says where the format is described."""
    damaged = bytearray(GOLDEN)
    damaged[position : position + len(replacement)] = replacement
    with pytest.raises(WireError, match=r"docs/wire\.md") as caught:
        wire.decode(damaged)
    assert caught.value.cause == cause


def test_decode_of_a_shape_that_overflows_is_refused() -> None:
    """Sides whose product wraps around to the right number in 64 bits are still the wrong shape."""
    body = GOLDEN[4:24] + b"\x05\x04\x01\x00" + struct.pack("<4I", 1 << 16, 1 << 16, 1 << 16, 1 << 16)
    with pytest.raises(WireError, match="does not fit 0 bytes"):
        wire.decode(len(body).to_bytes(4, "little") + body)


def test_decode_beyond_the_limit_is_refused() -> None:
    """A message that is too long is refused whatever it holds."""
    with pytest.raises(WireError, match="40 bytes, and 39 are allowed") as caught:
        wire.decode(GOLDEN, Limits(message_bytes=39))
    assert caught.value.cause == "too_long"


@pytest.mark.parametrize("captured_at", [math.nan, math.inf, -math.inf])
def test_decode_of_a_time_that_is_no_number_takes_it_as_none(captured_at: float) -> None:
    """A time that cannot be reckoned with counts as not given."""
    message = wire.decode(wire.encode([1.0], sequence=0, captured_at=captured_at))
    assert (message.captured_at, message.clock) == (None, Clock.NONE)


@pytest.mark.parametrize("array", [np.array(["a"]), np.zeros((1,) * 9), np.array([1j]), np.array([None])])
def test_encode_of_what_has_no_form_is_refused(array: np.ndarray) -> None:
    """Texts, objects, complex numbers and nine dimensions are the caller's mistake."""
    with pytest.raises(ValueError, match="cannot be sent"):
        wire.encode(array, sequence=0)


@pytest.mark.parametrize("sequence", [-1, 2**64])
def test_encode_of_a_number_that_does_not_fit_is_refused(sequence: int) -> None:
    """The sequence is an unsigned number of 64 bits."""
    with pytest.raises(ValueError, match="Count from 0"):
        wire.encode([1.0], sequence=sequence)


def test_encode_of_a_big_endian_or_transposed_array_keeps_its_values() -> None:
    """Memory layout is the sender's business; the values arrive."""
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    message = wire.decode(wire.encode(array, sequence=0))
    assert message.array.tolist() == array.tolist()


def test_decode_of_a_large_message_copies_nothing() -> None:
    """The array lives in the buffer that came."""
    buffer = bytearray(wire.encode(np.zeros(250_000, np.float32), sequence=0))
    tracemalloc.start()
    message = wire.decode(buffer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message.array.nbytes == 1_000_000
    assert peak < 20_000


def test_note_of_a_message_is_its_json_object() -> None:
    """Notes are read as objects; what is none is empty, however it is broken."""
    told = np.frombuffer(b'{"error": "no"}', np.uint8)
    assert Message(told, 0, kind=Kind.NOTE).note == {"error": "no"}
    for text in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        assert Message(np.frombuffer(text, np.uint8), 0, kind=Kind.NOTE).note == {}
    assert Message(told, 0).note == {}
