"""Every client of a socket becomes a feed of its own, of one pipeline; and gets its results, if it wants them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from partime_async.errors import (
    ConfigurationError,
    FeedClosed,
    FeedFull,
    FrameError,
    LabelError,
    PartimeError,
    PipelineNotRunning,
)
from partime_async.feed import Feed
from partime_async.frame import Result, SourceFrame, Value
from partime_async.iteration import aiter_frames
from partime_async.overflow import FeedOptions
from partime_async.pipeline import Pipeline
from partime_async.sockets.accounts import ClientAccounts, ClientStatistics
from partime_async.sockets.address import Address
from partime_async.sockets.answers import Answer, answer_messages, without_batch
from partime_async.sockets.connection import Connection
from partime_async.sockets.limits import Limits
from partime_async.sockets.link import Link
from partime_async.sockets.listener import Listener
from partime_async.sockets.reading import Reading, SocketFrame
from partime_async.sockets.tls import Credentials, credentials
from partime_async.sockets.wire import Message

_REMEMBERED = 1024
"""Frames of a client whose late targets can find them; and its clients that have left whose accounts are kept."""


class Replies(StrEnum):
    """Who gets results."""

    ASKED = "asked"
    """Who asks, frame by frame."""
    ALWAYS = "always"
    """Everybody; for devices that cannot ask, as those that send CSV."""
    NEVER = "never"
    """Nobody."""


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What a server has seen.

    Attributes:
        url: Where it listens.
        connected: Clients that are here.
        arrived: Clients that ever came in.
        refused: Connections, or datagrams over UDP, that were turned away because too many were here.
        kernel_drops: Datagrams that the kernel threw away for lack of room; None: unknown, or no datagrams.
        clients: Those that are here, and of those that have left the last thousand.
        failed_handshakes: TLS connections that came to nothing: rubbish, no trust, or too slow.
    """

    url: str
    connected: int
    arrived: int
    refused: int
    kernel_drops: int | None
    clients: Sequence[ClientStatistics]
    failed_handshakes: int = 0


