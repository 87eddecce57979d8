"""An empty packet after each picture: aiortc's own receiver hands it out without the next one."""

from __future__ import annotations

import asyncio

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpCodecParameters, RTCSessionDescription
from aiortc.rtcrtpsender import RTCEncodedFrame
from av import VideoFrame
from hypothesis import given
from hypothesis import strategies as st

from partime_async.webrtc import Description, Ice, Peer, PictureTrack
from partime_async.webrtc.endings import Rhythm, end_pictures, forget_endings
from tests.webrtc.calls import PATIENCE_S, calling, number_in, picture

_VP8 = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)


class _Sender:
    """Has the two private names of aiortc's sender that are needed, and the loop around them."""

    def __init__(self, timestamps: list[int]) -> None:
        self._timestamps = iter(timestamps)
        self._RTCRtpSender__rtp_timestamp = 0
        self.reported: list[int] = []

    async def _next_encoded_frame(self, _: RTCRtpCodecParameters) -> RTCEncodedFrame | None:
        self.reported.append(self._RTCRtpSender__rtp_timestamp)
        timestamp = next(self._timestamps, None)
        return None if timestamp is None else RTCEncodedFrame([b"picture"], timestamp, 0)

    async def run(self) -> list[tuple[bytes, int]]:
        """Return each payload with its timestamp, until nothing comes."""
        sent: list[tuple[bytes, int]] = []
        while (frame := await self._next_encoded_frame(_VP8)) is not None:
            sent.extend((payload, frame.timestamp) for payload in frame.payloads)
            self._RTCRtpSender__rtp_timestamp = frame.timestamp
        return sent


async def test_pictures_that_come_evenly_keep_their_timestamps() -> None:
    """What is guessed is right, and the empty packet between two pictures has the second one's."""
    sender = _Sender([0, 3000, 6000, 9000])
    end_pictures(sender)  # type: ignore[arg-type]
    sent = await sender.run()
    assert sent == [(payload, 3000 * (index + (not payload))) for index in range(4) for payload in (b"picture", b"")]
    assert sender.reported == [0, 0, 3000, 6000, 9000], "the sender's reports speak of pictures alone"
    forget_endings(sender)  # type: ignore[arg-type]
    assert "_next_encoded_frame" not in vars(sender)


async def test_sender_without_the_private_names_is_left_alone() -> None:
    """Another version of aiortc sends as ever."""
    sender = object.__new__(RTCEncodedFrame)  # has no attributes
    end_pictures(sender)  # type: ignore[arg-type]
    assert not vars(sender)


@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=40))
def test_timestamps_rise_and_stay_near_the_pictures_own(gaps: list[int]) -> None:
    """However unevenly pictures come, a guess is off by no more than the largest time between two of them."""
    rhythm, own, last = Rhythm(), 0, -1
    for gap in gaps:
        said, announced = rhythm.of(own)
        assert said > last
        assert abs(said - own) <= 2 * max(3000, *gaps)
        assert announced > said
        last, own = said, own + gap


async def test_aiortc_gets_each_picture_before_the_next_is_sent() -> None:
    """A plain receiver of aiortc's shows what was sent, although nothing follows it yet."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("video", "recvonly")
    receiver = connection.getReceivers()[0]
    Ice.loopback().choose_addresses(receiver.transport.transport.iceGatherer)
    await connection.setLocalDescription()
    offer = connection.localDescription
    async with Peer(ends_pictures=True) as peer, asyncio.timeout(PATIENCE_S):
        track = PictureTrack(frame_rate=1000.0)
        peer.send_video(track)
        answer = await peer.answer(Description(offer.sdp, offer.type))
        await connection.setRemoteDescription(RTCSessionDescription(answer.sdp, answer.type))
        await peer.connected()
        stamps: list[int] = []
        for number in range(20):
            track.show(picture(number))
            frame = await receiver.track.recv()
            assert isinstance(frame, VideoFrame)
            assert number_in(frame) == number
            assert frame.pts is not None
            stamps.append(frame.pts)
        assert stamps == sorted(set(stamps))
        await connection.close()


@pytest.mark.parametrize("ends_pictures", [True, False])
async def test_peer_gets_pictures_either_way(ends_pictures: bool) -> None:
    """This library's own receiver does without empty packets, and takes no harm from them."""
    async with calling(ends_pictures=ends_pictures) as call:
        for number in range(10):
            await call.show(number)
        reception = call.video.intake.reception
        assert reception is not None
        statistics = reception.statistics()
        assert (statistics.undecodable, statistics.skipped, statistics.key_frames_asked) == (0, 0, 0)
