"""Listening: an application on an address, from `async with` to its end."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from partime_async.errors import ConfigurationError
from partime_async.serve.access import is_loopback_host
from partime_async.serve.app import ACCESS, ROSTER, Handler
from partime_async.serve.doorway import Doorway
from partime_async.serve.log import event
from partime_async.sockets.accept import TlsServer
from partime_async.sockets.tls import Credentials, check_side

DEFAULT_PORT = 8765
_SHUTDOWN_S = 0.5
"""Seconds that open requests get when the server stops; clients have ended by then."""

_PATIENCE_S = 10.0
"""Seconds that a connection may take over its first request head, and before that over its TLS handshake."""

_ADVICE = "Browsers give their camera to https only: pass tls, or put a server that speaks it in front."


class Server:
    """An application of `make_app` that listens: ``async with Server(app) as server``.

    Args:
        app: What to serve.
        host: Address or name to listen on; anything but this machine's own needs an `Access` with a token.
        port: 0: any that is free.
        tls: Serve https, with the certificate of a `Tls`, whose files are read on a thread and again when they have
            changed, or of an `ssl.SSLContext`. Beyond this machine browsers give a camera to pages of https alone.

    Raises:
        ConfigurationError: The application has no token and could be reached from elsewhere, or `tls` is nothing for a
            server; the caller's fault.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        tls: Credentials | None = None,
    ) -> None:
        if ACCESS not in app:
            raise ConfigurationError("this is no application of make_app(). Run it with aiohttp.web.AppRunner.")
        if not is_loopback_host(host) and not app[ACCESS].needs_token:
            raise ConfigurationError(
                f"{host} can be reached from other machines, and there is no token. "
                "Pass an Access with a token, or listen on 127.0.0.1."
            )
        self._app = app
        self._host = host
        self._port = port
        if tls is not None:
            check_side(tls, is_server=True)
        # No access log: the address of a request may have a token in it.
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_S, logger=_http_logger()
        )
        self._secure = None if tls is None else self._encrypted(tls)
        self._doorway = Doorway(self._connections, _PATIENCE_S)
        self._watching: asyncio.Task[None] | None = None
        app.middlewares.append(self._noted)

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._secure is not None:
            return self._secure.port or self._port
        addresses = self._runner.addresses
        return int(addresses[0][1]) if addresses else self._port

    @property
    def url(self) -> str:
        """The address of the page, without the token."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"{'http' if self._secure is None else 'https'}://{host}:{self.port}/"

    async def __aenter__(self) -> Self:
        """Enter the services and listen.

        Raises:
            ConfigurationError: The address is taken, or is none of this machine's, or the certificate cannot be used.
            Exception: What entering a service raised.
        """
        if self._secure is not None:
            await self._secure.read()  # before a service is entered, which may take its time
        elif not is_loopback_host(self._host):
            event("server.unencrypted", level=logging.WARNING, host=self._host, advice=_ADVICE)
        try:
            await self._runner.setup()
            await self._listen()
        except BaseException:
            await self._runner.cleanup()
            raise
        self._watching = asyncio.create_task(self._doorway.run(), name="partime doorway")
        event("server.listening", url=self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._app[ROSTER].close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if self._secure is not None:
            await self._secure.aclose()
        await self._runner.cleanup()

    @web.middleware
    async def _noted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._doorway.spoke(request.protocol)
        return await handler(request)

    def _encrypted(self, tls: Credentials) -> TlsServer:
        def protocol() -> asyncio.BaseProtocol:
            assert self._runner.server is not None
            return self._runner.server()

        def failed(peer: str, why: str) -> None:
            event("handshake.failed", level=logging.WARNING, remote=peer, why=why)

        return TlsServer(protocol, tls, handshake_s=_PATIENCE_S, close_s=_SHUTDOWN_S, on_failed=failed)

    def _connections(self) -> list[web.RequestHandler]:
        server = self._runner.server
        return [] if server is None else server.connections

    async def _listen(self) -> None:
        try:
            if self._secure is None:
                await web.TCPSite(self._runner, self._host, self._port).start()
            else:
                await self._secure.open(self._host, self._port)
        except OSError as error:
            told = f"{self._host}:{self._port} cannot be listened on: {error.strerror or error}."
            raise ConfigurationError(f"{told} {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return "Give an address of this machine, or 0.0.0.0 for all that it has."
    return "Choose another port, or 0 for any that is free."


def _http_logger() -> logging.Logger:
    """Return a logger for what goes wrong in HTTP itself, but for what others send: rubbish must not fill the log."""
    logger = logging.getLogger("partime_async.serve.http")
    logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)
