"""One client of the server, as a service sees it: frames in, pictures or tensors out, messages both ways."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from enum import StrEnum
from types import TracebackType
from typing import Protocol, TypeAlias, runtime_checkable

from partime_async.channel import Channel, EndOfChannel
from partime_async.frame import Result, SourceFrame, Value
from partime_async.iteration import AsyncFrames
from partime_async.picture import Image
from partime_async.pipeline import Pipeline

Message: TypeAlias = Mapping[str, object]
"""What JSON can say, as an object."""

COMMANDS_WAITING = 64
"""Control messages that wait for the service; a client that sends more than it reads is not heard for a while."""

_numbers = itertools.count(1)


class ClientKind(StrEnum):
    """How a client is connected."""

    WEBRTC = "webrtc"
    WEBSOCKET = "websocket"


class Left(StrEnum):
    """Why a client is gone; `Client.closed` begins with one of these, and may say more behind a colon."""

    BYE = "bye"
    """It said so."""
    LOST = "lost"
    """Its connection ended."""
    SILENT = "silent"
    """Nothing was heard of it any more."""
    IDLE = "idle"
    """It lived, and sent nothing."""
    SLOW = "slow"
    """It did not read what was sent to it."""
    RUBBISH = "rubbish"
    """It sent what cannot be read."""
    TIME = "time"
    """Its time was up."""
    SERVED = "served"
    """The service was done with it."""
    FAILED = "failed"
    """The service could not serve it any more."""
    STOPPED = "stopped"
    """The server stops."""
    UNCONNECTED = "unconnected"
    """It never connected."""


class Service(Protocol):
    """What is served to clients: usually one pipeline, of which each client is a feed.

    It is entered before the first client comes and left after the last one has gone, both in the same task.
    """

    async def serve(self, client: Client) -> None:
        """Serve one client until it leaves; `client.frames()` and `client.commands()` end then.

        Raises:
            Exception: It cannot be served any more; this client is told what the error says, and disconnected.

        Cancellation: must be safe; it comes when the client has left and this does not return, or the server stops.
        """

    def describe(self) -> Mapping[str, object]:
        """Say in JSON's terms what is served, for the page and for `GET /api/services`."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool | None: ...


@runtime_checkable
class Observed(Protocol):
    """A service whose pipelines are shown in ``/metrics`` and ``/healthz``; optional."""

    @property
    def error(self) -> BaseException | None:
        """What stopped the service for all clients; None: it runs."""

    def pipelines(self) -> Mapping[str, Pipeline]:
        """Return its running pipelines by name; few names, and the same ones for as long as it runs."""


class Observer(Protocol):
    """What is told of a client's results."""

    def delivered(self, service: str, kind: str, result: Result) -> None:
        """Take note of one result that went to a client."""


