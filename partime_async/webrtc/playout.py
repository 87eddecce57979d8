"""Asks the browser that shows a video to do so at once: what is live must not wait to be shown smoothly.

A browser holds pictures back, so that those that come unevenly are shown evenly: 25 ms and more from the last packet to
the screen. A header extension of the packets says how long it may, and here that is not at all. aiortc does not know
that one, so this hangs on private names; where one is missing it is left out, and pictures are shown a little later.

Source: http://www.webrtc.org/experiments/rtp-hdrext/playout-delay
"""

from __future__ import annotations

from partime_async.errors import MissingDependencyError

try:
    from aiortc import RTCPeerConnection
    from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
    from aiortc.rtp import HeaderExtensions, HeaderExtensionsMap, pack_header_extensions, unpack_header_extensions
    from aiortc.sdp import SessionDescription
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

URI = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
_MAP = "_RTCRtpSender__rtp_header_extensions_map"
# Least and most delay, 12 bits each, in units of 10 ms: none and none.
_AT_ONCE = bytes(3)


class _HastyMap(HeaderExtensionsMap):
    """Writes the extension into every packet, next to those that aiortc knows."""

    def __init__(self) -> None:
        super().__init__()
        self._id: int | None = None

    def configure(self, parameters: RTCRtpParameters) -> None:
        super().configure(parameters)
        self._id = next((each.id for each in parameters.headerExtensions if each.uri == URI), None)

    def set(self, values: HeaderExtensions) -> tuple[int, bytes]:
        profile, value = super().set(values)
        if self._id is None:
            return profile, value
        return pack_header_extensions([*unpack_header_extensions(profile, value), (self._id, _AT_ONCE)])


def hasten(connection: RTCPeerConnection, session: SessionDescription) -> None:
    """Agree with the other side's offer that its videos are shown at once, where it offers that.

    Call it between setting the offer and making the answer.
    """
    offered = {
        section.rtp.muxId: each.id
        for section in session.media
        if section.kind == "video"
        for each in section.rtp.headerExtensions
        if each.uri == URI
    }
    for transceiver in connection.getTransceivers():
        extension_id = offered.get(transceiver.mid or "")
        agreed = getattr(transceiver, "_headerExtensions", None)
        if extension_id is None or not isinstance(agreed, list) or not hasattr(transceiver.sender, _MAP):
            continue
        agreed.append(RTCRtpHeaderExtensionParameters(id=extension_id, uri=URI))
        setattr(transceiver.sender, _MAP, _HastyMap())
