"""A client of a WebSocket: tensors in, in order; results out, in bounded number; JSON for everything else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web
from torch import Tensor

from partime_async.channel import Channel, ChannelClosed, EndOfChannel
from partime_async.errors import ConfigurationError
from partime_async.frame import SourceFrame, Value
from partime_async.iteration import AsyncFrames, aiter_frames
from partime_async.picture import Image
from partime_async.serve.client import Client, ClientKind, Left, Message, Observer
from partime_async.serve.limits import ClientLimits, Rate
from partime_async.serve.outbox import Outbox, Outgoing
from partime_async.serve.traces import forget_frames
from partime_async.sockets import wire
from partime_async.sockets.formats import JsonLines
from partime_async.sockets.limits import Limits
from partime_async.sockets.patience import Arrivals, received_within
from partime_async.sockets.timing import SenderClock, Timing

TEXT_BYTES = 256 * 1024
"""Of a JSON message: it is read on the event loop."""

_FRAMES_WAITING = 2
_TARGETS_WAITING = 8
_CLOSE_CODES = {
    Left.STOPPED: WSCloseCode.GOING_AWAY,
    Left.RUBBISH: WSCloseCode.UNSUPPORTED_DATA,
    Left.SLOW: WSCloseCode.POLICY_VIOLATION,
    Left.IDLE: WSCloseCode.POLICY_VIOLATION,
    Left.TIME: WSCloseCode.POLICY_VIOLATION,
    Left.FAILED: WSCloseCode.INTERNAL_ERROR,
}


@dataclass(frozen=True, slots=True)
class SentFrame(SourceFrame):
    """A frame that a program sent.

    Attributes:
        sequence: The sender's own number of it.
        sent_at: Its time by the sender's own clock, in seconds; None: it did not say.
        clock: Which clock that is.
        is_text: Whether it came as JSON, and its result goes as JSON.
    """

    sequence: int = 0
    sent_at: float | None = None
    clock: wire.Clock = wire.Clock.NONE
    is_text: bool = False


class WebSocketClient(Client):
    """A client of a WebSocket.

    Binary messages are those of `sockets.wire`; text is JSON: a command, which has a ``type``, or a
    frame, which is a list or has ``values``. The result of a
    frame that came as text goes as text. While the service does not take frames, nothing is read, which holds
    the client back.

    Args:
        socket: Prepared, without a heartbeat of its own: a client that is held back cannot answer one.
        transport: What is under it, to be cut when it does not close in order.
        limits: What it may take.
        wants_results: Whether results are sent at all.
        service: See `Client`.
        key: See `Client`.
        observer: See `Client`.
    """

    kind = ClientKind.WEBSOCKET

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        *,
        limits: ClientLimits,
        wants_results: bool,
        service: str,
        key: str | None,
        observer: Observer,
    ) -> None:
        super().__init__(service=service, key=key, observer=observer, bad_limit=limits.bad_messages)
        self._socket = socket
        self._transport = transport
        self._arrivals = Arrivals(transport)
        self._limits = limits
        self._wants_results = wants_results
        self._wire_limits = Limits(message_bytes=limits.message_bytes)
        self._json = JsonLines(self._wire_limits)
        self._clock = SenderClock(Timing.ESTIMATE, wall_offset_s=time.monotonic() - time.time())
        self._rate = Rate(limits.messages_per_s, burst=max(1.0, limits.messages_per_s), now=time.monotonic)
        self._inbox: Channel[SentFrame] = Channel(_FRAMES_WAITING)
        self._outbox = Outbox(limits.results_waiting, now=time.monotonic)
        self._targets: dict[int, Tensor] = {}
        self._heard_at = time.monotonic()
        self._newest = -1
        self._counts = {"messages": 0, "frames": 0, "sent": 0}

    # -- the service's side ---------------------------------------------------------------------------------------

    def frames(
        self, *, size: tuple[int, int] | None = None, to_value: Callable[[Image], Value] | None = None
    ) -> AsyncFrames[SourceFrame]:
        """Return the frames that the client sends, all of them, in order."""
        return aiter_frames(self._frames())

    async def _frames(self) -> AsyncIterator[SourceFrame]:
        while True:
            try:
                frame = await self._inbox.get()
            except EndOfChannel:
                return
            yield frame

    def show(self, image: Image, *, captured_at: float | None = None) -> None:
        """Refuse: there is no video."""
        raise ConfigurationError("a client of a WebSocket has no video to show pictures in. Use send().")

    def send(self, value: Value, *, answers: SourceFrame) -> bool:
        """Send a result; see `Client.send`."""
        if self.closed is not None:
            return False
        if not self._wants_results:
            return True
        assert isinstance(answers, SentFrame)
        tensors = (value,) if isinstance(value, Tensor) else value
        for place, tensor in enumerate(tensors):
            message = wire.Message(
                tensor.detach().numpy(),
                answers.sequence,
                answers.sent_at,
                wire.Kind.RESULT,
                answers.clock,
                has_more=place < len(tensors) - 1,
            )
            self._outbox.put(Outgoing(_text(message) if answers.is_text else _binary(message)))
        self._check_reader()
        return True

    def tell(self, message: Message) -> bool:
        """Send telemetry if little waits to be sent."""
        text = json.dumps(message, allow_nan=False)
        return self.closed is None and not self._outbox.is_crowded and self._outbox.put(Outgoing(text))

    def reply(self, message: Message) -> bool:
        """Send a message; results make room for it."""
        text = json.dumps(message, allow_nan=False)
        return self.closed is None and self._outbox.put(Outgoing(text, must_arrive=True))

    def statistics(self) -> Mapping[str, int]:
        """Return counts: messages and frames that came, bad ones, messages sent, and unsent for a slow reader."""
        return {**self._counts, "unsent": self._outbox.dropped, "bad": self.bad, "unheard": self.unheard}

    # -- the connection -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read and write until one of the two ends, or `close` is called."""
        reading = asyncio.create_task(self._read(), name=f"partime reading {self.number}")
        writing = asyncio.create_task(self._write(), name=f"partime writing {self.number}")
        try:
            await self.gone()
            self._outbox.close()
            self._inbox.close()
            # What was said last, such as why, still goes out to a client that reads.
            await asyncio.wait({writing}, timeout=0.25 * self._limits.leave_s)
        finally:
            self._outbox.close()
            self._inbox.close()
            for task in (reading, writing):
                task.cancel()
            await asyncio.wait({reading, writing})
            await self._hang_up()

    async def _hang_up(self) -> None:
        why = (self.closed or Left.LOST).partition(":")[0]
        code = _CLOSE_CODES.get(Left(why) if why in tuple(Left) else Left.SERVED, WSCloseCode.OK)
        try:
            async with asyncio.timeout(0.5 * self._limits.leave_s):
                await self._socket.close(code=code, message=(self.closed or "").encode()[:120], drain=False)
        except (TimeoutError, OSError, RuntimeError):
            pass
        finally:
            if self._transport is not None:
                self._transport.abort()
            # aiohttp keeps it, and its frames know the socket with all that was not read.
            forget_frames(self._socket.exception())

    async def _read(self) -> None:
        is_pinged = False
        while self.closed is None:
            try:
                message = await received_within(0.5 * self._limits.silence_s, self._socket.receive)
            except TimeoutError:
                is_pinged = self._missed(is_pinged=is_pinged)
                continue
            is_pinged = False
            self._arrivals.has_more()  # what has come until now has been read
            await self._took(message.type, message.data)

    def _missed(self, *, is_pinged: bool) -> bool:
        """Think about a client that sent nothing for a while; say whether it was asked for a sign of life."""
        self._check_reader()
        if not self._outbox.is_idle:
            return False  # what asks for a sign of life could not reach it; whether it reads is looked after above
        is_sending = self._arrivals.has_more()
        if time.monotonic() - self._heard_at > self._limits.idle_s:
            self.close(f"{Left.IDLE}: it sent no whole message for {self._limits.idle_s:g} s")
        elif is_sending:
            return False  # a long message, over a slow line
        elif is_pinged:
            self.close(f"{Left.SILENT}: no sign of life for {self._limits.silence_s:g} s")
        return self._outbox.put(Outgoing(None, must_arrive=True))

    def _check_reader(self) -> None:
        if self._outbox.stuck_s > self._limits.slow_s:
            self.close(f"{Left.SLOW}: it did not read for {self._limits.slow_s:g} s")

    async def _took(self, kind: WSMsgType, data: object) -> None:
        if kind is WSMsgType.PONG:
            return
        if kind is WSMsgType.PING:
            assert isinstance(data, bytes | bytearray | str)
            await self._socket.pong(data.encode() if isinstance(data, str) else bytes(data))
        elif kind in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
            self.close(Left.BYE if self._socket.close_code in (1000, 1001) else Left.LOST)
        elif kind is WSMsgType.ERROR:
            # The error's own code: by now the socket may have another one, of how the closing went.
            is_rubbish = isinstance(data, WebSocketError) and data.code in (1002, 1007, 1009)
            self.close(f"{Left.RUBBISH}: {data}" if is_rubbish else Left.LOST)
        else:
            await self._message(data)

    async def _message(self, data: object) -> None:
        self._heard_at = time.monotonic()
        self._counts["messages"] += 1
        while wait_s := self._rate.take(""):  # noqa: ASYNC110 - how long to wait is known
            await asyncio.sleep(wait_s)
        try:
            if isinstance(data, str):
                messages = self._text(data)
            else:
                assert isinstance(data, bytes | bytearray)
                # A tensor needs memory that can be written.
                messages = (wire.decode(bytearray(data), self._wire_limits),)
        except wire.WireError as error:
            self.refuse(str(error))
            return
        for message in messages:
            await self._handle(message, is_text=isinstance(data, str))

    def _text(self, text: str) -> Sequence[wire.Message]:
        """Return the frames of a JSON message; hand a command to the service.

        Raises:
            WireError: It is neither; the client's fault.
        """
        if len(text) > TEXT_BYTES:
            raise wire.WireError("too_long", f"JSON of {len(text)} characters. Send at most {TEXT_BYTES}, or binary.")
        try:
            said = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise wire.WireError("json", f"no JSON: {error!s:.80}.") from None
        if isinstance(said, list) or (isinstance(said, dict) and "values" in said and "type" not in said):
            return self._json.decode(bytearray(text.encode()))
        if not isinstance(said, dict):
            raise wire.WireError("json", f"a JSON {type(said).__name__} is no command. Send an object.")
        self._heard(said)
        return ()

    async def _handle(self, message: wire.Message, *, is_text: bool) -> None:
        match message.kind:
            case wire.Kind.FRAME:
                await self._frame(message, is_text=is_text)
            case wire.Kind.TARGET:
                await self._expect(message)
            case wire.Kind.BYE:
                self.close(Left.BYE)
            case wire.Kind.NOTE:
                self._heard(dict(message.note))
            case wire.Kind.HELLO:
                pass
            case _:
                self.refuse(f"a {message.kind.name} is for clients. Send FRAME, TARGET, NOTE, HELLO or BYE.")

    async def _expect(self, message: wire.Message) -> None:
        """Keep a target until its frame comes; hand the target of an earlier frame to the service, as a command."""
        if not message.array.size:
            self.refuse(f"an empty target of frame {message.sequence}. Send at least one value.")
            return
        target = torch.from_numpy(message.array)
        if message.sequence <= self._newest:
            if self._commands.is_full:
                await asyncio.sleep(0)  # many may come at once: let the service take those before
            self._heard({"type": "label", "sequence": message.sequence, "target": target})
            return
        if len(self._targets) >= _TARGETS_WAITING:
            del self._targets[next(iter(self._targets))]
        self._targets[message.sequence] = target

    async def _frame(self, message: wire.Message, *, is_text: bool) -> None:
        if not message.array.size:
            self.refuse("a frame without values. Send at least one.")
            return
        captured_at = self._clock.captured_at(message.captured_at, message.clock, time.monotonic())
        frame = SentFrame(
            torch.from_numpy(message.array),
            captured_at=captured_at,
            target=self._targets.pop(message.sequence, None),
            sequence=message.sequence,
            sent_at=message.captured_at,
            clock=message.clock,
            is_text=is_text,
        )
        self._counts["frames"] += 1
        self._newest = message.sequence
        try:
            await self._inbox.put(frame)
        except ChannelClosed:
            return

    async def _write(self) -> None:
        while (message := await self._outbox.take()) is not None:
            content = message.content
            try:
                if content is None:
                    await self._socket.ping()
                    continue
                if isinstance(content, str):
                    await self._socket.send_str(content)
                else:
                    await self._socket.send_bytes(content)
            except (OSError, RuntimeError):
                self.close(Left.LOST)
                return
            self._counts["sent"] += 1


def _binary(message: wire.Message) -> bytes:
    return wire.encode(
        message.array,
        sequence=message.sequence,
        captured_at=message.captured_at,
        kind=message.kind,
        clock=message.clock,
        has_more=message.has_more,
    )


def _text(message: wire.Message) -> str:
    line: dict[str, object] = {"type": "result", "sequence": message.sequence, "values": message.array.tolist()}
    if message.captured_at is not None:
        line["captured_at"] = message.captured_at
    if message.has_more:
        line["more"] = True
    return msgspec.json.encode(line).decode()  # numbers that are not finite become null, which JSON can say
