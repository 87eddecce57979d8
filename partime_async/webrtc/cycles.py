"""The reference cycles of a closed connection of aiortc's, broken, so that it is freed at once.

What hangs in cycles waits for a full run of the garbage collector. That comes when the objects that survived for a
while have grown by a quarter, and what hangs on a connection beside Python's objects (OpenSSL's and libsrtp's states,
buffers of packets) does not count: dozens of closed connections may lie about by then, which is megabytes, and where
new ones find room between them the heap never shrinks again. aiortc forgets most listeners when it closes; not these.
"""

from __future__ import annotations

from collections.abc import Iterator

from partime_async.errors import MissingDependencyError
from partime_async.webrtc.endings import forget_endings

try:
    from aioice import Connection
    from aiortc import RTCPeerConnection
    from aiortc.rtcdtlstransport import RTCDtlsTransport
    from aiortc.rtcsctptransport import RTCSctpTransport
    from OpenSSL.SSL import Connection as TlsConnection
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error


def break_cycles(connection: RTCPeerConnection) -> None:
    """Break the cycles of a connection that is closed; what another version of these libraries lacks is left out."""
    for transport in set(_transports(connection)):
        # It tells the connection of its state, and is the one part of aiortc's that never forgets its listeners.
        transport.remove_all_listeners()
        _break_ice(transport.transport._connection)
        if transport._ssl is not None:
            _break_tls(transport._ssl)
    for receiver in connection.getReceivers():
        # `Reception` put a function of its own here, which knows the method that it stands before.
        vars(receiver).pop("_handle_rtcp_packet", None)
    for sender in connection.getSenders():
        forget_endings(sender)
    if connection.sctp is not None:
        _break_sctp(connection.sctp)


def _break_ice(ice: Connection) -> None:
    # So did `Ice.choose_addresses`.
    vars(ice).pop("get_component_candidates", None)
    # Each pair knows its socket, which knows the agent.
    getattr(ice, "_check_list", []).clear()


def _break_tls(tls: TlsConnection) -> None:
    helper = getattr(tls.get_context(), "_verify_helper", None)
    if helper is not None:
        # It knows the function that C calls, which knows it. Context and connection each keep that function themselves.
        vars(helper).pop("callback", None)


def _break_sctp(sctp: RTCSctpTransport) -> None:
    waiting = getattr(sctp, "_data_channel_queue", [])
    # Channels that never opened are not closed either.
    for channel, *_ in waiting:
        channel.remove_all_listeners()
    waiting.clear()


def _transports(connection: RTCPeerConnection) -> Iterator[RTCDtlsTransport]:
    for transceiver in connection.getTransceivers():
        yield transceiver.receiver.transport
    if connection.sctp is not None:
        yield connection.sctp.transport
    # Also those that were made before the two sides agreed to share one.
    yield from getattr(connection, "_RTCPeerConnection__dtlsTransports", ())
