"""What every door is, and who lets people in."""

from __future__ import annotations

import asyncio
from typing import Protocol

from partime_async.sockets.address import Address
from partime_async.sockets.link import Link

BACKLOG = 128
"""Connections that the kernel holds until the loop comes to them."""


class Guests(Protocol):
    """Who lets them in; the doors' side of `listener.Listener`."""

    def is_full(self) -> bool:
        """Whether no more may come; asked once for each that knocks, and counted as refused if so."""

    def enter(self, link: Link) -> asyncio.Task[None]:
        """Begin to serve a connection, in a task of its own."""

    def farewell(self) -> bytes:
        """What one is told who may not come in."""

    def is_goodbye(self, data: bytes) -> bool:
        """Whether a datagram only says goodbye."""


class Door(Protocol):
    """One listening socket."""

    async def open(self) -> Address:
        """Listen; return the address with the port that the system chose.

        Raises:
            OSError: The system does not allow it.
        """

    def kernel_drops(self) -> int | None:
        """Return how many datagrams the kernel threw away; None: it does not tell, or there are none."""

    @property
    def failed_handshakes(self) -> int:
        """How many TLS handshakes came to nothing."""

    def shut(self) -> None:
        """Let nobody in any more."""

    async def aclose(self) -> None:
        """Give the socket back; everybody has left."""


def stop_accepting(server: asyncio.Server) -> None:
    """Accept nobody any more; close the server a few turns of the loop later.

    asyncio accepts in one turn and makes the transport in the next. If the server is closed in between, it forgets the
    accepted socket, and whoever connected waits until the garbage collector comes by.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.SelectorEventLoop):
        for found in server.sockets:
            loop.remove_reader(found.fileno())
    else:
        server.close()
