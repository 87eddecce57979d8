"""What aiortc's insides are made to do: a lossy way, broken pictures, the sender's clock, and how it goes without."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from aiortc import RTCPeerConnection
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import RtcpSenderInfo, RtcpSrPacket, is_rtcp

from partime_async.webrtc import Ice, Peer, reception, webrtc_frames
from partime_async.webrtc.closing import ice_transports
from partime_async.webrtc.reception import Reception
from tests.webrtc.calls import PATIENCE_S, calling, number_of, picture, until


def lose_packets(peer: Peer, share: float) -> list[int]:
    """Lose a share of the video packets that a peer sends; return a list that grows with each."""
    numbers, lost = random.Random(3), list[int]()
    (transport,) = ice_transports(peer._connection)
    send = transport._send

    async def leaky(data: bytes) -> None:
        if 127 < data[0] < 192 and not is_rtcp(data) and numbers.random() < share:
            lost.append(len(data))
        else:
            await send(data)

    transport._send = leaky
    return lost


async def test_video_over_a_lossy_way_goes_on() -> None:
    """With a tenth of the packets lost, pictures keep coming, each whole."""
    async with calling() as call, webrtc_frames(call.video, size=(32, 32)) as frames:
        await call.show(0)
        lost = lose_packets(call.caller, 0.1)
        seen: list[int | None] = []

        async def watch() -> None:
            async for frame in frames:
                seen.append(number_of(frame.image))  # noqa: PERF401 - it is looked at meanwhile

        watching = asyncio.ensure_future(watch())
        async with asyncio.timeout(PATIENCE_S):
            number = 0
            while len(seen) < 40 or not lost:
                number += 1
                call.camera.show(picture(number))
                await asyncio.sleep(0.01)
        watching.cancel()
        await asyncio.wait([watching])
        assert None not in seen
        assert seen == sorted(seen, key=lambda each: each or 0)


async def test_video_with_a_broken_picture_counts_it_and_goes_on() -> None:
    """What the decoder refuses is counted, a key frame asked for, and the next pictures come."""
    async with calling() as call, webrtc_frames(call.video) as frames:
        await call.show(1)
        receiver = call.answerer._connection.getReceivers()[0]
        codec = next(iter(receiver._RTCRtpReceiver__codecs.values()))  # type: ignore[attr-defined]
        queue = receiver._RTCRtpReceiver__decoder_queue  # type: ignore[attr-defined]
        queue.put((codec, JitterFrame(data=b"\x10rubbish", timestamp=1)))
        await until(lambda: frames.statistics().undecodable == 1)
        assert frames.statistics().errors == 1
        await call.show(2)
        await call.show(3)
        assert number_of((await anext(frames)).image) == 3


async def test_video_with_another_version_of_aiortc_comes_with_the_next_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the insides are unknown, aiortc works as it is: a picture comes when the one after it does."""
    monkeypatch.setattr(reception, "TESTED_VERSIONS", ())
    async with calling() as call, webrtc_frames(call.video) as frames:
        reader = asyncio.ensure_future(anext(frames))
        async with asyncio.timeout(PATIENCE_S):
            for number in range(1000):
                call.camera.show(picture(number))
                await asyncio.sleep(0.01)
                if reader.done():
                    break
        assert number_of((await reader).image) is not None
        assert not frames.statistics().is_early


async def test_key_frame_asked_for_is_sent() -> None:
    """Asking reaches the sender, which forgets what came before."""
    async with calling() as call, webrtc_frames(call.video) as frames:
        await call.show(1)
        sender = call.caller._connection.getSenders()[0]
        await frames.ask_key_frame()
        await until(lambda: bool(sender._RTCRtpSender__force_keyframe))  # type: ignore[attr-defined]
        assert frames.statistics().key_frames_asked == 1


async def test_reception_places_pictures_on_the_clock_of_the_sender() -> None:
    """With a report of the sender's, each time stamp has a wall-clock time, across the wrap of the stamps too."""
    connection = RTCPeerConnection(Ice.loopback().configuration())
    connection.addTransceiver("video", "recvonly")
    receiver = connection.getReceivers()[0]
    known = Reception(receiver)
    assert known.sent_at(0) is None
    origin = 2**32 - 90_000
    receiver._RTCRtpReceiver__timestamp_mapper.map(origin)  # type: ignore[attr-defined]
    sent_at = 1_700_000_000.25
    info = RtcpSenderInfo(
        ntp_timestamp=int((sent_at + 2_208_988_800) * 2**32), rtp_timestamp=0, packet_count=1, octet_count=1
    )
    await receiver._handle_rtcp_packet(RtcpSrPacket(ssrc=1, sender_info=info))
    assert known.sent_at(90_000) == pytest.approx(sent_at, abs=1e-3)
    assert known.sent_at(0) == pytest.approx(sent_at - 1.0, abs=1e-3)
    assert known.sent_at(180_000) == pytest.approx(sent_at + 1.0, abs=1e-3)
    await connection.close()


async def test_frames_of_a_synchronized_sender_count_the_way() -> None:
    """Once the sender has reported, frames are as old as it says; on one machine that is when they were sent."""
    async with calling() as call, webrtc_frames(call.video, is_sender_synchronized=True) as frames:
        source = call.video.intake.reception
        assert source is not None
        async with asyncio.timeout(PATIENCE_S):
            number = 0
            while source.sent_at(0) is None:
                number += 1
                await call.show(number)
            before = time.monotonic()
            await call.show(number + 1)
            frame = await anext(frames)
        assert frame.captured_at is not None
        assert before - 0.1 <= frame.captured_at <= time.monotonic()