class Client(ABC):
    """A connected client. The server makes it; a service gets it in `Service.serve`.

    Attributes:
        id: Names this visit. Whoever knows it can end the visit: not for logs.
        number: Names this visit in logs, from 1.
        kind: How it is connected.
        service: The name of the service that it came for.
        key: What it calls itself, the same when it comes back; None: it did not say.
        closed: Why it is gone; None: it is there.
        bad: Messages and frames that could not be used.
        unheard: Commands that found no room.
    """

    kind: ClientKind

    def __init__(self, *, service: str, key: str | None, observer: Observer, bad_limit: int) -> None:
        self.id = secrets.token_urlsafe(18)
        self.number = next(_numbers)
        self.service = service
        self.key = key
        self.closed: str | None = None
        self.unheard = 0
        self.bad = 0
        self._bad_in_a_row = 0
        self._bad_limit = bad_limit
        self._observer = observer
        self._gone = asyncio.Event()
        self._commands: Channel[dict[str, object]] = Channel(COMMANDS_WAITING)

    def __repr__(self) -> str:
        state = "" if self.closed is None else f", {self.closed}"
        return f"<client {self.number}, {self.kind}, for {self.service}{state}>"

    @abstractmethod
    def frames(
        self, *, size: tuple[int, int] | None = None, to_value: Callable[[Image], Value] | None = None
    ) -> AsyncFrames[SourceFrame]:
        """Return the frames that the client sends, until it leaves; for one reader.

        Args:
            size: Height and width that a camera's pictures are resized to; None: as they come. Tensors that come over a
                WebSocket stay as they are.
            to_value: Makes the network's input of a camera's picture, off the loop; None: float32 in [0, 1],
                ``(1, 3, height, width)``.

        Returns:
            Over WebRTC live: the newest frame counts, and others are dropped. Over a WebSocket all of them in order:
            a service that does not read holds the client back.
        """

    @abstractmethod
    def show(self, image: Image, *, captured_at: float | None = None) -> None:
        """Show a picture in the video that goes back to the client; the newest counts. Never blocks.

        Raises:
            ConfigurationError: A client of a WebSocket has no video; the service's fault.
        """

    @abstractmethod
    def send(self, value: Value, *, answers: SourceFrame) -> bool:
        """Send a result as tensors. Never blocks; a client that does not read loses the oldest ones.

        Args:
            value: One tensor, or several, which go as one message each. They go as they are: take the batch dimension
                off where the frames come without one.
            answers: The frame that it is the result of; the result gets its number, and its time by the client's clock.

        Returns:
            Whether it was taken; False: the client is gone.

        Raises:
            ConfigurationError: A client of WebRTC takes no tensors; the service's fault.
        """

    @abstractmethod
    def tell(self, message: Message) -> bool:
        """Send telemetry, at most some 10 times a second: lossy, and never late. Never blocks.

        Returns:
            Whether it went out; False: skipped, because the client does not keep up or is gone.

        Raises:
            TypeError: JSON cannot say it; the service's fault.
            ValueError: It has a number that is not finite; the service's fault.
        """

    @abstractmethod
    def reply(self, message: Message) -> bool:
        """Send a message that must arrive. Never blocks.

        Returns:
            Whether it went out; False: the client is gone, or reads nothing at all.

        Raises:
            TypeError: JSON cannot say it; the service's fault.
            ValueError: It has a number that is not finite; the service's fault.
        """

    @abstractmethod
    def statistics(self) -> Mapping[str, int]:
        """Return counts of what came and went on the connection."""

    async def commands(self) -> AsyncIterator[dict[str, object]]:
        """Yield the control messages of the client, until it leaves; for one reader.

        Cancellation: safe.
        """
        while True:
            try:
                command = await self._commands.get()
            except EndOfChannel:
                return
            yield command

    def delivered(self, result: Result) -> None:
        """Take note of a result that went out to this client, for the latency histogram of ``/metrics``."""
        self._observer.delivered(self.service, self.kind, result)

    def refuse(self, words: str) -> None:
        """Count a message or frame that cannot be used, say so, and disconnect a client that sends nothing else."""
        self.bad += 1
        self._bad_in_a_row += 1
        self.reply({"type": "error", "error": words})
        if self._bad_in_a_row >= self._bad_limit:
            self.close(f"{Left.RUBBISH}: {self._bad_in_a_row} in a row, such as: {words}")

    def accept(self) -> None:
        """Take note that something could be used."""
        self._bad_in_a_row = 0

    def close(self, reason: str) -> None:
        """Ask the client to leave, and tell it why; the first reason counts. Idempotent."""
        if self.closed is None:
            self.reply({"type": "bye", "reason": reason})
            self.closed = reason
            self._commands.close()
            self._gone.set()

    async def gone(self) -> str:
        """Wait until the client is to leave, or has left, and return why.

        Cancellation: safe.
        """
        await self._gone.wait()
        assert self.closed is not None
        return self.closed

    @abstractmethod
    async def run(self) -> None:
        """Keep the connection until it is closed or `close` was called; the server calls this.

        Cancellation: safe; the connection is closed at once.
        """

    def _heard(self, command: dict[str, object]) -> None:
        """Hand a control message to the service, or count it as unheard."""
        if self._commands.is_closed:
            return
        if self._commands.is_full:
            self.unheard += 1
            return
        self._commands.put_nowait(command)
