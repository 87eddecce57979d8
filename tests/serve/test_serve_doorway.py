"""Connections that say nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from partime_async.serve import server as server_module
from partime_async.serve.doorway import Doorway
from tests.serve.visitors import Mirror, serving

SERVER_PATIENCE_S = server_module._PATIENCE_S


async def test_connection_that_asks_for_nothing_is_cut_and_one_that_did_is_not() -> None:
    """Half a request head is nothing; a stream, and a connection that is kept, are left alone."""
    async with serving(Mirror()) as rig, rig.stream() as stream, aiohttp.ClientSession() as kept:
        async with kept.get(f"{rig.url}healthz") as response:
            await response.read()
        url = urlsplit(rig.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: local")
        server = rig.server
        await rig.until(lambda: len(server._connections()) == 3)
        server._doorway.look(0.0)
        server._doorway.look(SERVER_PATIENCE_S - 1.0)
        assert len(server._connections()) == 3
        server._doorway.look(SERVER_PATIENCE_S)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        await rig.until(lambda: len(server._connections()) == 2)
        writer.close()
        await stream.socket.send_json({"type": "hi"})
        await stream.words("echo")
        async with kept.get(f"{rig.url}healthz") as response:
            assert response.status == 200


async def test_doorway_forgets_connections_that_have_gone() -> None:
    """Nothing is kept of them, however many there were."""
    async with serving(Mirror()) as rig:
        for _ in range(3):
            await rig.text("healthz", headers={"Connection": "close"})
        await rig.until(lambda: not rig.server._connections())
        rig.server._doorway.look(0.0)
        assert not rig.server._doorway._spoken
        assert not rig.server._doorway._silent


async def test_doorway_looks_again_and_again_until_cancelled() -> None:
    """By itself, for as long as the server runs."""
    looks = asyncio.Semaphore(0)

    def connections() -> list[web.RequestHandler]:
        looks.release()
        return []

    task = asyncio.create_task(Doorway(connections, 0.02).run())
    for _ in range(3):
        await looks.acquire()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