class SensorServer:
    """Serve one running pipeline to everybody who connects to an address: ``async with SensorServer(...) as server``.

    A client that is slow, silent, rude or gone harms nobody: each has a feed, limits and accounts of its own, and the
    pipeline serves feeds in turn. Under ``block`` a client that sends too fast over TCP, UNIX sockets or WebSockets is
    pushed back; over UDP its datagrams are dropped, and counted. Leaving shows everybody out, and drops what is in
    flight.

    Args:
        pipeline: Entered; it takes one tensor a frame, with the batch dimension that is put in front of what comes.
        url: ``tcp://127.0.0.1:9000``, ``udp://…``, ``unix:///path`` or ``ws://host:port/path``; ``?format=json`` or
            ``?format=csv`` if devices do not speak the binary format; ``mqtt://broker/topic/+``, where each topic is a
            client. With TLS ``tcps://…``, ``wss://…`` and ``mqtts://…``. Who reaches the address can connect, there is
            no password: choose 127.0.0.1, a network where everybody may, or TLS with a `Tls.ca`, which lets in whose
            certificate it has signed.
        overflow: Of each client's feed; see `Pipeline.feed`.
        max_age_s: Of each client's feed.
        capacity: Of each client's feed.
        limits: What each client may ask, and how many may come.
        replies: Who gets results: ``asked``, ``always`` or ``never``.
        respond: Makes of a result what is sent back; it runs on the event loop for every result, so it is also the
            place to look at them. `Result.context` is the `SocketFrame`. None: the network's output, without its
            batch dimension.
        prepare: Makes the frames that the pipeline gets of those that a client sends, such as
            ``functools.partial(pa.targets.ahead, steps=4)``.
        dtype: Of the network's input; None: as it was sent.
        timing: How the clients' time is translated: ``estimate``, ``synchronised`` or ``arrival``; see `Timing`.
        to_value: Makes the network's input of a message, instead of `dtype`.
        origins: Web pages, as ``https://host``, that may connect to a WebSocket.
        tls: As for `listen`.

    Raises:
        ConfigurationError: Options that cannot be; the caller's fault.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        url: str,
        *,
        overflow: str = "block",
        max_age_s: float | None = None,
        capacity: int | None = None,
        limits: Limits | None = None,
        replies: str = "asked",
        respond: Callable[[Result], Answer | None] | None = None,
        prepare: Callable[[AsyncIterable[SourceFrame]], AsyncIterator[SourceFrame]] | None = None,
        dtype: torch.dtype | None = torch.float32,
        timing: str = "estimate",
        to_value: Callable[[Message], Value] | None = None,
        origins: Collection[str] = (),
        tls: Credentials | None = None,
    ) -> None:
        if replies not in tuple(Replies):
            known = ", ".join(repr(known.value) for known in Replies)
            raise ConfigurationError(f"replies is {replies!r}. Use one of {known}.")
        self._pipeline = pipeline
        self._address = Address.parse(url)
        if self._address.is_dialled:
            raise ConfigurationError(f"a server cannot listen at {self._address}. Use connect() as a source there.")
        self._tls = credentials(self._address, tls, is_server=self._address.transport != "mqtt")
        self._limits = limits or Limits()
        self._feed_options = FeedOptions.checked(overflow, max_age_s, 1 if capacity is None else capacity, 1)
        self._capacity = capacity
        self._replies, self._respond, self._prepare = Replies(replies), respond, prepare
        self._reading = Reading.checked(dtype, timing, to_value)
        self._origins = origins
        self._listener: Listener | None = None
        self._guests: dict[int, _Guest] = {}
        self._departed: OrderedDict[int, ClientStatistics] = OrderedDict()
        self._arrived = 0

    @property
    def url(self) -> str:
        """Where the server listens, with the port that the system chose if it was to."""
        return str(self._address if self._listener is None else self._listener.address)

    def statistics(self) -> ServerStatistics:
        """Return what the server has seen so far; also after it was left."""
        listener = self._listener
        here = [guest.statistics() for guest in self._guests.values()]
        return ServerStatistics(
            self.url,
            0 if listener is None else listener.connected,
            self._arrived,
            0 if listener is None else listener.refused,
            None if listener is None else listener.kernel_drops(),
            (*self._departed.values(), *here),
            0 if listener is None else listener.failed_handshakes,
        )

    async def all_left(self) -> None:
        """Wait until everybody who is here has left, and their frames are done.

        Cancellation: safe.
        """
        if self._listener is not None:
            await self._listener.all_served()

    async def __aenter__(self) -> Self:
        if self._listener is not None:
            raise PipelineNotRunning("the server was entered before. Make another one.")
        self._pipeline.statistics()  # says so if the pipeline does not run, before anybody is let in
        self._listener = Listener(self._address, self._limits, self._serve, tls=self._tls, origins=self._origins)
        await self._listener.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            await self._listener.aclose()

    async def _serve(self, link: Link) -> None:
        number, self._arrived = self._arrived, self._arrived + 1
        options = self._feed_options
        feed = self._pipeline.feed(overflow=options.overflow, max_age_s=options.max_age_s, capacity=self._capacity)
        guest = _Guest(self._pipeline, feed, is_lossy=options.is_live)
        guest.connection = Connection(
            link,
            self._address.format,
            self._limits,
            self._reading,
            number=number,
            accounts=guest.accounts,
            on_late_target=guest.labels.late_target,
        )
        self._guests[number] = guest
        try:
            await guest.serve(self._prepare, self._replies, self._respond)
        except PartimeError as error:
            # The pipeline has stopped, or this client's frames were not done in time: its own `async with` tells.
            guest.connection.closed = guest.connection.closed or f"pipeline: {type(error).__name__}"
        except asyncio.CancelledError:
            await guest.connection.show_out("leaving")
            raise
        except Exception:
            guest.connection.closed = guest.connection.closed or "failed"
            raise
        finally:
            del self._guests[number]
            self._departed[number] = guest.statistics()
            if len(self._departed) > _REMEMBERED:
                self._departed.popitem(last=False)


class _Labels:
    """Targets that come behind their frames: kept until the frame's number in the pipeline is known."""

    def __init__(self, pipeline: Pipeline, accounts: ClientAccounts) -> None:
        self._pipeline, self._accounts = pipeline, accounts
        self._indices: OrderedDict[int, int] = OrderedDict()
        self._waiting: OrderedDict[int, Tensor] = OrderedDict()
        self._due: list[tuple[int, Tensor]] = []

    def late_target(self, sequence: int, target: Tensor) -> None:
        """Take a target of a frame that has come."""
        index = self._indices.pop(sequence, None)
        if index is not None:
            self._due.append((index, target))
            return
        self._waiting[sequence] = target
        if len(self._waiting) > _REMEMBERED:  # of frames that were dropped
            self._waiting.popitem(last=False)
            self._refuse()

    def result(self, sequence: int, index: int) -> None:
        """Take note of which frame of the pipeline a client's frame has become."""
        target = self._waiting.pop(sequence, None)
        if target is not None:
            self._due.append((index, target))
            return
        self._indices[sequence] = index
        if len(self._indices) > _REMEMBERED:
            self._indices.popitem(last=False)

    async def give(self) -> None:
        """Hand the targets on whose frames are known; those that come too late are counted."""
        due, self._due = self._due, []
        for index, target in due:
            try:
                await self._pipeline.label(index, target)
            except (LabelError, ConfigurationError):
                self._refuse()

    def _refuse(self) -> None:
        self._accounts.targets -= 1
        self._accounts.dropped["target"] += 1


