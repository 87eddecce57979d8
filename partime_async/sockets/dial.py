"""How connections go out."""

from __future__ import annotations

import asyncio
import ssl

from partime_async.client import UntrustedError
from partime_async.sockets.address import Address
from partime_async.sockets.datagram import OwnSocket
from partime_async.sockets.limits import Limits
from partime_async.sockets.link import READ_BYTES, Link, StreamLink


async def dial(address: Address, limits: Limits, context: ssl.SSLContext | None = None) -> Link:
    """Connect.

    Args:
        address: Where to.
        limits: How long it may take, and what the other side may ask.
        context: For TLS; None: the address has none.

    Raises:
        UntrustedError: The other side's certificate is not trusted; trying again would not help.
        OSError: It cannot be reached, or not in time.

    Cancellation: safe.
    """
    try:
        async with asyncio.timeout(limits.connect_s):
            return await _dial(address, limits, context)
    except TimeoutError as error:
        raise ConnectionRefusedError(f"no answer within {limits.connect_s:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise UntrustedError(address.host, error) from error
    except ssl.SSLError as error:
        told = (error.reason or str(error)).lower().replace("_", " ")
        raise ConnectionRefusedError(f"the TLS handshake failed: {told}; does it speak TLS there?") from error


async def _dial(address: Address, limits: Limits, context: ssl.SSLContext | None) -> Link:
    if address.transport == "ws":
        from partime_async.sockets.websocket import connect_websocket  # aiohttp takes a while to import

        url, is_text = str(address).partition("?")[0], address.format != "binary"
        return await connect_websocket(url, limits, is_text=is_text, context=context)
    if address.transport == "mqtt":
        from partime_async.sockets.mqtt import connect_mqtt

        return await connect_mqtt(address, limits, context)
    if address.scheme == "udp":
        _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: OwnSocket(limits), remote_addr=(address.host, address.port)
        )
        assert protocol.link is not None
        return protocol.link
    if address.scheme == "unix":
        reader, writer = await asyncio.open_unix_connection(address.path, limit=READ_BYTES)
    elif context is None:
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=READ_BYTES)
    else:
        reader, writer = await asyncio.open_connection(
            address.host,
            address.port,
            limit=READ_BYTES,
            ssl=context,
            ssl_handshake_timeout=limits.connect_s,
            ssl_shutdown_timeout=limits.close_s,
        )
    return StreamLink(reader, writer, limits, peer=str(address))
