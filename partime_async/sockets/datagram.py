"""UDP: one socket for many senders, or a socket of one's own.

Nothing can be pushed back over UDP, so what cannot be received in time is lost; here, every loss is counted somewhere:
by the kernel when its buffer is full, by the link when its client's turn does not come, and what got lost on the way by
the gaps in the sequence.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from partime_async.sockets.limits import Limits
from partime_async.sockets.link import told

_BUFFER_BYTES = 1 << 22
"""Asked of the kernel, which gives what it may (net.core.rmem_max)."""

_SO_MEMINFO, _MEMINFO = 55, struct.Struct("9I")
_DROPS = 8
"""Linux: include/uapi/asm-generic/socket.h and linux/sock_diag.h (SK_MEMINFO_DROPS)."""

_OVERHEAD_BYTES = 64

UdpAddress = tuple[str, int] | tuple[str, int, int, int]


def kernel_drops(found: socket.socket) -> int | None:
    """Return how many datagrams the kernel threw away in front of this socket; None: this system does not tell.

    It is the counter that SO_RXQ_OVFL attaches to the next datagram; asked for, it is also known when none follows.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        told_by_kernel = found.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(told_by_kernel)[_DROPS])
    except (OSError, struct.error):  # a kernel before 4.12, or a sandbox
        return None


class QueueLink:
    """A link whose messages are brought, and wait here for their turn: at most `waiting_bytes` of them."""

    is_framed = True
    can_push_back = False
    has_room = True

    def __init__(self, peer: str, limits: Limits) -> None:
        self.peer = peer
        self.overflowed = 0
        self.on_close: Callable[[], None] | None = None
        self._limits = limits
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._receiver: asyncio.Future[None] | None = None
        self._is_ended = False

    def deliver(self, data: bytes) -> None:
        """Take a message that has come; it is lost if too many wait: those before it are nearer to their turn."""
        if not data:  # a datagram may be empty; to the receiver it would look like the end
            return
        # Each counts for a little more than it holds, or empty ones would cost nothing.
        if self._waiting_bytes + len(data) + _OVERHEAD_BYTES > self._limits.waiting_bytes:
            self.overflowed += 1
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data) + _OVERHEAD_BYTES
        self._wake()

    def end(self) -> None:
        """Let the receiver know that nothing will follow."""
        self._is_ended = True
        self._wake()

    def receive_nowait(self) -> bytes | None:
        """Return the oldest message, or None."""
        if not self._waiting:
            return None
        data = self._waiting.popleft()
        self._waiting_bytes -= len(data) + _OVERHEAD_BYTES
        return data

    async def receive(self) -> bytes:
        """Return the next message; see `Link`."""
        while (data := self.receive_nowait()) is None:
            if self._is_ended:
                return b""
            self._receiver = asyncio.get_running_loop().create_future()
            await self._receiver
        return data

    async def send(self, data: bytes) -> None:
        """Send nothing: there is no way back."""

    async def aclose(self, timeout_s: float) -> None:
        """Let nothing more be brought."""
        self._is_ended = True
        if self.on_close is not None:
            self.on_close()
            self.on_close = None

    def _wake(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)


class DatagramLink(QueueLink):
    """What one address sends to a shared socket, and what goes back to it."""

    def __init__(self, transport: asyncio.DatagramTransport, address: UdpAddress, limits: Limits) -> None:
        super().__init__(told(address), limits)
        self._transport = transport
        self._address: UdpAddress | None = address

    async def send(self, data: bytes) -> None:
        """Send, or lose it: nobody waits for a datagram."""
        # Both loops have it, typeshed does not know it.
        unsent: int = self._transport.get_write_buffer_size()  # type: ignore[attr-defined]
        if not self._transport.is_closing() and unsent <= self._limits.unsent_bytes:
            self._transport.sendto(data, self._address)


class SharedSocket(asyncio.DatagramProtocol):
    """Sorts the datagrams of a listening socket by their senders.

    Args:
        limits: How many senders at once.
        admit: Called with the link of a new one; says whether it may come in.
        is_goodbye: Whether a datagram only says goodbye: from somebody unknown it is one of several such, and the
            client has been let go at the first.
    """

    def __init__(
        self, limits: Limits, admit: Callable[[DatagramLink], bool], is_goodbye: Callable[[bytes], bool]
    ) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._limits, self._admit, self._is_goodbye = limits, admit, is_goodbye
        self._links: dict[UdpAddress, DatagramLink] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a large buffer: bursts of many senders wait there."""
        assert isinstance(transport, asyncio.DatagramTransport) or hasattr(transport, "sendto")
        self._transport = transport  # type: ignore[assignment]  # uvloop's has no common base
        with suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)

    def datagram_received(self, data: bytes, address: UdpAddress) -> None:
        """Hand a datagram to its sender's link, or make one."""
        link = self._links.get(address)
        if link is None:
            if self._transport is None or self._is_goodbye(data):
                return
            link = DatagramLink(self._transport, address, self._limits)
            if not self._admit(link):
                return
            self._links[address] = link
            link.on_close = lambda: self._forget(address)
        link.deliver(data)

    def error_received(self, error: Exception) -> None:
        """Do nothing: somebody who was answered is not there any more, which its idle time will show."""

    def connection_lost(self, error: Exception | None) -> None:
        """End all links."""
        for link in self._links.values():
            link.end()
        if not self.closed.done():
            self.closed.set_result(None)

    def _forget(self, address: UdpAddress) -> None:
        self._links.pop(address, None)


class OwnSocket(asyncio.DatagramProtocol):
    """A socket that is connected to one other side."""

    def __init__(self, limits: Limits) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.link: DatagramLink | None = None
        self._limits = limits

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make the link."""
        self.link = OwnLink(transport, transport.get_extra_info("peername"), self._limits, self.closed)  # type: ignore[arg-type]
        with suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)

    def datagram_received(self, data: bytes, address: UdpAddress) -> None:
        """Hand a datagram to the link."""
        if self.link is not None:
            self.link.deliver(data)

    def error_received(self, error: Exception) -> None:
        """Do nothing: nobody listens there at the moment, and datagrams are lost meanwhile."""

    def connection_lost(self, error: Exception | None) -> None:
        """End the link."""
        if self.link is not None:
            self.link.end()
        if not self.closed.done():
            self.closed.set_result(None)


class OwnLink(DatagramLink):
    """A link with a socket of its own, which it closes."""

    def __init__(
        self,
        transport: asyncio.DatagramTransport,
        address: UdpAddress,
        limits: Limits,
        closed: asyncio.Future[None],
    ) -> None:
        super().__init__(transport, address, limits)
        self._address = None  # the socket knows
        self._closed = closed

    async def aclose(self, timeout_s: float) -> None:
        """Close the socket."""
        self._transport.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._closed)
        if not self._closed.done():
            self._transport.abort()
