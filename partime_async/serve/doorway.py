"""Connections that never say what they want: without a deadline for it, anybody could hold all descriptors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from aiohttp import web

from partime_async.serve.log import event

_LOOKS_S = 0.25
"""Share of the deadline between two looks."""


class Doorway:
    """Closes connections on which no whole request head came in time.

    Args:
        connections: Returns those that are open now.
        patience_s: From the moment a connection was first seen.
    """

    def __init__(self, connections: Callable[[], Iterable[web.RequestHandler]], patience_s: float) -> None:
        self._connections = connections
        self._patience_s = patience_s
        self._silent: dict[web.RequestHandler, float] = {}
        self._spoken: set[web.RequestHandler] = set()

    def spoke(self, connection: web.RequestHandler) -> None:
        """Take note that a request came on a connection."""
        self._spoken.add(connection)

    async def run(self) -> None:
        """Look at the connections now and then, until cancelled."""
        while True:
            await asyncio.sleep(_LOOKS_S * self._patience_s)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Close those that have been silent for too long."""
        here = list(self._connections())
        self._spoken.intersection_update(here)
        self._silent = {each: self._silent.get(each, now) for each in here if each not in self._spoken}
        for connection, since in self._silent.items():
            if now - since >= self._patience_s and connection.transport is not None:
                connection.transport.abort()
                event("connection.cut", why="it asked for nothing in time")