class _Guest:
    """One client, its feed, and the two tasks between them."""

    def __init__(self, pipeline: Pipeline, feed: Feed, *, is_lossy: bool) -> None:
        self.connection: Connection
        self.accounts = ClientAccounts()
        self.labels = _Labels(pipeline, self.accounts)
        self._feed = feed
        self._is_lossy = is_lossy

    def statistics(self) -> ClientStatistics:
        return self.connection.statistics(self._feed.statistics())

    async def serve(
        self,
        prepare: Callable[[AsyncIterable[SourceFrame]], AsyncIterator[SourceFrame]] | None,
        replies: Replies,
        respond: Callable[[Result], Answer | None] | None,
    ) -> None:
        """Talk to the client until it leaves and all its frames are done."""
        try:
            async with self._feed as feed, asyncio.TaskGroup() as tasks:
                submitting = tasks.create_task(self._submit(feed, prepare))
                is_there = True
                async for result in feed:
                    if not await self._answer(result, replies, respond) and is_there:
                        is_there = False
                        submitting.cancel()
        except BaseExceptionGroup as group:
            # One error of one task, which the other one's cancellation followed: as it is, it tells more.
            raise group.exceptions[0] from group.exceptions[0].__cause__

    async def _submit(
        self, feed: Feed, prepare: Callable[[AsyncIterable[SourceFrame]], AsyncIterator[SourceFrame]] | None
    ) -> None:
        connection = self.connection
        frames = aiter_frames(connection if prepare is None else prepare(connection))
        try:
            async for frame in frames:
                await self.labels.give()  # before the frame they came in front of, so that they are not later still
                try:
                    await feed.put(frame.value, frame.target, captured_at=frame.captured_at, context=frame)
                except FrameError as error:
                    await connection.complain(error)
                except FeedFull:
                    continue  # the feed has counted it
            await self.labels.give()
        except FeedClosed:
            pass  # the pipeline is being left
        finally:
            await frames.aclose()
            feed.close()

    async def _answer(
        self, result: Result, replies: Replies, respond: Callable[[Result], Answer | None] | None
    ) -> bool:
        """Send a result if it is wanted; say whether the client is still there to get some."""
        frame = result.context
        if not isinstance(frame, SocketFrame):
            raise ConfigurationError(
                f"`prepare` gave a {type(frame).__name__}, which does not tell whose frame it is. Make new frames with "
                "dataclasses.replace() of those that come."
            )
        self.labels.result(frame.sequence, result.index)
        answer: Answer | None = None
        if result.error is not None:
            answer = {"error": str(result.error), "sequence": frame.sequence}
        elif respond is not None:
            answer = respond(result)
        elif replies is not Replies.NEVER:
            answer = without_batch(result.output)
        is_wanted = frame.wants_reply or replies is Replies.ALWAYS
        if answer is None or replies is Replies.NEVER or not is_wanted:
            return True
        # With the sender's own time, so that it can tell how long the way there and back took.
        messages = answer_messages(answer, frame.sequence, frame.position_s, frame.clock)
        return await self.connection.reply(messages, is_lossy=self._is_lossy) or self._is_lossy
