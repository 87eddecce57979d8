"""Listening with TLS: a connection comes in once its handshake is done, and until then costs nobody else anything."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from partime_async.errors import ConfigurationError
from partime_async.offload import in_thread
from partime_async.sockets.doorway import BACKLOG
from partime_async.sockets.limits import Limits
from partime_async.sockets.link import told
from partime_async.sockets.tls import Credentials, Tls, opened

_log = logging.getLogger(__name__)

MOST_HANDSHAKES = 128
"""Under way at once."""

_BREATH_S = 1.0
"""Between two tries to accept while the system has no descriptor left; asyncio's own server waits as long."""

_LOOKS_S = 60.0
"""Certificates are renewed in place; files are looked at no more often than this."""


class TlsServer:
    """Accepts connections and makes their handshakes.

    Not asyncio's own `create_server(ssl=...)`: that makes any number of handshakes at once, tells nobody of those that
    fail, and never reads a renewed certificate. Here at most `MOST_HANDSHAKES` are under way; one more, and the oldest
    is cut, since an honest one takes milliseconds. A certificate whose files have changed is shown to whoever comes
    next.

    Args:
        factory: Makes the protocol of a connection; called as its handshake begins.
        tls: Of a server.
        handshake_s: How long a handshake may take.
        close_s: How long a connection may take to close in order.
        on_failed: Called with the other side's address, and with why its handshake has failed.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        tls: Credentials,
        *,
        handshake_s: float,
        close_s: float,
        on_failed: Callable[[str, str], None] | None = None,
    ) -> None:
        self.failed = 0
        self.port = 0
        self._sockets: list[socket.socket] = []
        self._factory, self._tls = factory, tls
        self._handshake_s, self._close_s = handshake_s, close_s
        self._on_failed = on_failed
        self._context: ssl.SSLContext | None = None
        self._stamps: tuple[int, ...] = ()
        self._looked_at = 0.0
        self._accepting: list[asyncio.Task[None]] = []
        self._shaking: dict[asyncio.Task[None], tuple[str, socket.socket]] = {}
        self._untaken: set[socket.socket] = set()
        self._is_shut = False

    async def read(self) -> None:
        """Read the certificate.

        Raises:
            ConfigurationError: It cannot be used.
        """
        if isinstance(self._tls, Tls):
            self._stamps = await in_thread(partial(_stamps, self._tls), name="partime certificate")
            self._looked_at = time.monotonic()
        self._context = await opened(self._tls, is_server=True)

    async def open(self, host: str, port: int) -> int:
        """Read the certificate, if that was not done, listen, and return the port.

        Raises:
            ConfigurationError: The certificate cannot be used; nothing was bound.
            OSError: The system does not allow it.
        """
        if self._context is None:
            await self.read()
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                port = self._bind(socket.socket(family, kind, protocol), (address[0], port, *address[2:]))
        except BaseException:
            for listening in self._sockets:
                listening.close()
            raise
        self._accepting = [
            loop.create_task(self._accept(listening), name="partime tls server") for listening in self._sockets
        ]
        self.port = port
        return port

    def _bind(self, listening: socket.socket, address: tuple[object, ...]) -> int:
        self._sockets.append(listening)
        if hasattr(socket, "AF_UNIX"):  # on Windows the option means something else
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listening.family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.setblocking(False)
        listening.bind(address)
        listening.listen(BACKLOG)
        return int(listening.getsockname()[1])

    def shut(self) -> None:
        """Accept nobody any more."""
        self._is_shut = True
        for listening in self._sockets:
            # Before anybody is cancelled: what was accepted in that very moment would be lost, open.
            with suppress(NotImplementedError):
                asyncio.get_running_loop().remove_reader(listening.fileno())

    async def aclose(self) -> None:
        """Cut the handshakes that are under way, and give the sockets back."""
        if not self._is_shut:
            self.shut()
            await asyncio.sleep(0)
        tasks = [*self._accepting, *self._shaking]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for listening in self._sockets:
            listening.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_shut:
            try:
                found, address = await loop.sock_accept(listening)
            except ConnectionError:  # it has gone already
                continue
            except OSError as error:
                _log.warning("nobody can be accepted at the moment: %s", error)
                await asyncio.sleep(_BREATH_S)
                continue
            if len(self._shaking) >= MOST_HANDSHAKES:
                oldest = next(iter(self._shaking))
                oldest.cancel()
                await asyncio.wait([oldest])
            task = loop.create_task(self._shake(found, told(address)), name="partime tls handshake")
            self._shaking[task] = told(address), found
            self._untaken.add(found)
            task.add_done_callback(self._shaken)
            await asyncio.sleep(0)  # accepting needs no turn of the loop as long as somebody waits

    async def _shake(self, found: socket.socket, peer: str) -> None:
        context = await self._newest()
        self._untaken.discard(found)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory,
                found,
                ssl=context,
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=self._close_s,
            )
        except OSError as error:
            self._fail(peer, _why(error))

    def _shaken(self, task: asyncio.Task[None]) -> None:
        peer, found = self._shaking.pop(task)
        if found in self._untaken:  # it was cut before any transport had it
            self._untaken.discard(found)
            found.close()
        if not task.cancelled():
            if (error := task.exception()) is not None:
                _log.error("a handshake with %s failed", peer, exc_info=error)
        elif not self._is_shut:
            self._fail(peer, "too many at once")

    def _fail(self, peer: str, why: str) -> None:
        self.failed += 1
        if self._on_failed is not None:
            self._on_failed(peer, why)

    async def _newest(self) -> ssl.SSLContext | None:
        """Return the context, made anew if its files have changed; those that cannot be used are told of and left."""
        if not isinstance(self._tls, Tls) or time.monotonic() < self._looked_at + _LOOKS_S:
            return self._context
        self._looked_at = time.monotonic()
        with suppress(OSError):
            stamps = await in_thread(partial(_stamps, self._tls), name="partime certificate")
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._context = await opened(self._tls, is_server=True)
                except ConfigurationError as error:
                    _log.warning("the certificate before is kept: %s", error)
        return self._context


def tls_server(factory: Callable[[], asyncio.BaseProtocol], tls: Credentials, limits: Limits) -> TlsServer:
    """Return what accepts the encrypted connections of a door; those that fail are counted, and logged for debugging.

    A warning for each would let anybody who knocks fill the log.
    """
    return TlsServer(
        factory,
        tls,
        handshake_s=limits.handshake_s,
        close_s=limits.close_s,
        on_failed=partial(_log.debug, "the TLS handshake of %s failed: %s"),
    )


def _stamps(tls: Tls) -> tuple[int, ...]:
    """Return when the files were last written; one that is away for the moment counts as 0."""
    stamps = []
    for path in tls.files:
        try:
            stamps.append(path.stat().st_mtime_ns)
        except OSError:
            stamps.append(0)
    return tuple(stamps)


def _why(error: OSError) -> str:
    """Return in a few words why a handshake has failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return "it took too long" if isinstance(error, ConnectionAbortedError) else "it went away"
