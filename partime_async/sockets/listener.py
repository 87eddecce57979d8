"""Who comes in, how many at once, and that nobody is left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Self

from partime_async.errors import SourceError
from partime_async.offload import to_the_end
from partime_async.sockets.address import Address
from partime_async.sockets.door import make_door
from partime_async.sockets.formats import make_format, note
from partime_async.sockets.limits import Limits
from partime_async.sockets.link import Link
from partime_async.sockets.tls import Credentials
from partime_async.sockets.wire import HEADER, Kind

_log = logging.getLogger(__name__)

_KIND_OFFSET = 7
_TURNS = 3
"""Of the loop, after which a connection that had been accepted has come in, and can be told that it is too late."""


class Listener:
    """Serves everybody who connects to one address, each in a task of its own, up to a number.

    Args:
        address: Where to listen.
        limits: How many at once, and how long to close.
        serve: Talks to one connection until its end. An exception ends that connection, and is logged.
        tls: What the connections are encrypted with; None: they are not.
        origins: Web pages that may connect, for WebSockets.
    """

    def __init__(
        self,
        address: Address,
        limits: Limits,
        serve: Callable[[Link], Awaitable[None]],
        *,
        tls: Credentials | None = None,
        origins: Collection[str] = (),
    ) -> None:
        self.address = address
        self.refused = 0
        self._limits, self._serve = limits, serve
        self._door = make_door(address, limits, self, tls=tls, origins=origins)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unserved: set[Link] = set()
        self._is_open = False

    @property
    def connected(self) -> int:
        """How many are here."""
        return len(self._tasks)

    def kernel_drops(self) -> int | None:
        """Return how many datagrams the kernel threw away in front of the socket; None: unknown, or no datagrams."""
        return self._door.kernel_drops()

    @property
    def failed_handshakes(self) -> int:
        """How many TLS handshakes came to nothing."""
        return self._door.failed_handshakes

    async def open(self) -> Self:
        """Listen; `address` then has the port that the system chose.

        Raises:
            SourceError: The system does not allow it: the address is in use, or not of this machine.
            ConfigurationError: The certificate cannot be used.
        """
        try:
            self.address = await self._door.open()
        except OSError as error:
            raise SourceError(f"cannot listen at {self.address}: {error}. Choose another address.") from error
        self._is_open = True
        return self

    async def aclose(self) -> None:
        """Let nobody in any more, end everybody's service, and give the socket back.

        Cancellation: waits for the end, then raises.
        """
        await to_the_end(self._aclose(), name="partime listener closing")

    async def _aclose(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._door.shut()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        for link in self._unserved:  # a task that is cancelled before its first step never gets to its `finally`
            await link.aclose(self._limits.close_s)
        self._unserved.clear()
        await self._door.aclose()

    async def all_served(self) -> None:
        """Wait until everybody who is here has left.

        Cancellation: safe.
        """
        while self._tasks:
            await asyncio.wait(self._tasks)

    # -- the doors' side ------------------------------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether no more may come; see `door.Guests`."""
        if self._is_open and len(self._tasks) < self._limits.clients:
            return False
        self.refused += 1
        return True

    def enter(self, link: Link) -> asyncio.Task[None]:
        """Begin to serve a connection; see `door.Guests`."""
        self._unserved.add(link)
        task = asyncio.get_running_loop().create_task(self._run(link), name=f"partime client {link.peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def farewell(self) -> bytes:
        """What one is told who may not come in."""
        told = note({"error": f"{self._limits.clients} client(s) are here. Come later."})
        return make_format(self.address.format, self._limits).encode(told)

    def is_goodbye(self, data: bytes) -> bool:
        """Whether a datagram only says goodbye."""
        if self.address.format == "binary":
            return len(data) == HEADER.size and data[_KIND_OFFSET] == Kind.BYE
        return b'"bye"' in data[:256] or data.startswith(b"# bye")

    async def _run(self, link: Link) -> None:
        self._unserved.discard(link)
        try:
            await self._serve(link)
        except Exception:
            _log.exception("the service of %s failed", link.peer)
        finally:
            await to_the_end(link.aclose(self._limits.close_s), name="partime client closing")
