"""How connections go out, and out again when they break."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from partime_async.sockets.address import Address
from partime_async.sockets.datagram import OwnSocket
from partime_async.sockets.limits import Limits
from partime_async.sockets.link import READ_BYTES, Link, StreamLink


async def dial(address: Address, limits: Limits) -> Link:
    """Connect.

    Raises:
        OSError: It cannot be reached, or not in time.

    Cancellation: safe.
    """
    try:
        async with asyncio.timeout(limits.connect_s):
            return await _dial(address, limits)
    except TimeoutError as error:
        raise ConnectionRefusedError(f"no answer within {limits.connect_s:g} s") from error


async def _dial(address: Address, limits: Limits) -> Link:
    if address.scheme == "ws":
        from partime_async.sockets.websocket import connect_websocket  # aiohttp takes a while to import

        return await connect_websocket(str(address).partition("?")[0], limits, is_text=address.format != "binary")
    if address.scheme == "mqtt":
        from partime_async.sockets.mqtt import connect_mqtt

        return await connect_mqtt(address, limits)
    if address.scheme == "udp":
        _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: OwnSocket(limits), remote_addr=(address.host, address.port)
        )
        assert protocol.link is not None
        return protocol.link
    if address.scheme == "unix":
        reader, writer = await asyncio.open_unix_connection(address.path, limit=READ_BYTES)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=READ_BYTES)
    return StreamLink(reader, writer, limits, peer=str(address))


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next try: twice as long each time, a random part less.

    A few lines of our own and not `stamina`: a retry there ends when connecting succeeds, and a server that takes
    connections and drops them would be called a thousand times a second. Here `reset` is called when something came.

    Source: "equal jitter" of Exponential Backoff And Jitter, AWS Architecture Blog, 2015.

    Attributes:
        first_s: The first wait, at most.
        longest_s: The longest.
        draw: Gives a number from 0 to 1.
    """

    first_s: float = 0.1
    longest_s: float = 30.0
    draw: Callable[[], float] = field(default=random.random, repr=False)
    tries: int = 0

    def next_s(self) -> float:
        """Return how long to wait now."""
        # Bounded before it is raised to a power: 2**5000 is no float.
        whole = min(self.longest_s, self.first_s * 2.0 ** min(self.tries, 60))
        self.tries += 1
        return whole * (0.5 + 0.5 * self.draw())

    def reset(self) -> None:
        """Begin anew: the connection was of use."""
        self.tries = 0
