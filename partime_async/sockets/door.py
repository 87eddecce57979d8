"""How connections come in: one kind of door for each transport."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from partime_async.errors import SourceError
from partime_async.offload import in_thread
from partime_async.sockets.accept import tls_server
from partime_async.sockets.address import Address
from partime_async.sockets.datagram import DatagramLink, SharedSocket, kernel_drops
from partime_async.sockets.doorway import BACKLOG, Door, Guests, stop_accepting
from partime_async.sockets.limits import Limits
from partime_async.sockets.link import READ_BYTES, StreamLink
from partime_async.sockets.tls import Credentials


class StreamDoor:
    """TCP, with TLS if there are credentials, or a UNIX socket."""

    def __init__(self, address: Address, limits: Limits, guests: Guests, tls: Credentials | None = None) -> None:
        self._address, self._limits, self._guests = address, limits, guests
        self._server: asyncio.Server | None = None
        self._secure = None if tls is None else tls_server(self._protocol, tls, limits)

    async def open(self) -> Address:
        """Listen; see `Door`."""
        address = self._address
        if self._secure is not None:
            return address.at(await self._secure.open(address.host, address.port))
        if address.scheme == "unix":
            await in_thread(lambda: _make_way(address.path), name="partime unix socket")
            self._server = await asyncio.start_unix_server(
                self._connected, address.path, limit=READ_BYTES, backlog=BACKLOG
            )
            # Files of others are nobody's to write to; a UNIX socket is as open as its file is.
            await in_thread(lambda: Path(address.path).chmod(0o600), name="partime unix socket")
            return address
        self._server = await asyncio.start_server(
            self._connected, address.host, address.port, limit=READ_BYTES, backlog=BACKLOG
        )
        return address.at(self._server.sockets[0].getsockname()[1])

    def kernel_drops(self) -> None:
        """Return nothing: there are no datagrams."""

    @property
    def failed_handshakes(self) -> int:
        """How many TLS handshakes came to nothing."""
        return 0 if self._secure is None else self._secure.failed

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(READ_BYTES, loop)
        return asyncio.StreamReaderProtocol(reader, self._connected, loop)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._guests.is_full():
            writer.write(self._guests.farewell())
            writer.close()
            return
        self._guests.enter(StreamLink(reader, writer, self._limits))

    def shut(self) -> None:
        """Let nobody in any more."""
        if self._secure is not None:
            self._secure.shut()
        if self._server is not None:
            stop_accepting(self._server)

    async def aclose(self) -> None:
        """Give the socket back, and its file."""
        if self._secure is not None:
            await self._secure.aclose()
        if self._server is None:
            return
        self._server.close()
        await self._server.wait_closed()
        if self._address.scheme == "unix":
            path = Path(self._address.path)
            await in_thread(lambda: path.unlink(missing_ok=True), name="partime unix socket")


def _make_way(path: str) -> None:
    """Remove the socket that a program left behind which has ended; never one that is in use, nor any other file."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - a thread of its own, and abstract names
            raise FileExistsError(f"{path} is there, and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
            else:
                raise FileExistsError(f"another program listens at {path}")


class DatagramDoor:
    """One UDP socket for all."""

    failed_handshakes = 0

    def __init__(self, address: Address, limits: Limits, guests: Guests) -> None:
        self._address, self._limits, self._guests = address, limits, guests
        self._transport: asyncio.DatagramTransport | None = None
        self._protocol: SharedSocket | None = None
        self._last_drops: int | None = None

    async def open(self) -> Address:
        """Listen; see `Door`."""
        address = self._address
        self._transport, self._protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: SharedSocket(self._limits, self._admit, self._guests.is_goodbye),
            local_addr=(address.host, address.port),
        )
        return address.at(self._transport.get_extra_info("sockname")[1])

    def kernel_drops(self) -> int | None:
        """Return how many datagrams the kernel threw away so far; the last count, once closed."""
        if self._transport is not None and not self._transport.is_closing():
            self._last_drops = kernel_drops(self._transport.get_extra_info("socket"))
        return self._last_drops

    def _admit(self, link: DatagramLink) -> bool:
        if self._guests.is_full():
            return False  # and no answer: addresses can be forged, and answers then hit somebody else
        self._guests.enter(link)
        return True

    def shut(self) -> None:
        """Take no more datagrams."""
        self.kernel_drops()
        if self._transport is not None:
            self._transport.close()

    async def aclose(self) -> None:
        """Give the socket back."""
        if self._transport is not None and self._protocol is not None:
            self._transport.abort()
            await self._protocol.closed


def make_door(
    address: Address,
    limits: Limits,
    guests: Guests,
    *,
    tls: Credentials | None = None,
    origins: Collection[str] = (),
) -> Door:
    """Return the door of an address's transport."""
    if address.transport == "ws":
        from partime_async.sockets.websocket import WebSocketDoor  # aiohttp takes a while to import

        return WebSocketDoor(address, limits, guests, tls=tls, origins=origins)
    if address.transport == "mqtt":
        from partime_async.sockets.mqtt import MqttDoor

        return MqttDoor(address, limits, guests, tls)
    if origins:
        raise SourceError(f"only WebSockets have origins, and {address} is none. Leave them out.")
    return DatagramDoor(address, limits, guests) if address.is_datagram else StreamDoor(address, limits, guests, tls)
