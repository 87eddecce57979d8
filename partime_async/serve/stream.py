"""``GET /api/stream``: a WebSocket for programs."""

from __future__ import annotations

import asyncio

from aiohttp import web

from partime_async.serve.meters import Meters
from partime_async.serve.roster import Roster
from partime_async.serve.websocket_client import WebSocketClient

KEY_CHARACTERS = 64


class Streams:
    """Makes clients of WebSockets.

    Args:
        roster: Whom they join.
        meters: Is told of their results.
    """

    def __init__(self, roster: Roster, meters: Meters) -> None:
        self._roster = roster
        self._meters = meters

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Serve one client: ``?service=``, ``client=`` (what it calls itself), ``results=no`` for none.

        Raises:
            Refused: It cannot join now.
        """
        roster, limits = self._roster, self._roster.limits
        service = roster.knock(request.remote, request.query.get("service"))
        socket = web.WebSocketResponse(
            autoping=False, compress=False, max_msg_size=limits.message_bytes, timeout=0.5 * limits.leave_s
        )
        with roster.place():
            await socket.prepare(request)
            client = WebSocketClient(
                socket,
                request.transport,
                limits=limits,
                wants_results=request.query.get("results", "yes") != "no",
                service=service,
                key=checked_key(request.query.get("client")),
                observer=self._meters,
            )
            visit = roster.join(client)
        client.reply({"type": "hello", "id": client.id, "service": service, **roster.services[service].describe()})
        try:
            await asyncio.wait({visit})
        except asyncio.CancelledError:
            client.close("lost")
            await asyncio.wait({visit})
            raise
        return socket


def checked_key(key: object) -> str | None:
    """Return what a client calls itself, if it can be that; else None."""
    if isinstance(key, str) and 0 < len(key) <= KEY_CHARACTERS and key.isprintable():
        return key
    return None
