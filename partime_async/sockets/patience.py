"""Waiting for a peer no longer than so long, without blaming it for the time in which this program was held up."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_TCP_INFO = struct.Struct("@128xQ")
"""Of the kernel's ``struct tcp_info`` the ``tcpi_bytes_received``, since Linux 4.1."""


async def received_within(seconds: float | None, receive: Callable[[], Awaitable[T]]) -> T:
    """Return what a peer sends.

    Args:
        seconds: To wait for it; None: without end.
        receive: Gives it; called once more if the time is over, since what came while the program did something else
            is read only in the loop's next turn.

    Raises:
        TimeoutError: Nothing came in time.

    Cancellation: as safe as `receive`.
    """
    try:
        async with asyncio.timeout(seconds):
            return await receive()
    except TimeoutError:
        await asyncio.sleep(0)
        async with asyncio.timeout(0.0):
            return await receive()


class Arrivals:
    """Tells whether bytes come over a connection, also those of a message that is not whole yet.

    A long message over a slow line is no silence, and what reads whole messages cannot see it come. The kernel can; on
    systems other than Linux it is not asked, and then nothing comes before it is whole.

    Args:
        transport: Of the connection; None: it is closed.
    """

    def __init__(self, transport: asyncio.BaseTransport | None) -> None:
        self._socket = None if transport is None else transport.get_extra_info("socket")
        self._received = 0

    def has_more(self) -> bool:
        """Whether bytes have come since this was asked last."""
        before, self._received = self._received, self._count()
        return self._received > before

    def _count(self) -> int:
        if self._socket is None or not sys.platform.startswith("linux"):
            return 0
        try:
            told: bytes = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        except OSError:  # closed, or none of TCP
            return 0
        return int(_TCP_INFO.unpack(told)[0]) if len(told) == _TCP_INFO.size else 0
