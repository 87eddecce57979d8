"""What the sources behind sockets have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from partime_async.errors import ConfigurationError
from partime_async.sockets.accounts import ClientStatistics
from partime_async.sockets.address import Address
from partime_async.sockets.reading import SocketFrame


@dataclass(frozen=True, slots=True)
class SocketStatistics:
    """What a source has seen.

    Attributes:
        url: Where it listens, or is connected to.
        connected: Connections now.
        arrived: Connections ever.
        refused: Connections, or datagrams over UDP, that were turned away because too many were here.
        kernel_drops: Datagrams that the kernel threw away for lack of room; None: unknown, or no datagrams.
        clients: Those that are here, and the last that have left.
        failed_handshakes: TLS connections that came to nothing: rubbish, no trust, or too slow.
    """

    url: str
    connected: int
    arrived: int
    refused: int
    kernel_drops: int | None
    clients: tuple[ClientStatistics, ...]
    failed_handshakes: int = 0


class SocketSource(Protocol):
    """An asynchronous iterator of frames from a socket, which opens with the first frame that is asked for."""

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose; or what it connects to."""

    def describe(self) -> str:
        """Say in one line what the source is."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> SocketFrame: ...

    def statistics(self) -> SocketStatistics:
        """Return what the source has seen so far; also after it was closed."""

    async def aclose(self) -> None:
        """Close every connection, and give the socket back; further calls do nothing."""


def source_address(url: str, *, is_dialled: bool) -> Address:
    """Return the address of a source.

    Raises:
        ConfigurationError: It is one for something else; the caller's fault.
    """
    address = Address.parse(url)
    if address.transport == "mqtt" and is_dialled:
        raise ConfigurationError(f"{address} is a topic, which anybody may send to. Use listen().")
    if address.is_dialled and not is_dialled:
        raise ConfigurationError(f"{address} asks to connect. Use connect(), or leave out ?connect.")
    return address
