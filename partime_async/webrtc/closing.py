"""The end of a connection of aiortc's: everything, within a deadline, without blocking the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from enum import StrEnum
from functools import partial

from partime_async.errors import MissingDependencyError
from partime_async.webrtc.cycles import break_cycles
from partime_async.webrtc.reception import Reception

try:
    from aiortc import RTCPeerConnection
    from aiortc.rtcicetransport import RTCIceTransport
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

_CLOSED = "_RTCPeerConnection__isClosed"


class CloseReason(StrEnum):
    """Why a connection ended."""

    CLOSED = "closed"
    """This side closed it."""
    LEFT = "left"
    """The other side closed it."""
    SILENT = "silent"
    """The other side did not answer any more."""
    UNREACHABLE = "unreachable"
    """No way to the other side was found in time: a firewall, or addresses that this side does not try."""
    LOST = "lost"
    """The way to the other side broke. A connection cannot be mended: the other side has to make a new one."""


def ice_transports(connection: RTCPeerConnection) -> set[RTCIceTransport]:
    """Return the transports that a connection uses."""
    transports = {each.transport.transport for each in connection.getReceivers()}
    if connection.sctp is not None:
        transports.add(connection.sctp.transport.transport)
    return transports


async def shut(connection: RTCPeerConnection, receptions: Iterable[Reception], timeout_s: float) -> None:
    """Close a connection; what has not ended within the time is cut off.

    A close of aiortc's own may wait: for a TURN server that does not answer, for tasks that were never started.

    Args:
        connection: The connection.
        receptions: What receives its videos.
        timeout_s: How long it may take, in seconds.

    Cancellation: do not; `Peer` runs it as a task of its own.
    """
    for transport in ice_transports(connection):
        # One that is closed while it connects would start asking for consent afterwards, and never stop.
        transport._connection.query_consent = _no_consent  # type: ignore[method-assign]
        # Closed in the middle of its handshake, aiortc goes on with what is next, and stumbles, with nobody to hear it.
        transport.start = _nothing  # type: ignore[method-assign,assignment]
    # And it would start to send and to receive, for ever.
    for transceiver in connection.getTransceivers():
        transceiver.sender.send = _nothing  # type: ignore[method-assign,assignment]
        transceiver.receiver.receive = _nothing  # type: ignore[method-assign,assignment]
    if connection.sctp is not None:
        connection.sctp.start = _nothing  # type: ignore[method-assign,assignment]
        # What it is about to send finds nobody, in tasks that nobody hears of.
        dtls = connection.sctp.transport
        dtls._send_data = partial(_sent_if_possible, dtls._send_data)  # type: ignore[method-assign]
    # Their threads are the one thing that would keep the interpreter alive: first, and each on its own.
    decoders = [asyncio.ensure_future(each.stop_decoder()) for each in receptions]
    closing = asyncio.ensure_future(_close(connection, decoders))
    await asyncio.wait([closing, *decoders], timeout=timeout_s)
    if not closing.done():
        _cut_off(connection)
        await asyncio.wait([closing], timeout=timeout_s / 2)
    if late := [task for task in (closing, *decoders) if not task.done()]:
        _release(connection)
        for task in late:
            task.cancel()
        await asyncio.wait(late, timeout=timeout_s / 2)
    for task in (closing, *decoders):
        if task.done() and not task.cancelled():
            task.exception()  # looked at: whatever aiortc stumbled over, the connection is gone
    if connection.sctp is not None:
        connection.sctp.transport._send_data = _nothing  # type: ignore[method-assign,assignment]
    break_cycles(connection)


async def _sent_if_possible(send: Callable[[bytes], Awaitable[None]], data: bytes) -> None:
    with suppress(ConnectionError):
        await send(data)


async def _close(connection: RTCPeerConnection, decoders: list[asyncio.Task[None]]) -> None:
    if decoders:
        await asyncio.wait(decoders)
    await connection.close()


async def _no_consent() -> None:
    """Take the place of aioice's own watch over the other side."""


async def _nothing(*_: object) -> None:
    """Take the place of a start that comes too late."""


def _cut_off(connection: RTCPeerConnection) -> None:
    """Close the sockets, those to TURN servers included; what waits for them goes on."""
    for transport in ice_transports(connection):
        for protocol in getattr(transport._connection, "_protocols", ()):
            relay = getattr(protocol.transport, "_TurnTransport__inner_protocol", None)
            (protocol if relay is None else relay).transport.close()


def _release(connection: RTCPeerConnection) -> None:
    """Let go whoever else waits for the close, which will not come: aiortc itself, where the other side left, too."""
    closed = getattr(connection, _CLOSED, None)
    if isinstance(closed, asyncio.Future):
        if not closed.done():
            closed.set_result(True)
        # If aiortc gets there after all, it says so to this one: a future takes one result.
        setattr(connection, _CLOSED, asyncio.get_running_loop().create_future())
