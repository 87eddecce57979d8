"""WebSockets, by aiohttp: one message each, binary for the binary format and text for the others."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection
from contextlib import suppress

from partime_async.errors import MissingDependencyError
from partime_async.sockets.accept import tls_server
from partime_async.sockets.address import Address
from partime_async.sockets.doorway import BACKLOG, Guests, stop_accepting
from partime_async.sockets.limits import Limits
from partime_async.sockets.tls import Credentials
from partime_async.sockets.wire import WireError

try:
    import aiohttp
    from aiohttp import web
except ImportError as error:
    raise MissingDependencyError("aiohttp", "sockets") from error

_TOO_BIG = 1009

Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class WebSocketLink:
    """One WebSocket, of a client or of a server.

    Args:
        socket: Open.
        limits: How much may be unsent.
        peer: Where the other side is.
        is_text: Whether messages go out as text.
        transport: Below it, if it is known.
        session: Closed with it, if it belongs to this one socket.
    """

    is_framed = True
    can_push_back = True
    overflowed = 0

    def __init__(
        self,
        socket: Socket,
        limits: Limits,
        *,
        peer: str,
        is_text: bool,
        transport: asyncio.WriteTransport | None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self.peer = peer
        self._socket, self._session, self._is_text = socket, session, is_text
        self._transport = transport
        self._high = limits.unsent_bytes // 2
        self._message_bytes = limits.message_bytes
        if transport is not None:
            transport.set_write_buffer_limits(high=self._high)

    @property
    def has_room(self) -> bool:
        """Whether `send` need not wait for the other side to read."""
        return self._transport is None or self._transport.get_write_buffer_size() <= self._high

    def receive_nowait(self) -> None:
        """Return nothing: a WebSocket gives what it has without a wait anyway."""

    async def receive(self) -> bytes:
        """Return the next message; see `Link`."""
        if self._socket.closed:  # asked again after its end, aiohttp calls it an error
            return b""
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY and message.data:
                return bytes(message.data)
            if message.type is aiohttp.WSMsgType.TEXT and message.data:
                return str(message.data).encode()
            if message.type is aiohttp.WSMsgType.ERROR:
                raise self._what_broke(message.data)
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
                if self._socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
                    raise ConnectionResetError("the WebSocket broke.")
                return b""

    def _what_broke(self, error: object) -> Exception:
        if isinstance(error, aiohttp.WebSocketError) and error.code == _TOO_BIG:
            return WireError(
                "too_long",
                f"the message has more than the {self._message_bytes} bytes that are allowed. Send less, or raise "
                "message_bytes.",
                is_fatal=True,
            )
        if isinstance(error, aiohttp.WebSocketError):
            return WireError("websocket", f"this is no WebSocket message: {error}.", is_fatal=True)
        return ConnectionResetError(f"the WebSocket broke: {error}")

    async def send(self, data: bytes) -> None:
        """Send; see `Link`."""
        try:
            if self._is_text:
                await self._socket.send_str(data.decode())
            else:
                await self._socket.send_bytes(data)
        except (aiohttp.ClientError, RuntimeError) as error:
            raise ConnectionResetError(f"the WebSocket is closed: {error}") from error

    async def aclose(self, timeout_s: float) -> None:
        """Close in order, or cut the connection."""
        try:
            with suppress(TimeoutError, OSError, RuntimeError):
                async with asyncio.timeout(timeout_s):
                    await self._socket.close()
        finally:
            if self._transport is not None:
                self._transport.abort()
            if self._session is not None:
                await self._session.close()


class WebSocketDoor:
    """An HTTP server that knows nothing but one WebSocket.

    Args:
        address: Where, and under which path.
        limits: Of messages, and of the time a handshake may take.
        guests: Who lets them in.
        tls: What the connections are encrypted with; None: they are not.
        origins: Web pages, as ``https://host``, that may connect. Others are refused, because any page that somebody
            opens here can reach a server on this machine.
    """

    def __init__(
        self,
        address: Address,
        limits: Limits,
        guests: Guests,
        *,
        tls: Credentials | None = None,
        origins: Collection[str] = (),
    ) -> None:
        self._address, self._limits, self._guests = address, limits, guests
        self._secure = None if tls is None else tls_server(self._protocol, tls, limits)
        self._patience_s = limits.message_s if tls is None else limits.handshake_s + limits.message_s
        self._origins = frozenset(origins)
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._upgraded: set[asyncio.BaseTransport] = set()

    async def open(self) -> Address:
        """Listen; see `Door`."""
        self._http = web.Server(self._request, access_log=None, keepalive_timeout=self._limits.message_s)
        if self._secure is not None:
            return self._address.at(await self._secure.open(self._address.host, self._address.port))
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, self._address.host, self._address.port, backlog=BACKLOG
        )
        return self._address.at(self._server.sockets[0].getsockname()[1])

    def kernel_drops(self) -> None:
        """Return nothing: there are no datagrams."""

    @property
    def failed_handshakes(self) -> int:
        """How many TLS handshakes came to nothing."""
        return 0 if self._secure is None else self._secure.failed

    def _protocol(self) -> asyncio.BaseProtocol:
        assert self._http is not None
        protocol = self._http()

        def expire() -> None:
            transport = protocol.transport
            if transport is not None and transport not in self._upgraded:
                transport.abort()

        # aiohttp waits for ever for the first request; somebody could hold all descriptors by saying nothing.
        asyncio.get_running_loop().call_later(self._patience_s, expire)
        return protocol

    async def _request(self, request: web.BaseRequest) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if request.path != self._address.path:
            return web.Response(status=404, text=f"frames are taken at {self._address.path}\n")
        if origin is not None and origin not in self._origins:
            return web.Response(status=403, text="this page may not connect\n")
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return web.Response(status=426, text="connect with a WebSocket\n", headers={"Upgrade": "websocket"})
        if self._guests.is_full():
            return web.Response(status=503, text=self._guests.farewell().decode(errors="replace"))
        found = web.WebSocketResponse(
            max_msg_size=self._limits.message_bytes,
            compress=False,
            writer_limit=1,
            timeout=self._limits.close_s,
            heartbeat=self._limits.probe_s,
        )
        await found.prepare(request)
        transport = request.transport
        assert transport is not None
        link = WebSocketLink(
            found,
            self._limits,
            peer=str(request.remote),
            is_text=self._address.format != "binary",
            transport=transport,
        )
        self._upgraded.add(transport)
        try:
            # Served by a task that the listener owns, and cancels; aiohttp's own goes on after it.
            await asyncio.wait([self._guests.enter(link)])
        finally:
            self._upgraded.discard(transport)
        return found

    def shut(self) -> None:
        """Let nobody in any more."""
        if self._secure is not None:
            self._secure.shut()
        if self._server is not None:
            stop_accepting(self._server)

    async def aclose(self) -> None:
        """Give the socket back, and cut what never became a WebSocket."""
        if self._server is not None:
            self._server.close()
        if self._secure is not None:
            await self._secure.aclose()
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(self._limits.close_s)
        if self._server is not None:
            await self._server.wait_closed()


async def connect_websocket(
    url: str, limits: Limits, *, is_text: bool, context: ssl.SSLContext | None = None
) -> WebSocketLink:
    """Open a WebSocket as a client.

    Raises:
        OSError: It cannot be reached, or is none.
        SSLCertVerificationError: The server's certificate is not trusted.

    Cancellation: safe.
    """
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=limits.connect_s))
    try:
        try:
            found = await session.ws_connect(
                url,
                max_msg_size=limits.message_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=limits.close_s),
                heartbeat=limits.probe_s,
                ssl=True if context is None else context,
            )
        except aiohttp.ClientConnectorCertificateError as error:
            raise error.certificate_error from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConnectionRefusedError(f"{error or 'timed out'}") from error
    except BaseException:
        await session.close()
        raise
    peer = url.partition("://")[2]
    # aiohttp keeps a client's transport to itself, and makes `send` wait as needed.
    return WebSocketLink(found, limits, peer=peer, is_text=is_text, transport=None, session=session)
