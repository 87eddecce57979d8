"""Live video to and from browsers over WebRTC; it needs the extra ``webrtc``.

`webrtc_frames` makes frames of any video track of aiortc's, `PictureTrack` sends pictures, `Peer` is a whole
connection.
"""

from partime_async.webrtc.channel import ChannelStatistics, DataChannel
from partime_async.webrtc.closing import CloseReason
from partime_async.webrtc.description import Description
from partime_async.webrtc.frames import WebRTCFrames, WebRTCStatistics, webrtc_frames
from partime_async.webrtc.ice import Ice, IceMode, IceServer
from partime_async.webrtc.peer import Peer, PeerStatistics
from partime_async.webrtc.track import PictureStatistics, PictureTrack
from partime_async.webrtc.videos import RemoteVideo, RemoteVideos

__all__ = [
    "ChannelStatistics",
    "CloseReason",
    "DataChannel",
    "Description",
    "Ice",
    "IceMode",
    "IceServer",
    "Peer",
    "PeerStatistics",
    "PictureStatistics",
    "PictureTrack",
    "RemoteVideo",
    "RemoteVideos",
    "WebRTCFrames",
    "WebRTCStatistics",
    "webrtc_frames",
]
