"""The clients that are here: who may join, the task that serves each, and the end of all of them.

start --> services entered --> ready: visit, visit, visit ... --> stop --> clients closed --> services left --> stopped
          `---------------- one task holds all of this, so that pipelines are left where they were entered --------'
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from enum import StrEnum

from partime_async.errors import PartimeError
from partime_async.serve.client import Client, Left, Observed, Service
from partime_async.serve.limits import ClientLimits, Rate
from partime_async.serve.log import event
from partime_async.serve.meters import Meters
from partime_async.serve.traces import forget_cancellation


class State(StrEnum):
    """How far the server is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class Refused(PartimeError):
    """A client cannot join now; nobody's fault, or its own.

    Attributes:
        status: HTTP status.
        cause: One word for logs and metrics.
        retry_after_s: Seconds after which it may try again; None: that is not known.
    """

    def __init__(self, status: int, cause: str, words: str, *, retry_after_s: float | None = None) -> None:
        self.status = status
        self.cause = cause
        self.retry_after_s = retry_after_s
        super().__init__(words)


class Roster:
    """The clients of one application.

    Args:
        services: By name.
        limits: What clients may take.
        meters: Counts who comes and goes.
    """

    def __init__(self, services: Mapping[str, Service], limits: ClientLimits, meters: Meters) -> None:
        self.services = dict(services)
        self.limits = limits
        self.state = State.STARTING
        self.failure: BaseException | None = None
        self._meters = meters
        self._clients: dict[str, Client] = {}
        self._places = 0
        self._rate = Rate(
            limits.joins_per_minute / 60.0, burst=max(1.0, limits.joins_per_minute / 4), now=time.monotonic
        )
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._visits: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def clients(self) -> tuple[Client, ...]:
        """Those that are here."""
        return tuple(self._clients.values())

    @property
    def error(self) -> BaseException | None:
        """What stopped the server or one of its services; None: all run."""
        errors = (service.error for service in self.services.values() if isinstance(service, Observed))
        return self.failure or next((error for error in errors if error is not None), None)

    # -- the beginning and the end --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Enter the services, and let clients in.

        Raises:
            Exception: What entering a service raised; those entered before it were left.

        Cancellation: what was entered is left again.
        """
        self._task = asyncio.create_task(self._run(), name="partime roster")
        waiter = asyncio.create_task(self._ready.wait(), name="partime roster start")
        try:
            await asyncio.wait({self._task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait({self._task})
            raise
        finally:
            waiter.cancel()
            await asyncio.wait({waiter})
        if self._task.done():
            self._task.result()

    def close(self) -> None:
        """Let nobody in any more, and ask all clients to leave. Idempotent."""
        if self.state in (State.STARTING, State.READY):
            self.state = State.DRAINING
        self._stopping.set()
        for client in self.clients:
            client.close(Left.STOPPED)

    async def stop(self) -> None:
        """Close, and wait until all clients have gone and the services were left.

        Raises:
            Exception: What leaving a service raised.

        Cancellation: the services are left at once.
        """
        self.close()
        if self._task is None:
            return
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait({self._task})
            raise
        if not self._task.cancelled():  # by an end that was itself cancelled
            self._task.result()

    async def _run(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                for service in self.services.values():
                    await stack.enter_async_context(service)
                async with asyncio.TaskGroup() as self._visits:
                    if not self._stopping.is_set():
                        self.state = State.READY
                    self._ready.set()
                    event("server.ready", services=",".join(self.services))
                    await self._stopping.wait()
                    event("server.draining", clients=len(self._clients))
        except Exception as error:
            self.failure = error
            event("server.failed", level=logging.ERROR, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self.state = State.STOPPED
            self._visits = None
        event("server.stopped")

    # -- clients --------------------------------------------------------------------------------------------------

    def knock(self, remote: str | None, service: str | None) -> str:
        """Return the name of the service to join, if somebody may join now.

        Args:
            remote: The address; None: a local socket.
            service: The name asked for; None: the only one, or the first.

        Raises:
            Refused: Too many, too often, unknown, or the server is not ready; nothing was taken.
        """
        if wait_s := self._rate.take(remote or "local"):
            raise Refused(429, "rate", f"too many attempts. Try again in {wait_s:.0f} s.", retry_after_s=wait_s)
        if self.state is not State.READY:
            raise Refused(503, self.state, f"the server is {self.state}. Try again later.", retry_after_s=5.0)
        name = service if service is not None else next(iter(self.services), "")
        if name not in self.services:
            raise Refused(404, "service", f"no such service. There are: {', '.join(self.services)}.")
        if len(self._clients) + self._places >= self.limits.clients:
            raise Refused(
                503, "full", f"{self.limits.clients} clients are here already. Try again later.", retry_after_s=5.0
            )
        return name

    @contextmanager
    def place(self) -> Iterator[None]:
        """Keep a place for a client that is about to join: ``with roster.place(): ...; roster.join(client)``."""
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    def join(self, client: Client) -> asyncio.Task[None]:
        """Serve a client in a task of its own, which is returned and never raises.

        Raises:
            Refused: The server stops.
        """
        if self._visits is None or self.state is not State.READY:
            raise Refused(503, self.state, f"the server is {self.state}. Try again later.", retry_after_s=5.0)
        self._clients[client.id] = client
        return self._visits.create_task(self._visit(client), name=f"partime client {client.number}")

    def bye(self, client_id: str) -> None:
        """Let a client go that said goodbye, if it is still here."""
        client = self._clients.get(client_id)
        if client is not None:
            client.close(Left.BYE)

    async def _visit(self, client: Client) -> None:
        began = time.monotonic()
        self._meters.joined(client)
        event("client.joined", client=client.number, kind=client.kind, service=client.service)
        connection = asyncio.create_task(self._connect(client), name=f"partime connection {client.number}")
        serving = asyncio.create_task(self._serve(client), name=f"partime service for {client.number}")
        both = {connection, serving}
        try:
            try:
                async with asyncio.timeout(self.limits.duration_s):
                    await client.gone()
            except TimeoutError:
                client.close(Left.TIME)
            # Its place is free the moment it is known to be gone; what it leaves behind is cleared up meanwhile.
            self._clients.pop(client.id, None)
            await asyncio.wait(both, timeout=self.limits.leave_s)
        finally:
            self._clients.pop(client.id, None)
            client.close(Left.STOPPED)
            for task in both:
                task.cancel()
            await asyncio.wait(both)
            for task in both:
                forget_cancellation(task)
            self._meters.left(client)
            event(
                "client.left",
                client=client.number,
                service=client.service,
                why=client.closed,
                seconds=time.monotonic() - began,
                **client.statistics(),
            )

    async def _serve(self, client: Client) -> None:
        try:
            await self.services[client.service].serve(client)
            client.close(Left.SERVED)
        except Exception as raised:
            error: BaseException = raised
            while isinstance(error, BaseExceptionGroup):  # of a service's own tasks
                error = error.exceptions[0]
            words = f"{type(error).__name__}: {error}"
            client.reply({"type": "error", "error": words})
            client.close(f"{Left.FAILED}: {words}")

    async def _connect(self, client: Client) -> None:
        try:
            await client.run()
            client.close(Left.LOST)
        except Exception as error:
            client.close(f"{Left.LOST}: {type(error).__name__}: {error}")
