"""Results out to whoever wants them: by connecting, or to everybody who connects."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np

from partime_async.channel import Channel, ChannelClosed, EndOfChannel
from partime_async.client import UntrustedError
from partime_async.errors import ConfigurationError, SinkError
from partime_async.frame import Result
from partime_async.offload import in_thread, to_the_end
from partime_async.overflow import Overflow
from partime_async.sockets.address import Address
from partime_async.sockets.answers import Answer, answer_messages, without_batch
from partime_async.sockets.backoff import Backoff
from partime_async.sockets.connection import INLINE_BYTES, Connection
from partime_async.sockets.dial import dial
from partime_async.sockets.formats import Format, make_format
from partime_async.sockets.limits import Limits
from partime_async.sockets.link import Link
from partime_async.sockets.listener import Listener
from partime_async.sockets.reading import Reading
from partime_async.sockets.tls import Credentials, credentials, opened
from partime_async.sockets.wire import Clock, Kind, Message

_POLICIES = (Overflow.BLOCK, Overflow.DROP_OLDEST, Overflow.DROP_NEWEST)


@dataclass(frozen=True, slots=True)
class SinkStatistics:
    """What a sink has sent: ``written == sent + waiting + dropped`` for one that connects.

    Attributes:
        written: Results that were given to it.
        sent: Results that went out; one that listens counts each subscriber's.
        waiting: Results that wait to go out.
        dropped: Results that did not go out, for want of room or of time.
        connected: Connections now.
        arrived: Connections ever.
    """

    written: int
    sent: int
    waiting: int
    dropped: int
    connected: int
    arrived: int


@dataclass(slots=True)
class _Outlet:
    """What waits for one other side."""

    waiting: Channel[bytes]
    current: bytes | None = None
    sent: int = 0
    dropped: int = 0

    @property
    def unsent(self) -> int:
        return len(self.waiting) + (self.current is not None)

    async def put(self, data: bytes, overflow: Overflow) -> None:
        with suppress(ChannelClosed):
            if overflow is Overflow.BLOCK:
                await self.waiting.put(data)
                return
            if self.waiting.is_full:
                self.dropped += 1
                if overflow is Overflow.DROP_NEWEST:
                    return
                self.waiting.evict()
            self.waiting.put_nowait(data)
            return
        self.dropped += 1


@dataclass(slots=True)
class _Past:
    """Of outlets that are gone."""

    sent: int = 0
    dropped: int = 0


class SocketSink:
    """Send results: ``async with SocketSink("tcp://127.0.0.1:9001") as sink: await sink.write(result)``.

    A sink that connects does so again when the connection breaks, after waits that grow and are partly random; the
    result that was being sent then is sent again, with the same sequence. What the system had taken, and the other side
    has not read, is lost with a connection: its gap in the sequence tells. A sink that listens sends everything to
    everybody who connects; over UDP, to everybody who said hello within `idle_s`.

    Args:
        url: ``tcp://…``, ``udp://…``, ``unix://…``, ``ws://…`` or ``mqtt://broker/topic``, with ``?format=json`` or
            ``?format=csv`` for readers that do not speak the binary format; ``tcps``, ``wss`` and ``mqtts`` with TLS.
        listen: Let readers connect, and not the other way round.
        overflow: What happens when more than `capacity` results wait for a reader: ``block``, which makes `write` wait,
            ``drop_oldest`` or ``drop_newest``.
        capacity: Results that may wait for each reader.
        limits: Bounds of time and size; the largest result is `message_bytes`.
        backoff: How long to wait between two tries to connect.
        tls: This side's certificate if it listens, or what to check the other side's against; its files may also be
            named in the URL, with ``?cert=…&key=…`` or ``?ca=…``.

    Raises:
        ConfigurationError: Options that cannot be; the caller's fault.
    """

    def __init__(
        self,
        url: str,
        *,
        listen: bool = False,
        overflow: str = "block",
        capacity: int = 64,
        limits: Limits | None = None,
        backoff: Backoff | None = None,
        tls: Credentials | None = None,
    ) -> None:
        if overflow not in _POLICIES:
            raise ConfigurationError(
                f"overflow is {overflow!r}. Use one of {', '.join(repr(known.value) for known in _POLICIES)}."
            )
        self._address = Address.parse(url)
        if listen and self._address.transport == "mqtt":
            raise ConfigurationError(f"nobody can connect to {self._address} but through its broker. Leave out listen.")
        self._tls = credentials(self._address, tls, is_server=listen)
        self._limits = limits or Limits()
        self._format: Format = make_format(self._address.format, self._limits)
        self._overflow, self._capacity = Overflow(overflow), capacity
        self._backoff = backoff or Backoff()
        self._listener = Listener(self._address, self._limits, self._serve, tls=self._tls) if listen else None
        self._distrust: UntrustedError | None = None
        self._outlets: dict[int, _Outlet] = {}
        self._past = _Past()
        self._sending: asyncio.Task[None] | None = None
        self._is_entered = self._is_connected = False
        self._arrived = self._written = self._next = 0
        Channel[bytes](capacity)  # says what is wrong with it

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose, or what it connects to."""
        return str(self._address if self._listener is None else self._listener.address)

    async def write(
        self,
        item: Result | Answer,
        *,
        sequence: int | None = None,
        captured_at: float | None = None,
    ) -> None:
        """Send one result.

        Args:
            item: A `Result`, whose `index` and `captured_at` are sent along, and whose batch dimension of one is not;
                tensors or an array, which go as they are; or a JSON object.
            sequence: Its number; None: that of the `Result`, or one more than the last.
            captured_at: Seconds of `time.monotonic`; None: that of the `Result`, or none.

        Raises:
            SinkError: The sink is not open; the caller's fault.
            SinkError: The certificate of the other side is not trusted.
            StageError: The result is that of a frame that failed; it was not sent.

        Cancellation: safe; the result was sent, or not.
        """
        if not self._is_entered:
            raise SinkError("the sink is not open. Use it inside `async with sink:`.")
        self._check_trust()
        if isinstance(item, Result):
            sequence = item.index if sequence is None else sequence
            captured_at = item.captured_at if captured_at is None else captured_at
            item = without_batch(item.output)
        sequence = self._next if sequence is None else sequence
        messages = answer_messages(item, sequence, captured_at, Clock.MONOTONIC)

        def encode() -> bytes:
            return b"".join(map(self._format.encode, messages))

        is_short = sum(message.array.nbytes for message in messages) <= INLINE_BYTES
        data = encode() if is_short else await in_thread(encode, name="partime sink")
        self._written += 1
        self._next = sequence + 1
        for outlet in list(self._outlets.values()):
            await outlet.put(data, self._overflow)

    def statistics(self) -> SinkStatistics:
        """Return what the sink has sent so far; also after it was left."""
        outlets, past = self._outlets.values(), self._past
        is_listening = self._listener is not None
        return SinkStatistics(
            self._written,
            past.sent + sum(outlet.sent for outlet in outlets),
            sum(outlet.unsent for outlet in outlets),
            past.dropped + sum(outlet.dropped for outlet in outlets),
            len(self._outlets) if is_listening else int(self._is_connected),
            self._arrived,
        )

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise SinkError("the sink is open already. Make another one.")
        self._is_entered = True
        if self._listener is not None:
            await self._listener.open()
        else:
            context = await opened(self._tls, is_server=False)
            outlet = self._outlets[0] = _Outlet(Channel(self._capacity))
            self._sending = asyncio.get_running_loop().create_task(self._send(outlet, context), name="partime sink")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what waits, for as long as `close_s`, and close.

        Raises:
            SinkError: The certificate of the other side is not trusted, so nothing was sent.
        """
        self._is_entered = False
        for outlet in self._outlets.values():
            outlet.waiting.close()
        if error is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.close_s):
                    await self._sent_all()
        await to_the_end(self._close(), name="partime sink closing")
        if error is None:
            self._check_trust()

    def _check_trust(self) -> None:
        if self._distrust is not None:
            raise SinkError(str(self._distrust)) from self._distrust

    async def _sent_all(self) -> None:
        if self._sending is not None:
            await asyncio.wait([self._sending])
        elif self._listener is not None:
            await self._listener.all_served()

    async def _close(self) -> None:
        if self._listener is not None:
            await self._listener.aclose()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        for number in list(self._outlets):
            self._retire(number)

    def _retire(self, number: int) -> None:
        outlet = self._outlets.pop(number)
        self._past.sent += outlet.sent
        self._past.dropped += outlet.dropped + outlet.unsent
        outlet.waiting.close()

    # -- one reader at a time -------------------------------------------------------------------------------------

    async def _send(self, outlet: _Outlet, context: ssl.SSLContext | None) -> None:
        """Send what waits, over one connection after the other."""
        while True:
            try:
                link = await dial(self._address, self._limits, context)
            except UntrustedError as error:
                self._distrust = error
                outlet.waiting.close()  # whoever waits for room is told, too
                return
            except OSError:
                await asyncio.sleep(self._backoff.next_s())
                continue
            self._arrived += 1
            self._is_connected = True
            try:
                if await self._exchange(link, outlet, stalled_s=None):
                    return
            finally:
                self._is_connected = False
                await to_the_end(link.aclose(self._limits.close_s), name="partime sink closing")
            await asyncio.sleep(self._backoff.next_s())

    async def _serve(self, link: Link) -> None:
        """Send to somebody who has connected, until they leave."""
        number, self._arrived = self._arrived, self._arrived + 1
        outlet = self._outlets[number] = _Outlet(Channel(self._capacity))
        try:
            await self._exchange(link, outlet, stalled_s=self._limits.stalled_s)
        finally:
            self._retire(number)

    async def _exchange(self, link: Link, outlet: _Outlet, *, stalled_s: float | None) -> bool:
        """Send until the connection ends, or everything is sent and the sink is being left: then it is true."""
        loop = asyncio.get_running_loop()
        pushing = loop.create_task(self._push(link, outlet, stalled_s), name="partime sink pushing")
        # Who never reads from a connection never learns that its other side has gone.
        watching = loop.create_task(self._watch(link), name="partime sink watching")
        tasks = (pushing, watching)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return not pushing.cancelled() and pushing.result()

    async def _push(self, link: Link, outlet: _Outlet, stalled_s: float | None) -> bool:
        try:
            if self._format.greeting:
                await link.send(self._format.greeting)
            while True:
                if outlet.current is None:
                    outlet.current = await outlet.waiting.get()
                async with asyncio.timeout(stalled_s):
                    await link.send(outlet.current)
                outlet.current = None
                outlet.sent += 1
                self._backoff.reset()
        except EndOfChannel:
            goodbye = self._format.encode(Message(_NOTHING, self._next, kind=Kind.BYE))
            with suppress(OSError):
                for _ in range(_GOODBYES if self._address.is_datagram else 1):
                    await link.send(goodbye)
            return True
        except (OSError, TimeoutError):
            return False

    async def _watch(self, link: Link) -> None:
        """Take what the other side says, which is hello and goodbye."""
        limits = self._limits if self._address.is_datagram else replace(self._limits, idle_s=None)
        async for _ in Connection(link, self._address.format, limits, Reading()):
            pass


_NOTHING = np.zeros(0, np.uint8)
_GOODBYES = 3
"""Datagrams get lost, and the last one says how many there were."""
