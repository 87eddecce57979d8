"""A whole connection between real peers: media, messages, and what does not fit."""

from __future__ import annotations

import asyncio

import pytest
from aiortc import AudioStreamTrack, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

import partime_async as pa
from partime_async.webrtc import Description, Ice, Peer, PictureTrack, webrtc_frames
from tests.webrtc.calls import PATIENCE_S, calling, connect, number_in, number_of, picture, until


async def plain_caller(*, codec: str | None = None, with_audio: bool = False) -> tuple[RTCPeerConnection, PictureTrack]:
    """Make a caller of aiortc's own, as other programs would, with a camera."""
    connection, camera = RTCPeerConnection(Ice.loopback().configuration()), PictureTrack(frame_rate=1000)
    if with_audio:
        connection.addTrack(AudioStreamTrack())
    connection.addTrack(camera)
    if codec is not None:
        chosen = [each for each in RTCRtpSender.getCapabilities("video").codecs if each.mimeType == codec]
        connection.getTransceivers()[-1].setCodecPreferences(chosen)
    for transceiver in connection.getTransceivers():
        Ice.loopback().choose_addresses(transceiver.receiver.transport.transport.iceGatherer)
    await connection.setLocalDescription()
    return connection, camera


async def answered(connection: RTCPeerConnection, peer: Peer) -> None:
    """Let a peer answer a plain caller."""
    local = connection.localDescription
    answer = await peer.answer(Description(local.sdp, local.type))
    await connection.setRemoteDescription(RTCSessionDescription(answer.sdp, answer.type))
    async with asyncio.timeout(PATIENCE_S):
        await peer.connected()


async def test_peers_send_each_other_video() -> None:
    """A video goes there, and another comes back, over one connection."""
    async with Peer() as caller, Peer() as answerer:
        there, back = PictureTrack(), PictureTrack()
        caller.send_video(there)
        answerer.send_video(back)
        await connect(caller, answerer)
        there.show(picture(1))
        back.show(picture(2))
        async with asyncio.timeout(PATIENCE_S):
            for peer, number in ((answerer, 1), (caller, 2)):
                async with webrtc_frames(await peer.video) as frames:
                    assert number_of((await anext(frames)).image) == number
        await until(lambda: answerer.statistics().round_trip_s is not None)
        assert answerer.statistics().state == "connected"


async def test_peer_with_two_cameras_keeps_them_apart() -> None:
    """Two videos of one connection arrive in the order they were named."""
    async with Peer() as caller, Peer() as answerer:
        cameras = [PictureTrack(), PictureTrack()]
        for camera in cameras:
            caller.send_video(camera)
        await connect(caller, answerer)
        for number, camera in enumerate(cameras):
            camera.show(picture(number))
        async with asyncio.timeout(PATIENCE_S):
            for number in range(2):
                video = await answerer.video
                assert video.number == number
                assert number_in(await video.recv()) == number
        assert answerer.statistics().videos == 2


async def test_peer_that_only_watches_receives() -> None:
    """An offer that sends nothing gets the answerer's video."""
    async with Peer() as caller, Peer() as answerer:
        caller.receive_video()
        back = PictureTrack()
        answerer.send_video(back)
        await connect(caller, answerer)
        back.show(picture(3))
        async with asyncio.timeout(PATIENCE_S):
            frame = await (await caller.video).recv()
        assert number_in(frame) == 3
        assert answerer.statistics().videos == 0


@pytest.mark.parametrize("codec", ["video/VP8", "video/H264"])
async def test_peer_answers_a_plain_caller_in_its_codec(codec: str) -> None:
    """Programs that use aiortc as it is are served, in both codecs, early."""
    connection, camera = await plain_caller(codec=codec)
    async with Peer() as peer:
        await answered(connection, peer)
        async with webrtc_frames(await peer.video) as frames, asyncio.timeout(PATIENCE_S):
            for number in range(2):
                camera.show(picture(number))
                # With the picture's own last packet: no other picture follows.
                assert number_of((await anext(frames)).image) == number
            assert frames.statistics().is_early
    await connection.close()
    await camera.aclose()


async def test_peer_declines_audio() -> None:
    """Sound is neither decoded nor piled up: its section is inactive."""
    connection, camera = await plain_caller(with_audio=True)
    async with Peer() as peer:
        await answered(connection, peer)
        camera.show(picture(6))
        async with asyncio.timeout(PATIENCE_S):
            assert number_in(await (await peer.video).recv()) == 6
        assert peer.statistics().videos == 1
        audio = connection.getTransceivers()[0]
        assert (audio.kind, audio.currentDirection) == ("audio", "inactive")
    await connection.close()
    await camera.aclose()


