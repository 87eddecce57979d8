"""The WebSocket's HTTP side: who may come in, and how long one may take to."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from partime_async.sockets import Limits, wire
from tests.sockets.peers import all_left, check, frame, port_of, serving, until

URL = "ws://127.0.0.1:0/frames"


async def test_websocket_door_answers_what_is_no_websocket_with_an_error() -> None:
    """Another path, a plain request, a full house: each has its status."""
    async with serving(URL, limits=Limits(clients=1)) as server, aiohttp.ClientSession() as session:
        base = f"http://127.0.0.1:{port_of(server.url)}"
        for path, status in (("/", 404), ("/frames", 426)):
            async with session.get(base + path) as response:
                assert response.status == status
        async with session.ws_connect(server.url):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(server.url)
            assert caught.value.status == 503
        await all_left(server, 1)


async def test_websocket_door_lets_no_page_in_but_those_named() -> None:
    """Any page that somebody opens can reach this machine: only named origins may."""
    async with serving(URL, origins=["https://good.example"]) as server, aiohttp.ClientSession() as session:
        for origin in ("https://evil.example", "null", "https://good.example.evil.example"):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await session.ws_connect(server.url, headers={"Origin": origin})
        async with session.ws_connect(server.url, headers={"Origin": "https://good.example"}) as found:
            await found.send_bytes(frame(0, wants_reply=True))
            assert wire.decode(await found.receive_bytes()).sequence == 0


async def test_websocket_door_cuts_who_never_asks() -> None:
    """A connection that says nothing, or half a request, is cut when a message would have to be complete."""
    async with serving(URL, limits=Limits(message_s=0.3)) as server:
        for said in (b"", b"GET /frames HTTP/1.1\r\nHost: x\r\nX-Slow:"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server.url))
            writer.write(said)
            async with asyncio.timeout(20.0):
                with (
                    pytest.raises(ConnectionResetError) if not said else pytest.raises((ConnectionResetError, OSError))
                ):
                    if await reader.read() == b"":
                        raise ConnectionResetError
            writer.close()


async def test_websocket_with_a_message_too_long_is_shown_out() -> None:
    """The transport refuses it by its length; the account says so."""
    async with serving(URL, limits=Limits(message_bytes=1000)) as server, aiohttp.ClientSession() as session:
        async with session.ws_connect(server.url) as found:
            await found.send_bytes(frame(0))
            await found.send_bytes(bytes(5000))
            while (await found.receive()).type is not aiohttp.WSMsgType.CLOSED:
                pass
        [client] = await all_left(server, 1)
    check(client)
    assert (dict(client.malformed), client.closed) == ({"too_long": 1}, "malformed")


async def test_websocket_that_breaks_is_told_from_one_that_is_closed() -> None:
    """A close frame is the client's wish, a lost connection is not."""
    async with serving(URL) as server, aiohttp.ClientSession() as session:
        async with session.ws_connect(server.url) as found:
            await found.send_bytes(frame(0))
        await all_left(server, 1)
        raw = socket.create_connection(("127.0.0.1", port_of(server.url)))
        raw.sendall(
            b"GET /frames HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await until(lambda: server.statistics().connected == 1)
        raw.close()
        first, second = await all_left(server, 2)
    assert (first.closed, second.closed) == ("end", "reset")


async def test_websocket_text_carries_lines() -> None:
    """A browser's page sends JSON as text and reads JSON."""
    async with (
        serving(URL + "?format=json") as server,
        aiohttp.ClientSession() as session,
        session.ws_connect(server.url.partition("?")[0]) as found,
    ):
        await found.send_str('{"values": [1, 2, 3, 4], "reply": true}')
        answer = await found.receive_json()
    assert answer["values"] == [2.0, 4.0, 6.0, 8.0]
