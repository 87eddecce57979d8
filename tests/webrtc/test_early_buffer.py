"""Pictures leave the jitter buffer with their own last packet, and a lost packet does not freeze them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import RtpPacket

from partime_async.webrtc.reception import EarlyBuffer, is_key_frame


@dataclass
class Bench:
    """A buffer, and what it put straight into the decoder's queue."""

    backlog: int = 0
    queued: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buffer = EarlyBuffer(is_key=self._is_key, queue=self._queue, backlog=lambda: self.backlog)

    def add(self, sequence: int, data: bytes, *, stamp: int, marker: int = 0) -> tuple[bool, bytes | None]:
        """Add a packet; return whether a key frame is asked for, and the picture handed out."""
        packet = RtpPacket(payload_type=97, marker=marker, sequence_number=sequence & 0xFFFF, timestamp=stamp)
        packet._data = data  # type: ignore[attr-defined]
        is_asked, frame = self.buffer.add(packet)
        return is_asked, None if frame is None else frame.data

    @staticmethod
    def _is_key(packet: RtpPacket, data: bytes) -> bool:
        return data.startswith(b"K")

    def _queue(self, packet: RtpPacket, frame: JitterFrame) -> None:
        self.queued.append(frame.data)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr("partime_async.webrtc.reception.time.monotonic", lambda: now[0])
    return now


def test_buffer_hands_a_picture_out_with_its_last_packet() -> None:
    """The marker bit ends a picture: nothing of the next one is needed."""
    bench = Bench()
    assert bench.add(1, b"K1", stamp=10) == (False, None)
    assert bench.add(2, b"K2", stamp=10, marker=1) == (False, b"K1K2")
    assert bench.add(3, b"d", stamp=20, marker=1) == (False, b"d")


def test_buffer_without_markers_waits_for_the_next_picture() -> None:
    """A sender that sets no marker is served as aiortc does."""
    bench = Bench()
    assert bench.add(1, b"K", stamp=10) == (False, None)
    assert bench.add(2, b"d", stamp=20) == (False, b"K")
    assert bench.add(3, b"e", stamp=30) == (False, b"d")


def test_buffer_orders_packets_and_numbers_wrap() -> None:
    """Packets that overtook others are put back in order, across the wrap of the sequence number too."""
    bench = Bench()
    assert bench.add(65534, b"K", stamp=10, marker=1) == (False, b"K")
    assert bench.add(0, b"b", stamp=20, marker=1) == (False, None)
    assert bench.add(65535, b"a", stamp=20) == (False, b"ab")


def test_buffer_that_gets_a_missing_packet_hands_all_whole_pictures_on() -> None:
    """When a gap is filled, the pictures behind it are not held back one each: all but the last go straight on."""
    bench = Bench()
    bench.add(1, b"K", stamp=10, marker=1)
    assert bench.add(3, b"c", stamp=30, marker=1) == (False, None)
    assert bench.add(4, b"d", stamp=40, marker=1) == (False, None)
    assert bench.add(2, b"b", stamp=20, marker=1) == (False, b"d")
    assert bench.queued == [b"b", b"c"]


def test_buffer_leaves_padding_out() -> None:
    """Packets without content, which measure the way, make no picture."""
    bench = Bench()
    bench.add(1, b"K", stamp=10, marker=1)
    assert bench.add(2, b"", stamp=10) == (False, None)
    assert bench.add(3, b"d", stamp=20, marker=1) == (False, b"d")
    assert bench.queued == []


def test_buffer_starts_with_a_key_frame_and_asks_for_it(clock: list[float]) -> None:
    """What builds on a picture never seen is skipped; a key frame is asked for after a moment, not at each packet."""
    bench = Bench()
    assert bench.add(1, b"d", stamp=10, marker=1) == (False, None)
    clock[0] += 0.3
    assert bench.add(2, b"e", stamp=20, marker=1) == (True, None)
    assert bench.add(3, b"f", stamp=30, marker=1) == (False, None)
    assert bench.add(4, b"K", stamp=40, marker=1) == (False, b"K")
    assert (bench.buffer.skipped, bench.buffer.key_frames_asked) == (3, 1)


def test_buffer_gives_a_lost_packet_up_and_goes_on_with_a_key_frame(clock: list[float]) -> None:
    """A packet that does not come within a quarter of a second costs the pictures until the next key frame."""
    bench = Bench()
    bench.add(1, b"K", stamp=10, marker=1)
    assert bench.add(3, b"c", stamp=30, marker=1) == (False, None)
    clock[0] += 0.2
    assert bench.add(4, b"d", stamp=40, marker=1) == (False, None)
    clock[0] += 0.1
    assert bench.add(5, b"e", stamp=50, marker=1) == (True, None)
    assert bench.add(6, b"f", stamp=60, marker=1) == (False, None)
    assert bench.add(7, b"K", stamp=70, marker=1) == (False, b"K")
    assert bench.add(8, b"g", stamp=80, marker=1) == (False, b"g")


def test_buffer_before_a_decoder_far_behind_lets_pictures_go(clock: list[float]) -> None:
    """A decoder that cannot keep up gets a key frame when it is through, instead of a growing queue."""
    bench = Bench()
    bench.add(1, b"K", stamp=10, marker=1)
    bench.backlog = 15
    clock[0] += 1.0
    assert bench.add(2, b"b", stamp=20, marker=1) == (True, None)
    assert bench.add(3, b"K", stamp=30, marker=1) == (False, None)
    bench.backlog = 0
    assert bench.add(4, b"d", stamp=40, marker=1) == (False, None)
    assert bench.add(5, b"K", stamp=50, marker=1) == (False, b"K")
    assert bench.buffer.skipped == 3


def test_buffer_of_a_sender_that_starts_over_goes_on() -> None:
    """A jump of the sequence number is a new beginning, with a key frame."""
    bench = Bench()
    for number in range(3):
        bench.add(30_000 + number, b"K", stamp=number, marker=1)
    found = [bench.add(5 + number, b"K", stamp=100 + number, marker=1)[1] for number in range(4)]
    assert b"K" in found


def test_buffer_holds_no_more_than_its_capacity(clock: list[float]) -> None:
    """However many packets come behind a gap, memory is bounded."""
    bench = Bench()
    bench.add(0, b"K", stamp=0, marker=1)
    for number in itertools.islice(itertools.count(2), 2000):
        bench.add(number, b"d", stamp=number, marker=1)
    assert sum(packet is not None for packet in bench.buffer._packets) <= bench.buffer.capacity


@pytest.mark.parametrize(
    ("codec", "data", "is_key"),
    [
        ("VP8", b"\x10\x00", True),
        ("VP8", b"\x11\x00", False),
        ("H264", b"\0\0\0\1\x67\x42\0\0\0\1\x65\x88", True),
        ("H264", b"\0\0\1\x41\x9a", False),
        ("H264", b"\0\0\1\x06\x05\0\0\1\x65\x88", True),
        ("H264", b"", False),
        ("AV1", b"?", True),
    ],
)
def test_key_frames_are_told_by_their_first_bits(codec: str, data: bytes, is_key: bool) -> None:
    """VP8 says it in the first bit, H.264 by the kind of its units; of others it is not known."""
    assert is_key_frame(codec, data) is is_key