async def test_peer_drains_videos_that_nobody_reads() -> None:
    """Pictures that nobody wants are let go: aiortc's queue stays empty."""
    async with calling() as call:
        for number in range(5):
            await call.show(number)
        raw = call.video.intake.track
        assert raw._queue.empty()  # type: ignore[attr-defined]
        assert (call.video.intake.received, call.video.intake.superseded, call.video.intake.waiting) == (5, 4, 1)


async def test_webrtc_frames_with_a_plain_connection_come_early() -> None:
    """Who uses aiortc's own connection names it, and gets the same."""
    connection = RTCPeerConnection(Ice.loopback().configuration())
    async with Peer() as caller:
        camera = PictureTrack(frame_rate=1000)
        caller.send_video(camera)
        offer = await caller.offer()
        await connection.setRemoteDescription(RTCSessionDescription(offer.sdp, offer.type))
        (transceiver,) = connection.getTransceivers()
        frames = webrtc_frames(transceiver.receiver.track, connection=connection)
        Ice.loopback().choose_addresses(transceiver.receiver.transport.transport.iceGatherer)
        await connection.setLocalDescription()
        local = connection.localDescription
        await caller.accept(Description(local.sdp, local.type))
        async with asyncio.timeout(PATIENCE_S):
            await caller.connected()
            camera.show(picture(5))
            assert number_of((await anext(frames)).image) == 5
            assert frames.statistics().is_early
            await frames.ask_key_frame()
            assert frames.statistics().key_frames_asked == 1
        await frames.aclose()
        await connection.close()


async def test_peer_of_an_offer_without_place_for_its_video_says_so() -> None:
    """A video that nobody would receive is the offer's fault, told in words."""
    async with Peer() as caller, Peer() as answerer:
        caller.open_channel("control")
        answerer.send_video(PictureTrack())
        with pytest.raises(pa.SourceError, match="receives 0 video"):
            await answerer.answer(await caller.offer())


async def test_peer_opens_channels_and_refuses_a_second_of_a_name() -> None:
    """Either side opens channels; names are unique."""
    async with calling() as call:
        call.answerer.open_channel("telemetry", ordered=False, max_retransmits=0)
        async with asyncio.timeout(PATIENCE_S):
            telemetry = await call.caller.channel("telemetry")
        assert telemetry.label == "telemetry"
        with pytest.raises(pa.ConfigurationError, match="'control' already"):
            call.caller.open_channel("control")
        assert call.caller.statistics().channels == 2


async def test_peer_used_at_the_wrong_time_says_so() -> None:
    """An empty offer, a second answer, a late video, and anything after the end are told in words."""
    async with Peer() as empty:
        with pytest.raises(pa.ConfigurationError, match="would be empty"):
            await empty.offer()
    async with calling() as call:
        with pytest.raises(pa.ConfigurationError, match="before answer or offer"):
            call.answerer.send_video(PictureTrack())
        with pytest.raises(pa.ConfigurationError, match="Make another Peer"):
            await call.caller.offer()
        with pytest.raises(pa.ConfigurationError, match="the track is audio"):
            call.caller.send_video(AudioStreamTrack())
    with pytest.raises(pa.SourceError, match=r"has ended: (closed|left)"):
        await call.caller.offer()
    with pytest.raises(pa.SourceError, match="without a channel 'none'"):
        await call.caller.channel("none")
    with pytest.raises(pa.SourceError, match="before there was a video"):
        await call.caller.video
    with pytest.raises(pa.SourceError, match=r"has ended: (closed|left)"):
        await call.caller.connected()
    with pytest.raises(pa.ConfigurationError, match="more than 0 seconds"):
        Peer(silence_s=0)


async def test_peer_refuses_an_answer_that_does_not_fit() -> None:
    """An answer to another offer is the other side's fault, and the peer can still be closed."""
    async with Peer() as one, Peer() as two, Peer() as other:
        one.open_channel("a")
        two.receive_video()
        two.open_channel("a")
        answer = await other.answer(await two.offer())
        await one.offer()
        with pytest.raises(pa.SourceError, match="does not fit"):
            await one.accept(answer)
