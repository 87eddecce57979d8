"""Where a request shows the token: in a header, in its address, or in the cookie that stands for it."""

from __future__ import annotations

from aiohttp import web

from partime_async.serve.access import bearer

COOKIE = "partime_token"
COOKIE_S = 12 * 3600
"""Seconds that a browser keeps it."""


def shown_tokens(request: web.Request) -> tuple[str | None, ...]:
    """Return what a request shows in each of the places."""
    return bearer(request.headers), request.query.get("token"), request.cookies.get(COOKIE)
