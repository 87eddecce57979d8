"""One open connection, whatever carries it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Protocol

from partime_async.sockets.framing import Chunk
from partime_async.sockets.limits import Limits

READ_BYTES = 1 << 16
"""Of a byte stream at once; as much again may wait behind it before the sender is held back."""


class Link(Protocol):
    """A connection to one other side. One task receives and one sends; both may be cancelled."""

    @property
    def peer(self) -> str:
        """Where the other side is, for people."""

    @property
    def is_framed(self) -> bool:
        """Whether each chunk is one message."""

    @property
    def can_push_back(self) -> bool:
        """Whether the other side has to wait if nobody receives; if not, what is not received in time is lost."""

    @property
    def overflowed(self) -> int:
        """Messages that were thrown away because nobody received them in time."""

    @property
    def has_room(self) -> bool:
        """Whether `send` need not wait for the other side to read."""

    def receive_nowait(self) -> Chunk | None:
        """Return what is here already, or None: then wait with `receive`."""

    async def receive(self) -> Chunk:
        """Return what arrives next; nothing: the other side has ended in order.

        Raises:
            WireError: The transport itself refused a message.
            OSError: The connection broke.

        Cancellation: safe.
        """

    async def send(self, data: bytes) -> None:
        """Send; wait while too much is unsent.

        Raises:
            OSError: The connection broke.

        Cancellation: safe; the data are on their way already.
        """

    async def aclose(self, timeout_s: float) -> None:
        """Send what is unsent and close; cut the connection if that takes longer."""


class StreamLink:
    """TCP and UNIX sockets."""

    is_framed = False
    can_push_back = True
    overflowed = 0

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits, *, peer: str | None = None
    ) -> None:
        self._reader, self._writer = reader, writer
        self._transport = writer.transport
        self._high = limits.unsent_bytes // 2
        self._transport.set_write_buffer_limits(high=self._high)
        found = writer.get_extra_info("socket")
        if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            _tune(found, limits)
        self.peer = peer or told(writer.get_extra_info("peername"))

    @property
    def has_room(self) -> bool:
        """Whether `send` need not wait for the other side to read."""
        return self._transport.get_write_buffer_size() <= self._high

    def receive_nowait(self) -> None:
        """Return nothing: a reader gives what it has without a wait anyway."""

    async def receive(self) -> bytes:
        """Return what arrives next; see `Link`."""
        return await self._reader.read(READ_BYTES)

    async def send(self, data: bytes) -> None:
        """Send; see `Link`."""
        if self._transport.is_closing():
            raise ConnectionResetError("the connection is closed.")
        self._writer.write(data)
        if not self.has_room:
            await self._writer.drain()

    async def aclose(self, timeout_s: float) -> None:
        """Close; see `Link`."""
        self._writer.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._transport.abort()
            # Its end is announced in the loop's next turn; awaited, so that no descriptor outlives the owner.
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._writer.wait_closed()


def _tune(found: socket.socket, limits: Limits) -> None:
    """Let small results go out at once, and notice when the other side has vanished without a word."""
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probe_s = max(1, round(limits.probe_s))
    # Names that not every system has.
    for name, value in (("TCP_KEEPIDLE", probe_s), ("TCP_KEEPINTVL", max(1, probe_s // 2)), ("TCP_KEEPCNT", 2)):
        option = getattr(socket, name, None)
        if option is not None:
            found.setsockopt(socket.IPPROTO_TCP, option, value)


def told(address: object) -> str:
    """Return a socket's address for people."""
    if isinstance(address, tuple) and len(address) >= 2:
        return f"[{address[0]}]:{address[1]}" if ":" in str(address[0]) else f"{address[0]}:{address[1]}"
    return str(address or "a local program")
