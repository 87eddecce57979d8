"""What only aiortc's insides can do for a received video; the one place that touches them, with a way to do without.

aiortc hands a picture out when the first packet of the *next* one comes: at 30 frames/s that is 33 ms late. The last
packet of a picture says that it is the last (the marker bit), so `EarlyBuffer` hands out then. It also gets unstuck:
aiortc waits for a lost packet until 512 others have come, seconds of a frozen picture.

All of it hangs on private names, so it is done for the versions it was tested with, and where every name is there.
Without it pictures come a frame later, and all else works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Queue
from typing import TypeAlias

from partime_async.errors import MissingDependencyError
from partime_async.offload import in_thread

try:
    import aiortc
    from aiortc import RTCRtpCodecParameters, RTCRtpReceiver
    from aiortc.jitterbuffer import JitterBuffer, JitterFrame
    from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket, RtpPacket
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

TESTED_VERSIONS = ("1.16",)

# How long a lost packet is waited for: its resending takes a round trip.
_PATIENCE_S = 0.25
# Pictures that may wait for the decoder. More come only if decoding takes longer than the camera does.
_MOST_UNDECODED = 15
_BUFFER_PACKETS = 512
_MANGLED = "_RTCRtpReceiver__"
_NAMES = ("jitter_buffer", "decoder_queue", "decoder_error", "codecs", "timestamp_mapper")
_NTP_TO_UNIX_S = 2_208_988_800

_DecoderQueue: TypeAlias = "Queue[tuple[RTCRtpCodecParameters, JitterFrame] | None]"


def is_tested() -> bool:
    """Tell whether this is a version of aiortc whose insides are known."""
    return ".".join(aiortc.__version__.split(".")[:2]) in TESTED_VERSIONS


@dataclass(frozen=True, slots=True)
class ReceptionStatistics:
    """How a video has been received.

    Attributes:
        is_early: Whether pictures are handed out with their own last packet.
        undecodable: Pictures that the decoder refused.
        skipped: Pictures that were whole, and let go: they build on one that is lost, or the decoder is far behind.
        key_frames_asked: How often the sender was asked for a picture that builds on no other.
    """

    is_early: bool
    undecodable: int
    skipped: int
    key_frames_asked: int


class EarlyBuffer(JitterBuffer):
    """Puts packets in order and hands out each picture with its own last packet.

    Args:
        is_key: Tells whether a picture builds on no other one.
        queue: Takes pictures that are whole besides the one handed out.
        backlog: How many pictures wait for the decoder.
    """

    def __init__(
        self,
        *,
        is_key: Callable[[RtpPacket, bytes], bool],
        queue: Callable[[RtpPacket, JitterFrame], None],
        backlog: Callable[[], int],
    ) -> None:
        super().__init__(capacity=_BUFFER_PACKETS, is_video=True)
        self.skipped = 0
        self.key_frames_asked = 0
        self._is_key = is_key
        self._queue = queue
        self._backlog = backlog
        self._newest: int | None = None
        self._needs_key = True
        self._asked_at = self._stuck_since = 0.0

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """Take a packet; return whether to ask for a key frame, and a picture if one is whole."""
        if self._newest is None or 0 < (packet.sequence_number - self._newest) & 0xFFFF < 0x8000:
            self._newest = packet.sequence_number
        is_lost, frame = super().add(packet)
        now = time.monotonic()
        # The first picture is a key frame by itself, unless it is lost.
        self._asked_at = self._asked_at or now
        if is_lost:
            self._needs_key = True
        elif not self._stuck_since:
            if self._has_gap:
                self._stuck_since = now
        elif not self._has_gap:
            self._stuck_since = 0.0
        elif now - self._stuck_since > _PATIENCE_S:
            self._give_up()
        if self._needs_key and now - self._asked_at > _PATIENCE_S:
            self._asked_at = now
            self.key_frames_asked += 1
            return True, frame
        return False, frame

    @property
    def _has_gap(self) -> bool:
        """Whether a packet is missing before the newest one."""
        if self._origin is None or self._newest is None:
            return False
        count = (self._newest - self._origin + 1) & 0xFFFF
        return count < self._capacity and any(
            self._packets[(self._origin + each) % self._capacity] is None for each in range(count)
        )

    def _give_up(self) -> None:
        """Let everything go and wait for a key frame."""
        self._packets = [None] * self._capacity
        self._origin = self._newest = None
        self._stuck_since = 0.0
        self._needs_key = True

    def _remove_frame(self, sequence_number: int) -> JitterFrame | None:
        """Take all pictures that are whole out of the buffer; return the last, queue those before."""
        assert self._origin is not None
        whole: list[list[RtpPacket]] = []
        packets: list[RtpPacket] = []
        taken = 0
        for count in range(self._capacity):
            packet = self._packets[(self._origin + count) % self._capacity]
            if packet is None:
                break
            if packets and packet.timestamp != packets[0].timestamp:
                # No marker came, but another picture began.
                whole.append(packets)
                packets, taken = [], count
            packets.append(packet)
            if packet.marker:
                whole.append(packets)
                packets, taken = [], count + 1
        self.remove(taken)
        frames = [pair for each in whole if (pair := self._assembled(each)) is not None]
        for first, frame in frames[:-1]:
            self._queue(first, frame)
        return frames[-1][1] if frames else None

    def _assembled(self, packets: list[RtpPacket]) -> tuple[RtpPacket, JitterFrame] | None:
        data = b"".join([packet._data for packet in packets])  # type: ignore[attr-defined]  # the receiver's own
        if not data:
            return None  # padding, by which a sender measures the way
        if self._backlog() >= _MOST_UNDECODED:
            self._needs_key = True
        if self._needs_key:
            if not self._is_key(packets[0], data) or self._backlog():
                self.skipped += 1
                return None
            self._needs_key = False
        return packets[0], JitterFrame(data=data, timestamp=packets[0].timestamp)


class Reception:
    """One receiver of aiortc's, made quicker and observed.

    Args:
        receiver: Of video, before packets come.
    """

    def __init__(self, receiver: RTCRtpReceiver) -> None:
        self._receiver = receiver
        self._errors = _CountingEvent()
        self._buffer: EarlyBuffer | None = None
        self._asked = 0
        self._report: tuple[float, int] | None = None
        if is_tested() and all(hasattr(receiver, _MANGLED + name) for name in _NAMES):
            self._install()

    def statistics(self) -> ReceptionStatistics:
        """Return what has been received so far."""
        asked = self._asked + (0 if self._buffer is None else self._buffer.key_frames_asked)
        skipped = 0 if self._buffer is None else self._buffer.skipped
        return ReceptionStatistics(self._buffer is not None, self._errors.count, skipped, asked)

    async def ask_key_frame(self) -> None:
        """Ask the sender for a picture that builds on no other; does nothing before packets have come.

        Cancellation: safe.
        """
        ask = getattr(self._receiver, "_send_rtcp_pli", None)
        sources = self._receiver.getSynchronizationSources()
        if ask is not None and sources:
            self._asked += 1
            await ask(sources[-1].source)

    def sent_at(self, pts: int) -> float | None:
        """Return when a picture was taken, by the sender's own wall clock, in seconds since 1970; None: unknown.

        Args:
            pts: Of the decoded picture, in 1/90000 s.
        """
        origin = getattr(getattr(self._receiver, _MANGLED + "timestamp_mapper", None), "_origin", None)
        if self._report is None or not isinstance(origin, int):
            return None
        wall_s, rtp_timestamp = self._report
        distance = (pts + origin - rtp_timestamp + 0x80000000) % (1 << 32) - 0x80000000
        return wall_s + distance / 90_000

    async def stop_decoder(self) -> None:
        """End the decoder's thread, which keeps the interpreter alive, without blocking the loop as aiortc does.

        Cancellation: waits for the picture that is being decoded, then raises.
        """
        thread = getattr(self._receiver, _MANGLED + "decoder_thread", None)
        queue: _DecoderQueue | None = getattr(self._receiver, _MANGLED + "decoder_queue", None)
        if thread is None or queue is None:
            return
        try:
            while True:
                queue.get_nowait()
        except Empty:
            queue.put(None)
        if thread.is_alive():
            await in_thread(thread.join, name="partime webrtc decoder's end")

    def _install(self) -> None:
        receiver = self._receiver
        codecs: dict[int, RTCRtpCodecParameters] = getattr(receiver, _MANGLED + "codecs")
        decoder: _DecoderQueue = getattr(receiver, _MANGLED + "decoder_queue")
        mapper = getattr(receiver, _MANGLED + "timestamp_mapper")

        def is_key(packet: RtpPacket, data: bytes) -> bool:
            codec = codecs.get(packet.payload_type)
            return codec is None or is_key_frame(codec.name, data)

        def queue(packet: RtpPacket, frame: JitterFrame) -> None:
            frame.timestamp = mapper.map(frame.timestamp)
            decoder.put((codecs[packet.payload_type], frame))

        self._buffer = EarlyBuffer(is_key=is_key, queue=queue, backlog=decoder.qsize)
        setattr(receiver, _MANGLED + "jitter_buffer", self._buffer)
        setattr(receiver, _MANGLED + "decoder_error", self._errors)
        handle = receiver._handle_rtcp_packet

        async def observed(packet: AnyRtcpPacket) -> None:
            if isinstance(packet, RtcpSrPacket) and packet.sender_info.packet_count:
                ntp = packet.sender_info.ntp_timestamp
                self._report = (ntp / 2**32 - _NTP_TO_UNIX_S, packet.sender_info.rtp_timestamp)
            await handle(packet)

        receiver._handle_rtcp_packet = observed  # type: ignore[method-assign]


class _CountingEvent(threading.Event):
    """The decoder's thread sets it for each picture it refuses; the receiver then asks for a key frame."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def set(self) -> None:
        self.count += 1
        super().set()


def is_key_frame(codec: str, data: bytes) -> bool:
    """Tell whether an encoded picture builds on no other one; of codecs it does not know it says yes.

    Source: RFC 6386 (VP8), section 9.1: the first bit; ITU-T H.264, table 7-1: NAL units 5 (IDR) and 7 (SPS).
    """
    if codec.upper() == "VP8":
        return not data[0] & 1
    if codec.upper() == "H264":
        start = data.find(b"\0\0\1")
        while 0 <= start < len(data) - 3:
            if data[start + 3] & 31 in (5, 7):
                return True
            start = data.find(b"\0\0\1", start + 3)
        return False
    return True
