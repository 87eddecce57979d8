"""How connections go out."""

from __future__ import annotations

import asyncio

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
