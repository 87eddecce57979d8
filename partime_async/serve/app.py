"""The application: pages, signalling and streams for browsers and programs, on aiohttp."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from partime_async.errors import ConfigurationError, MissingDependencyError

try:
    from aiohttp import web
except ImportError as error:
    raise MissingDependencyError("aiohttp", "serve") from error

from partime_async.offload import in_thread
from partime_async.serve.access import Access, AccessDenied
from partime_async.serve.client import Service
from partime_async.serve.limits import ClientLimits, Rate
from partime_async.serve.log import event
from partime_async.serve.meters import CONTENT_TYPE, Meters
from partime_async.serve.page import SECURITY_HEADERS, STATIC, TOKEN_PAGE, Page
from partime_async.serve.roster import Refused, Roster, State
from partime_async.serve.signalling import Signalling
from partime_async.serve.stream import Streams
from partime_async.serve.tokens import COOKIE, COOKIE_S, shown_tokens
from partime_async.serve.traces import forget_frames
from partime_async.webrtc import Ice

_GUESSES, _GUESSES_PER_S = 60, 1.0
"""Wrong tokens that an address may show at once, and on average, before it is not even told that they are wrong."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ACCESS = web.AppKey("partime_access", Access)
ROSTER = web.AppKey("partime_roster", Roster)


def make_app(
    services: Mapping[str, Service],
    *,
    access: Access | None = None,
    limits: ClientLimits | None = None,
    ice: Ice | None = None,
    page: Path | None = STATIC,
) -> web.Application:
    """Return an application that serves networks to browsers and programs.

    It stands alone (`Server`), or within another one: ``app.add_subapp("/live/", make_app(...))``. Services are entered
    when it starts up, and left when it shuts down.

    Args:
        services: By name; the first is what a client gets that asks for none.
        access: Who may come in; None: this machine alone.
        limits: What clients may take; None: the defaults of `ClientLimits`.
        ice: How WebRTC finds its way; None: this machine alone.
        page: The folder of the page; None: no page, only the programming interface.

    Raises:
        ConfigurationError: No service, or a name that is none; the caller's fault. A folder without a page is found
            when the application starts up.
    """
    if not services:
        raise ConfigurationError("there is no service. Pass at least one, by name.")
    for name in services:
        if not name.isidentifier() and not name.replace("-", "_").isidentifier():
            raise ConfigurationError(f"{name!r} is no name of a service. Use letters, digits, _ and -.")
    access = access or Access.local()
    limits = limits or ClientLimits()
    ice = ice or Ice.loopback()
    meters = Meters(services)
    roster = Roster(services, limits, meters)
    front = _Front(access, roster, meters, ice, page)
    signalling = Signalling(access, roster, meters, ice)
    streams = Streams(roster, meters)
    # An offer may have the token in its body, a goodbye knows the visit's own secret, a probe of health learns nothing.
    front.tokenless |= {signalling.offer, signalling.bye}
    app = web.Application(middlewares=[front.guard], client_max_size=limits.offer_bytes + 4096)
    app[ACCESS] = access
    app[ROSTER] = roster
    app.cleanup_ctx.append(front.run)
    app.on_shutdown.append(front.close)
    app.on_response_prepare.append(_secured)
    app.router.add_get("/", front.index)
    app.router.add_get("/static/{name:.+}", front.file)
    app.router.add_get("/api/services", front.services)
    app.router.add_post("/api/offer", signalling.offer)
    app.router.add_post("/api/bye", signalling.bye)
    app.router.add_get("/api/stream", streams.stream)
    app.router.add_get("/healthz", front.health)
    app.router.add_get("/metrics", front.metrics)
    return app


