"""A data channel that neither blocks, nor raises because the other side went, nor piles anything up."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from partime_async.errors import ConfigurationError, MissingDependencyError, SourceError

try:
    from aiortc import InvalidStateError, RTCDataChannel
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

MAX_BUFFERED_BYTES = 64 * 1024
MAX_UNREAD = 64
MAX_MESSAGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What went through a channel.

    Attributes:
        sent: Messages handed over for sending.
        skipped: Messages not sent: too much was waiting to be sent, or the channel was not open.
        received: Messages that came.
        refused: Messages of those that were too long, or came while too many were unread.
        unread: Messages that wait for the reader.
        unreadable: Messages that `json_messages` left out, as they are no JSON object.
        buffered_bytes: Bytes that wait to be sent.
    """

    sent: int
    skipped: int
    received: int
    refused: int
    unread: int
    unreadable: int
    buffered_bytes: int


class DataChannel:
    """Messages to and from the other side: ``channel.send_json({...})``, ``async for message in channel``.

    Sending never waits: what finds too much waiting already, as with a receiver that is slow, is skipped and counted,
    and the sender told. SCTP cannot push back on the other side, so of what comes only so much is kept unread.

    A `Peer` makes it. One task reads.
    """

    def __init__(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        self._unread: deque[str | bytes] = deque()
        self._news: asyncio.Future[None] | None = None
        self._sent = self._skipped = self._received = self._refused = self._unreadable = 0
        self._is_ended = False
        self._opened: asyncio.Event = asyncio.Event()
        if self.is_open:
            self._opened.set()
        channel.on("open", self._opened.set)
        channel.on("message", self._take)
        channel.on("close", self.end)

    @property
    def label(self) -> str:
        """The name that both sides know it by."""
        return self._channel.label

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent now."""
        return self._channel.readyState == "open"

    async def opened(self) -> None:
        """Wait until messages can be sent.

        Raises:
            SourceError: It was closed before, or the peer is gone.

        Cancellation: safe.
        """
        await self._opened.wait()
        if self._is_ended:
            raise SourceError(f"the data channel {self.label!r} is closed. Look at the peer's closed() for the reason.")

    def send(self, message: str | bytes) -> bool:
        """Send a message, or skip it.

        Returns:
            Whether it was handed over; False: the channel is not open, or too much is waiting to be sent.

        Raises:
            ConfigurationError: It is longer than any message may be; the caller's fault.
        """
        size = len(message.encode()) if isinstance(message, str) else len(message)
        if size > MAX_MESSAGE_BYTES:
            raise ConfigurationError(
                f"a message of {size} bytes; at most {MAX_MESSAGE_BYTES} are sent. Send it in parts."
            )
        if self._is_ended or not self.is_open or self._channel.bufferedAmount + size > MAX_BUFFERED_BYTES:
            self._skipped += 1
            return False
        try:
            self._channel.send(message)
        except (InvalidStateError, ConnectionError):  # it went this moment
            self._skipped += 1
            return False
        self._sent += 1
        return True

    def send_json(self, message: object) -> bool:
        """Send what JSON can say, or skip it; like `send`.

        Raises:
            TypeError: JSON cannot say it; the caller's fault.
            ValueError: It holds a number that is not finite, which browsers do not read; the caller's fault.
        """
        return self.send(json.dumps(message, separators=(",", ":"), allow_nan=False))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        """Return the next message; the end comes when the channel is closed and all were read.

        Raises:
            SourceError: Another task waits already; the caller's fault.

        Cancellation: safe; no message is lost.
        """
        if self._news is not None:
            raise SourceError("another task waits for this channel's next message. Let one task read each channel.")
        while not self._unread:
            if self._is_ended:
                raise StopAsyncIteration
            self._news = asyncio.get_running_loop().create_future()
            try:
                await self._news
            finally:
                self._news = None
        return self._unread.popleft()

    async def json_messages(self) -> AsyncIterator[dict[str, object]]:
        """Yield the messages that are JSON objects; others are counted and left out.

        Cancellation: safe; no message is lost.
        """
        async for message in self:
            try:
                content = json.loads(message)
            except (ValueError, RecursionError):
                content = None
            if isinstance(content, dict):
                yield content
            else:
                self._unreadable += 1

    def statistics(self) -> ChannelStatistics:
        """Return what went through so far."""
        return ChannelStatistics(
            self._sent,
            self._skipped,
            self._received,
            self._refused,
            len(self._unread),
            self._unreadable,
            self._channel.bufferedAmount,
        )

    def close(self) -> None:
        """Close the channel; does not wait, and may be called again. What is unread can still be read."""
        if not self._is_ended:
            self._channel.close()
            self.end()

    def end(self) -> None:
        """Take note that nothing more comes or goes."""
        self._is_ended = True
        self._opened.set()
        self._wake()

    def _take(self, message: str | bytes) -> None:
        self._received += 1
        if self._is_ended or len(self._unread) >= MAX_UNREAD or len(message) > MAX_MESSAGE_BYTES:
            self._refused += 1
            return
        self._unread.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
