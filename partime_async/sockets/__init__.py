"""Frames to and from devices over sockets; it needs the extra ``sockets``, and ``mqtt`` for MQTT.

`listen` and `connect` give the frames of one stream, `SensorServer` makes every client a feed of a pipeline, and
`SocketSink` sends results. `wire` has the binary format; what a device needs is in `partime_async.client`.
"""

from __future__ import annotations

from partime_async.sockets import wire
from partime_async.sockets.accounts import ClientStatistics, SequenceCounts
from partime_async.sockets.backoff import Backoff
from partime_async.sockets.connected import ConnectedSource, connect
from partime_async.sockets.formats import FormatName
from partime_async.sockets.limits import Limits, OnBad
from partime_async.sockets.listening import ListeningSource, listen
from partime_async.sockets.reading import SocketFrame
from partime_async.sockets.server import Replies, SensorServer, ServerStatistics
from partime_async.sockets.sink import SinkStatistics, SocketSink
from partime_async.sockets.source import SocketSource, SocketStatistics
from partime_async.sockets.timing import SenderClock, Timing
from partime_async.sockets.tls import Tls
from partime_async.sockets.wire import Clock, Kind, Message, WireError

__all__ = [
    "Backoff",
    "ClientStatistics",
    "Clock",
    "ConnectedSource",
    "FormatName",
    "Kind",
    "Limits",
    "ListeningSource",
    "Message",
    "OnBad",
    "Replies",
    "SenderClock",
    "SensorServer",
    "SequenceCounts",
    "ServerStatistics",
    "SinkStatistics",
    "SocketFrame",
    "SocketSink",
    "SocketSource",
    "SocketStatistics",
    "Timing",
    "Tls",
    "WireError",
    "connect",
    "listen",
    "wire",
]
