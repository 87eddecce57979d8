"""What browsers are told about holding pictures back: not at all."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtp import RtpPacket, unpack_header_extensions

from partime_async.webrtc import Description, Ice, Peer, PictureTrack
from partime_async.webrtc.playout import URI

PATIENCE_S = 10.0
EXTENSION_ID = 11


async def offered(connection: RTCPeerConnection, *, has_extension: bool) -> Description:
    """Return a browser's offer to receive a video."""
    connection.addTransceiver("video", "recvonly")
    Ice.loopback().choose_addresses(connection.getTransceivers()[0].receiver.transport.transport.iceGatherer)
    await connection.setLocalDescription()
    local = connection.localDescription
    line = f"a=extmap:{EXTENSION_ID} {URI}\r\na=mid:"
    return Description(local.sdp.replace("a=mid:", line, 1) if has_extension else local.sdp, local.type)


@pytest.mark.parametrize("has_extension", [True, False])
async def test_video_sent_says_that_it_is_to_be_shown_at_once(
    has_extension: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every packet to a peer that offers the extension carries it, 0 to 0; to another peer none does."""
    found: set[bytes | None] = set()
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    arrived = asyncio.Event()
    parse = RtpPacket.parse.__func__  # type: ignore[attr-defined]

    def parsed(cls: type[RtpPacket], data: bytes, *rest: object) -> RtpPacket:
        profile, size = int.from_bytes(data[12:14], "big"), 4 * int.from_bytes(data[14:16], "big")
        if data[0] & 0x10 and data[0] & 0x0F == 0:
            found.add(dict(unpack_header_extensions(profile, data[16 : 16 + size])).get(EXTENSION_ID))
            arrived.set()
        packet: RtpPacket = parse(cls, data, *rest)
        return packet

    monkeypatch.setattr(RtpPacket, "parse", classmethod(parsed))
    async with Peer() as peer, asyncio.timeout(PATIENCE_S):
        track = PictureTrack()
        peer.send_video(track)
        answer = await peer.answer(await offered(connection, has_extension=has_extension))
        assert (URI in answer.sdp) is has_extension
        await connection.setRemoteDescription(RTCSessionDescription(answer.sdp, answer.type))
        await peer.connected()
        track.show(np.zeros((240, 320, 3), np.uint8))
        await arrived.wait()
        assert found == {bytes(3) if has_extension else None}
        await connection.close()
