"""One client's connection: its frames out of what it sends, and answers back, within its limits and on its account."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from torch import Tensor

from partime_async.accounting import FeedStatistics
from partime_async.errors import FrameError
from partime_async.frame import Value
from partime_async.offload import in_thread
from partime_async.sockets.accounts import ClientAccounts, ClientStatistics
from partime_async.sockets.formats import make_format, note
from partime_async.sockets.framing import Framing, LengthPrefixed, Lines, Whole
from partime_async.sockets.limits import Limits, OnBad
from partime_async.sockets.link import Link
from partime_async.sockets.patience import received_within
from partime_async.sockets.reading import Reading, SocketFrame
from partime_async.sockets.timing import SenderClock
from partime_async.sockets.wire import Kind, Message, WireError

INLINE_BYTES = 1 << 16
"""Longer messages are read and written in a thread: text takes milliseconds."""

_EARLY_TARGETS = 64
"""Targets that may wait for their frames."""

_TURN = 64
"""Messages without a frame in them that are looked at before others have their turn: rubbish comes in thousands."""

_NOTES = 16
"""A client is told what is wrong with its messages so often; then it is only counted."""


class Connection:
    """An asynchronous iterator of one client's frames, in the order they came. It ends when the client leaves.

    Why it ended is in `closed`: ``bye`` and ``end`` are the client's wish; ``reset`` and ``cut_off`` a broken
    connection; ``idle``, ``slow``, ``malformed`` and ``stalled`` a limit. One task iterates and one replies.

    Args:
        link: Open; whoever opened it closes it.
        format_name: How messages are written.
        limits: What the client may ask.
        reading: How messages become frames.
        number: Of the client.
        accounts: Go on with these: of a client that has connected again. None: new ones.
        on_late_target: Takes the sequence and the target of a frame that has come before; None: they are dropped.
    """

    def __init__(
        self,
        link: Link,
        format_name: str,
        limits: Limits,
        reading: Reading,
        *,
        number: int = 0,
        accounts: ClientAccounts | None = None,
        on_late_target: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.link = link
        self.number = number
        self.closed: str | None = None
        self.accounts = accounts or ClientAccounts()
        self.parts_of: int | None = None
        self._limits, self._reading = limits, reading
        self._format = make_format(format_name, limits)
        self._framing = _framing(link, limits, is_text=self._format.is_text)
        self._clock = SenderClock(reading.timing, wall_offset_s=time.monotonic() - time.time())
        self._on_late_target = on_late_target
        self._targets: dict[int, Tensor] = {}
        self._ready: deque[SocketFrame] = deque()
        self._arrived_at = time.monotonic()
        self._midway_since: float | None = None
        self._rate = None if limits.rate_hz is None else _Allowance(limits.rate_hz)
        self._notes = _NOTES

    # -- frames in ------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> SocketFrame:
        """Return the next frame; the end comes when the client leaves or is shown out.

        Cancellation: safe; at most the message that was at work is lost.
        """
        turns = 0
        while not self._ready:
            if self.closed is not None:
                raise StopAsyncIteration
            if (turns := turns + 1) % _TURN == 0:
                await asyncio.sleep(0)
            try:
                raw = self._framing.next_message()
                if raw is None:
                    await self._receive()
                else:
                    self._midway_since = None
                    await self._take(raw)
            except WireError as error:
                await self._refuse(error)
        return self._ready.popleft()

    async def _receive(self) -> None:
        """Wait for the next chunk, as long as the limits say."""
        chunk = self.link.receive_nowait()
        if chunk is None:
            if self._framing.is_midway and self._midway_since is None:
                self._midway_since = time.monotonic()
            try:
                chunk = await received_within(self._patience(), self.link.receive)
            except TimeoutError:
                await self.show_out("idle" if self._midway_since is None else "slow")
                return
            except OSError:
                self._end("reset")
                return
        self._arrived_at = time.monotonic()
        if chunk:
            self.accounts.received_bytes += len(chunk)
            self._framing.receive(chunk)
        else:
            self._end("end")

    def _patience(self) -> float | None:
        idle_s = self._limits.idle_s
        if self._midway_since is None:
            return idle_s
        # Bytes that drip in one by one are no sign of life.
        rest = max(self._midway_since + self._limits.message_s - time.monotonic(), 0.0)
        return rest if idle_s is None else min(idle_s, rest)

    async def _take(self, raw: bytearray) -> None:
        if self._rate is not None and (wait_s := self._rate.wait_s(time.monotonic())) > 0.0:
            if not self.link.can_push_back:
                self.accounts.messages += 1
                self.accounts.dropped["rate"] += 1
                return
            self._rate.borrow()
            await asyncio.sleep(wait_s)
        is_short = len(raw) <= INLINE_BYTES
        read = self._read(raw) if is_short else await in_thread(lambda: self._read(raw), name="partime message")
        for message, value in read:
            self.accounts.messages += 1
            self._sort(message, value)

    def _read(self, raw: bytearray) -> list[tuple[Message, Value | None]]:
        """Return what a raw message holds, with the network's values; called in a thread for a long one."""
        read: list[tuple[Message, Value | None]] = []
        for message in self._format.decode(raw):
            value: Value | None = None
            if message.kind in (Kind.FRAME, Kind.RESULT, Kind.TARGET):
                if not message.array.size:
                    raise WireError("empty", "a frame has no values. Send at least one number.")
                is_target = message.kind is Kind.TARGET
                try:
                    value = self._reading.target(message) if is_target else self._reading.value(message)
                except WireError:
                    raise
                except FrameError as error:
                    raise WireError("value", str(error)) from error
            read.append((message, value))
        return read

    def _sort(self, message: Message, value: Value | None) -> None:
        accounts = self.accounts
        if self.closed is not None:
            accounts.dropped["departed"] += 1
        elif message.kind is Kind.TARGET:
            assert isinstance(value, Tensor)
            self._keep_target(message.sequence, value)
        elif value is not None:
            self._make_frame(message, value)
        else:
            accounts.signals += 1
            if message.kind is Kind.BYE:
                accounts.sequence.finish(message.sequence)
                self._end("bye")

    def _make_frame(self, message: Message, value: Value) -> None:
        accounts, number = self.accounts, message.sequence
        if message.has_more or self.parts_of == number:
            # A frame of several tensors: no pipeline behind a socket takes one.
            self.parts_of = number if message.has_more else None
            accounts.dropped["kind"] += 1
            return
        if not accounts.sequence.take(number):
            accounts.dropped["repeated"] += 1
            return
        accounts.frames += 1
        self._ready.append(
            SocketFrame(
                value,
                self._clock.captured_at(message.captured_at, message.clock, self._arrived_at),
                message.captured_at,
                None,
                self._targets.pop(number, None),
                number,
                message.clock,
                message.wants_reply,
                self.number,
                self.link.peer,
                self._arrived_at,
            )
        )

    def _keep_target(self, number: int, target: Tensor) -> None:
        if self.accounts.sequence.is_past(number):
            if self._on_late_target is None:
                self.accounts.dropped["target"] += 1
                return
            self._on_late_target(number, target)
        else:
            if len(self._targets) >= _EARLY_TARGETS:  # their frames are lost, or never were
                self._targets.pop(next(iter(self._targets)))
            self._targets[number] = target
        self.accounts.targets += 1

    def _end(self, reason: str) -> None:
        if self._framing.is_midway and reason in ("end", "reset"):
            self.accounts.messages += 1
            self.accounts.malformed["cut_off"] += 1
            reason = "cut_off"
        self.closed = self.closed or reason

    async def _refuse(self, error: WireError) -> None:
        accounts, limits = self.accounts, self._limits
        accounts.messages += 1
        accounts.malformed[error.cause] += 1
        is_too_much = sum(accounts.malformed.values()) >= limits.bad_messages
        if error.is_fatal or is_too_much or limits.on_bad == OnBad.DROP_CLIENT:
            await self.show_out("malformed", str(error))
        elif self._notes:
            self._notes -= 1
            await self._tell({"error": str(error)})

    # -- answers out ----------------------------------------------------------------------------------------------

    async def reply(self, messages: Sequence[Message], *, is_lossy: bool) -> bool:
        """Send messages that belong together; say whether they went out.

        Args:
            messages: What to send.
            is_lossy: A client that does not read them in time loses them; if not, it is waited for, and shown out when
                that takes longer than `stalled_s`.

        Cancellation: safe.
        """
        if self.closed in ("reset", "cut_off", "stalled"):
            self.accounts.unsent += len(messages)
            return False
        if not self.link.has_room and is_lossy:
            self.accounts.unsent += len(messages)
            return False
        try:
            if await self._send(await self._encoded(messages)):
                self.accounts.replies += len(messages)
                return True
            self.closed = "stalled"
        except OSError:
            self.closed = self.closed or "reset"
        self.accounts.unsent += len(messages)
        return False

    async def _send(self, data: bytes) -> bool:
        """Send; say whether the client read in time."""
        try:
            async with asyncio.timeout(self._limits.stalled_s):
                await self.link.send(data)
        except TimeoutError:
            # If this program itself was held up, what the client has made room for goes out in the loop's next turn.
            await asyncio.sleep(0)
            return self.link.has_room
        return True

    async def _encoded(self, messages: Sequence[Message]) -> bytes:
        def encode() -> bytes:
            return b"".join(map(self._format.encode, messages))

        if sum(message.array.nbytes for message in messages) <= INLINE_BYTES:
            return encode()
        return await in_thread(encode, name="partime message")

    async def complain(self, error: FrameError) -> None:
        """Deal with a frame that could be read and does not fit the pipeline, which has counted it."""
        if self._limits.on_bad == OnBad.DROP_CLIENT:
            await self.show_out("malformed", str(error))
        elif self._notes:
            self._notes -= 1
            await self._tell({"error": str(error)})

    async def show_out(self, reason: str, text: str | None = None) -> None:
        """End the iteration for this reason, and tell the client, if it listens."""
        if self.closed is None:
            self.closed = reason
            await self._tell({"error": text or _REASONS.get(reason, reason), "closed": reason})

    async def _tell(self, told: Mapping[str, object]) -> None:
        if self.link.has_room:
            with suppress(OSError):
                await self.link.send(self._format.encode(note(told)))

    def statistics(self, feed: FeedStatistics | None = None) -> ClientStatistics:
        """Return what the client has sent and got so far."""
        accounts, lost = self.accounts, self.link.overflowed
        counted = accounts.statistics(self.number, self.link.peer, feed, self.closed)
        return counted.with_overflow(lost) if lost else counted


_REASONS = {
    "idle": "nothing came for too long. Send a hello now and then.",
    "slow": "a message was begun and not finished in time.",
    "leaving": "the server is closing.",
}


class _Allowance:
    """A bucket of messages that fills with the rate and holds a second's worth.

    Source: the token bucket of RFC 2697.
    """

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._most = self._left = max(1.0, rate_hz)
        self._at: float | None = None

    def wait_s(self, now: float) -> float:
        """Take one message out and return 0, or say how long until there is one."""
        if self._at is not None:
            self._left = min(self._most, self._left + (now - self._at) * self._rate_hz)
        self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self._rate_hz

    def borrow(self) -> None:
        """Take a message that will be waited for."""
        self._left -= 1.0


def _framing(link: Link, limits: Limits, *, is_text: bool) -> Framing:
    if link.is_framed:
        return Whole(limits, is_text=is_text)
    return Lines(limits) if is_text else LengthPrefixed(limits)