class _Front:
    """What every request passes, and the plain pages."""

    def __init__(self, access: Access, roster: Roster, meters: Meters, ice: Ice, folder: Path | None) -> None:
        self._access = access
        self._roster = roster
        self._meters = meters
        self._ice = ice
        self._folder = folder
        self._page: Page | None = None
        self._guesses = Rate(_GUESSES_PER_S, burst=_GUESSES, now=time.monotonic)
        self.tokenless: set[Handler] = {self.health}

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Run the services from start-up to the end."""
        if self._folder is not None:
            self._page = await in_thread(partial(Page, self._folder), name="partime page")
        await self._roster.start()
        try:
            yield
        finally:
            await self._roster.stop()

    async def close(self, app: web.Application) -> None:
        """Ask all clients to leave, before open requests are waited for."""
        self._roster.close()

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse who may not come in; say errors as JSON, without what is inside."""
        headers, is_visit = request.headers, request.match_info.handler == self.index
        try:
            self._access.check_source(
                host=headers.get("Host"),
                origin=headers.get("Origin"),
                # Other pages may link to this one, but not load anything else.
                site=None if is_visit else headers.get("Sec-Fetch-Site"),
                remote=request.remote,
                is_secure=request.secure,
            )
            if request.match_info.handler not in self.tokenless:
                self._access.check_token(*shown_tokens(request))
            return await handler(request)
        except AccessDenied as denied:
            self._note(request, denied.cause)
            if denied.status == 401 and (wait_s := self._guesses.take(request.remote or "local")):
                return web.json_response({"error": f"too many attempts. Wait {wait_s:.0f} s."}, status=429)
            if denied.status == 401 and is_visit:
                return web.Response(status=401, text=TOKEN_PAGE, content_type="text/html")
            return web.json_response({"error": str(denied)}, status=denied.status)
        except Refused as refused:
            self._note(request, refused.cause)
            later_s = refused.retry_after_s
            after = {} if later_s is None else {"Retry-After": str(max(1, round(later_s)))}
            return web.json_response({"error": str(refused)}, status=refused.status, headers=after)
        except web.HTTPRequestEntityTooLarge:
            self._note(request, "size")
            return web.json_response({"error": "the request is too large. Send less."}, status=413)
        except web.HTTPException:
            raise
        except ConnectionError as gone:  # it went in the middle of its request: nobody reads the answer
            forget_frames(gone)  # the request keeps the error, and its frames know the request
            return web.Response(status=400)
        except Exception as broken:
            event("request.failed", level=logging.ERROR, path=request.path, error=f"{type(broken).__name__}: {broken}")
            return web.json_response({"error": "the server could not do this. See its log."}, status=500)

    def _knows_token(self, request: web.Request) -> bool:
        try:
            self._access.check_token(*shown_tokens(request))
        except AccessDenied:
            return False
        return True

    def _note(self, request: web.Request, cause: str) -> None:
        self._meters.refused(cause)
        event("request.refused", level=logging.WARNING, path=request.path, cause=cause, remote=request.remote)

    async def index(self, request: web.Request) -> web.StreamResponse:
        """Answer with the page; with a token in the address, keep it as a cookie and take it out of the address."""
        if (token := request.query.get("token")) is not None:
            found = web.Response(status=303, headers={"Location": request.path})
            if self._access.needs_token:
                found.set_cookie(
                    COOKIE,
                    token,
                    max_age=COOKIE_S,
                    path=request.path,
                    httponly=True,
                    samesite="Strict",
                    secure=request.secure,
                )
            return found
        if self._page is None:
            raise web.HTTPNotFound(text="there is no page here; see /api/services.\n")
        return self._page.index(request)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Answer with a file of the page."""
        if self._page is None:
            raise web.HTTPNotFound(text="there is no page here.\n")
        return self._page.file(request)

    async def services(self, request: web.Request) -> web.StreamResponse:
        """Say what is served, and how a browser's WebRTC is to find its way."""
        described = {name: service.describe() for name, service in self._roster.services.items()}
        return web.json_response({"services": described, "ice": self._ice.for_browser()})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Say whether the server is ready: 200, or 503 with why not."""
        roster = self._roster
        error = roster.error
        state = State.STOPPED if error is not None else roster.state
        said: dict[str, object] = {"status": state.value, "clients": len(roster.clients)}
        if error is not None and self._knows_token(request):
            said["error"] = f"{type(error).__name__}: {error}"
        return web.json_response(said, status=200 if state is State.READY else 503)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """Answer with what Prometheus asks for."""
        return web.Response(body=self._meters.exposition(), headers={"Content-Type": CONTENT_TYPE})


async def _secured(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "partime_async"  # versions are nobody's business
