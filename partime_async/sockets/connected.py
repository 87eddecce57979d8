"""One stream of frames out of a connection to a server, made anew when it breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import numpy as np
import torch

from partime_async.client import UntrustedError
from partime_async.errors import SourceError
from partime_async.frame import Value
from partime_async.offload import to_the_end
from partime_async.sockets.accounts import ClientAccounts, ClientStatistics
from partime_async.sockets.address import Address
from partime_async.sockets.backoff import Backoff
from partime_async.sockets.connection import Connection
from partime_async.sockets.dial import dial
from partime_async.sockets.limits import Limits
from partime_async.sockets.reading import Reading, SocketFrame
from partime_async.sockets.source import SocketStatistics, source_address
from partime_async.sockets.tls import Credentials, credentials, opened
from partime_async.sockets.wire import Kind, Message

_HELLO = Message(np.zeros(0, np.uint8), 0, kind=Kind.HELLO)
_HELLO_S = 5.0
"""A source that connects gives a sign of life so often: over UDP it is how the other side knows where to send."""


def connect(
    url: str,
    *,
    limits: Limits | None = None,
    dtype: torch.dtype | None = torch.float32,
    timing: str = "estimate",
    to_value: Callable[[Message], Value] | None = None,
    patience_s: float | None = None,
    backoff: Backoff | None = None,
    tls: Credentials | None = None,
) -> ConnectedSource:
    """Give the frames that a server sends to whoever connects to it: the other way round than `listen`.

    A connection that breaks is made anew, after waits that grow and are partly random. The stream ends when the server
    says goodbye.

    Args:
        url: As for `listen`.
        limits: What the server may ask; by default those of `Limits`.
        dtype: As for `listen`.
        timing: As for `listen`.
        to_value: As for `listen`.
        patience_s: Give up after so many seconds without a connection; None: never.
        backoff: How long to wait between two tries.
        tls: What to check the certificate of a ``tcps`` or ``wss`` server against, and what to show of one's own; None:
            the system's certificates, or the files named in the URL: ``?ca=…``.

    Raises:
        ConfigurationError: Options that cannot be; the caller's fault.
    """
    address = source_address(url, is_dialled=True)
    return ConnectedSource(
        address,
        limits or Limits(),
        Reading.checked(dtype, timing, to_value),
        patience_s=patience_s,
        backoff=backoff or Backoff(),
        tls=credentials(address, tls, is_server=False),
    )


class ConnectedSource:
    """What `connect` returns; see `SocketSource`."""

    def __init__(
        self,
        address: Address,
        limits: Limits,
        reading: Reading,
        *,
        patience_s: float | None,
        backoff: Backoff,
        tls: Credentials | None,
    ) -> None:
        self._tls = tls
        self._address, self._limits, self._reading = address, limits, reading
        self._patience_s, self._backoff = patience_s, backoff
        self._connection: Connection | None = None
        self._greeting: asyncio.Task[None] | None = None
        self._accounts = ClientAccounts()
        self._last: ClientStatistics | None = None
        self._connected = 0
        self._wait_s = 0.0
        self._is_closed = False
        self._closing = asyncio.Event()

    @property
    def url(self) -> str:
        """What it connects to."""
        return str(self._address)

    def describe(self) -> str:
        """Say in one line what the source is."""
        return f"what {self._address} sends"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SocketFrame:
        """Return the next frame, waiting for it, and for the server.

        Raises:
            SourceError: The server could not be reached within `patience_s`, or its certificate is not trusted.
            ConfigurationError: The files of TLS cannot be used; the caller's fault.

        Cancellation: safe; no frame is lost.
        """
        while not self._is_closed:
            connection = self._connection or await self._open()
            if connection is None:
                break
            try:
                frame = await anext(connection)
            except StopAsyncIteration:
                await self._hang_up()
                if connection.closed == "bye":
                    break
                self._wait_s = self._backoff.next_s()
            else:
                self._backoff.reset()
                return frame
        self._is_closed = True
        raise StopAsyncIteration

    async def _open(self) -> Connection | None:
        """Connect, however often it takes; None: the source was closed meanwhile."""
        began = time.monotonic()
        self._tls = context = await opened(self._tls, is_server=False)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s):
                    await self._closing.wait()
            if self._closing.is_set():
                return None
            self._wait_s = 0.0
            try:
                link = await dial(self._address, self._limits, context)
            except UntrustedError as error:
                raise SourceError(str(error)) from error
            except OSError as error:
                self._wait_s = self._backoff.next_s()
                waited = time.monotonic() - began
                if self._patience_s is not None and waited + self._wait_s > self._patience_s:
                    raise SourceError(
                        f"{self._address} could not be reached within {self._patience_s:g} s: {error}. "
                        "Check that something listens there."
                    ) from error
            else:
                break
        if self._closing.is_set():
            await link.aclose(self._limits.close_s)
            return None
        self._connected += 1
        self._connection = Connection(
            link,
            self._address.format,
            self._limits,
            self._reading,
            number=self._connected - 1,
            accounts=self._accounts,
        )
        self._greeting = asyncio.get_running_loop().create_task(self._greet(self._connection), name="partime hello")
        return self._connection

    @staticmethod
    async def _greet(connection: Connection) -> None:
        while await connection.reply([_HELLO], is_lossy=True):  # noqa: ASYNC110 - it is a beat, not a poll
            await asyncio.sleep(_HELLO_S)

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        greeting, self._greeting = self._greeting, None
        if greeting is not None:
            greeting.cancel()
            await asyncio.wait([greeting])
        if connection is not None:
            self._last = connection.statistics()
            # The link's own count goes with it; the account goes on.
            if connection.link.overflowed:
                self._accounts.messages += connection.link.overflowed
                self._accounts.dropped["full"] += connection.link.overflowed
            await to_the_end(connection.link.aclose(self._limits.close_s), name="partime source closing")

    def statistics(self) -> SocketStatistics:
        """Return what the source has seen so far; also after it was closed."""
        now = self._last if self._connection is None else self._connection.statistics()
        clients = () if now is None else (now,)
        return SocketStatistics(self.url, int(self._connection is not None), self._connected, 0, None, clients)

    async def aclose(self) -> None:
        """Close the connection; further calls do nothing."""
        self._is_closed = True
        self._closing.set()
        await self._hang_up()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
