"""One stream of frames out of a socket that devices connect to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Self

import torch

from partime_async.channel import Channel, ChannelClosed, ChannelEmpty, EndOfChannel
from partime_async.frame import Value
from partime_async.sockets.accounts import ClientStatistics
from partime_async.sockets.address import Address
from partime_async.sockets.connection import Connection
from partime_async.sockets.limits import Limits
from partime_async.sockets.link import Link
from partime_async.sockets.listener import Listener
from partime_async.sockets.reading import Reading, SocketFrame
from partime_async.sockets.source import SocketStatistics, source_address
from partime_async.sockets.tls import Credentials, credentials
from partime_async.sockets.wire import Message

_REMEMBERED = 100
"""Clients that have left whose accounts are kept."""

_FORGOTTEN_S = 10.0
"""An address that has sent no datagram for so long makes room for another: nobody hears it leave."""


def listen(
    url: str,
    *,
    limits: Limits | None = None,
    dtype: torch.dtype | None = torch.float32,
    timing: str = "estimate",
    to_value: Callable[[Message], Value] | None = None,
    capacity: int = 16,
    is_endless: bool = True,
    origins: Collection[str] = (),
    tls: Credentials | None = None,
) -> ListeningSource:
    """Give the frames of whoever connects: ``async for frame in partime_async.sockets.listen("tcp://127.0.0.1:9000")``.

    By default one device at a time is let in; more, by `limits`, and their frames come in the order they arrive. When
    nobody takes the frames, the device is pushed back; over UDP its datagrams are dropped, and counted.

    Args:
        url: ``tcp://127.0.0.1:9000``, ``udp://…``, ``unix:///path`` or ``ws://host:port/path``, and ``?format=json`` or
            ``?format=csv`` if the devices do not speak the binary format. ``mqtt://user:password@broker/topic/+`` hears
            what a broker passes on; each topic counts as a device. With TLS ``tcps``, ``wss`` and ``mqtts``.
        limits: What a device may ask; by default those of `Limits`, for one client that may be silent (over UDP for
            10 s), or, for MQTT, for a hundred topics.
        dtype: Of the values; None: as they were sent.
        timing: How the sender's time is translated: ``estimate``, ``synchronised`` or ``arrival``; see `Timing`.
        to_value: Makes the network's input of a message, instead of `dtype` and a batch dimension in front.
        capacity: Frames that may wait to be taken.
        is_endless: Wait for the next device when one has left; if not, the stream ends when nobody is left.
        origins: Web pages, as ``https://host``, that may connect to a WebSocket.
        tls: The certificate of ``tcps`` and ``wss``; its files may also be named in the URL: ``?cert=…&key=…``. A
            broker's is checked against ``?ca=…``, or the system's.

    Raises:
        ConfigurationError: Options that cannot be; the caller's fault.
    """
    address = source_address(url, is_dialled=False)
    return ListeningSource(
        address,
        limits or _default_limits(address),
        Reading.checked(dtype, timing, to_value),
        capacity=capacity,
        is_endless=is_endless,
        origins=origins,
        tls=credentials(address, tls, is_server=address.transport != "mqtt"),
    )


def _default_limits(address: Address) -> Limits:
    if address.transport == "mqtt":
        return Limits(idle_s=None)
    return Limits(clients=1, idle_s=_FORGOTTEN_S if address.is_datagram else None)


class ListeningSource:
    """What `listen` returns; see `SocketSource`."""

    def __init__(
        self,
        address: Address,
        limits: Limits,
        reading: Reading,
        *,
        capacity: int,
        is_endless: bool,
        origins: Collection[str],
        tls: Credentials | None,
    ) -> None:
        self._limits, self._reading, self._is_endless = limits, reading, is_endless
        self._listener = Listener(address, limits, self._serve, tls=tls, origins=origins)
        self._frames: Channel[SocketFrame] = Channel(capacity)
        self._here: dict[int, Connection] = {}
        self._departed: OrderedDict[int, ClientStatistics] = OrderedDict()
        self._arrived = 0
        self._is_open = False

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose, once it is open."""
        return str(self._listener.address)

    def describe(self) -> str:
        """Say in one line what the source is."""
        return f"devices that send to {self.url}"

    async def open(self) -> Self:
        """Listen; the first frame that is asked for does it as well.

        Raises:
            SourceError: The address is in use, or not of this machine.
            ConfigurationError: The certificate cannot be used.
        """
        if not self._is_open and not self._frames.is_closed:
            self._is_open = True
            await self._listener.open()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SocketFrame:
        """Return the next frame, waiting for it.

        Raises:
            SourceError: It cannot listen.

        Cancellation: safe; no frame is lost.
        """
        await self.open()
        try:
            return await self._frames.get()
        except EndOfChannel:
            await self.aclose()
            raise StopAsyncIteration from None

    async def _serve(self, link: Link) -> None:
        number, self._arrived = self._arrived, self._arrived + 1
        connection = Connection(link, self._listener.address.format, self._limits, self._reading, number=number)
        self._here[number] = connection
        try:
            with suppress(ChannelClosed):  # nobody takes them any more
                async for frame in connection:
                    await self._frames.put(frame)
        finally:
            del self._here[number]
            self._departed[number] = connection.statistics()
            if len(self._departed) > _REMEMBERED:
                self._departed.popitem(last=False)
            if not self._is_endless and not self._here:
                self._frames.close()

    def statistics(self) -> SocketStatistics:
        """Return what the source has seen so far; also after it was closed."""
        here = [connection.statistics() for connection in self._here.values()]
        listener = self._listener
        return SocketStatistics(
            self.url,
            listener.connected,
            self._arrived,
            listener.refused,
            listener.kernel_drops(),
            (*self._departed.values(), *here),
            listener.failed_handshakes,
        )

    async def aclose(self) -> None:
        """Close every connection, and give the socket back; further calls do nothing."""
        self._frames.close()
        await self._listener.aclose()
        with suppress(EndOfChannel, ChannelEmpty):
            while True:
                self._frames.evict()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
