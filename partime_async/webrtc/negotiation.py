"""How two peers agree, by what aiortc has for it."""

from __future__ import annotations

from collections.abc import Sequence

from partime_async.errors import MissingDependencyError, SourceError
from partime_async.webrtc.closing import ice_transports
from partime_async.webrtc.ice import Ice

try:
    from aiortc import InvalidStateError, MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
    from aiortc.sdp import SessionDescription
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error


async def apply(connection: RTCPeerConnection, session: SessionDescription) -> None:
    """Take the other side's description.

    Raises:
        SourceError: It does not fit, the other side's fault; or the connection was closed meanwhile.

    Cancellation: leaves the connection unusable; close it.
    """
    try:
        await connection.setRemoteDescription(RTCSessionDescription(str(session), session.type or ""))
    except Exception as error:  # aiortc raises whatever it stumbles over
        if connection.signalingState == "closed":
            raise SourceError("the connection was closed meanwhile. Make another Peer.") from error
        raise SourceError(f"the {session.type} does not fit: {error}. Let the other side make a new one.") from error


def decline_audio(connection: RTCPeerConnection) -> None:
    """Agree to no audio: nothing is sent, decoded or piled up."""
    for transceiver in connection.getTransceivers():
        if transceiver.kind == "audio":
            transceiver.direction = "inactive"


def attach(connection: RTCPeerConnection, session: SessionDescription, tracks: Sequence[MediaStreamTrack]) -> None:
    """Give each video that is to be sent a section of the offer that receives, in order.

    Raises:
        SourceError: There are too few; the other side's fault.
    """
    takers = {
        each.rtp.muxId for each in session.media if each.kind == "video" and each.direction in ("recvonly", "sendrecv")
    }
    places = [each for each in connection.getTransceivers() if each.mid is not None and each.mid in takers]
    if len(places) < len(tracks):
        raise SourceError(
            f"the offer receives {len(places)} video(s), and {len(tracks)} are to be sent. Offer a video section of "
            "direction sendrecv or recvonly for each."
        )
    for transceiver, track in zip(places, tracks, strict=False):
        transceiver.sender.replaceTrack(track)
        transceiver.direction = "sendrecv"


async def describe(connection: RTCPeerConnection, ice: Ice) -> None:
    """Find this side's addresses, and make its description.

    Raises:
        SourceError: The connection was closed meanwhile.

    Cancellation: leaves the connection unusable; close it.
    """
    for transport in ice_transports(connection):
        ice.choose_addresses(transport.iceGatherer)
    try:
        await connection.setLocalDescription()
    except InvalidStateError as error:
        raise SourceError("the connection was closed meanwhile. Make another Peer.") from error
