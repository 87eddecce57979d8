"""A client of WebRTC: a live camera in, a video of results back, messages over two data channels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress

from partime_async.errors import ConfigurationError, SourceError
from partime_async.frame import SourceFrame, Value
from partime_async.iteration import AsyncFrames, aiter_frames
from partime_async.picture import Image
from partime_async.serve.client import Client, ClientKind, Left, Message, Observer
from partime_async.serve.limits import ClientLimits
from partime_async.webrtc import CloseReason, DataChannel, Description, Ice, Peer, PictureTrack, webrtc_frames

CONTROL, TELEMETRY = "control", "telemetry"
"""Labels of the channels, which the browser opens."""

_FRAME_RATE = 30.0
_LAST_WORDS_S = 0.1
"""For what was said last, such as why, to go out before the connection ends."""

_UNSAID = 8
"""Messages kept until there is a channel for them."""

_REASONS = {
    CloseReason.LEFT: Left.BYE,
    CloseReason.SILENT: Left.SILENT,
    CloseReason.UNREACHABLE: Left.UNCONNECTED,
}
_WITHOUT_WORDS = frozenset({Left.BYE, Left.SILENT, Left.LOST, Left.UNCONNECTED})


class WebRTCClient(Client):
    """A browser, or another program that speaks WebRTC.

    Args:
        ice: How it is reached.
        limits: What it may take.
        service: See `Client`.
        key: See `Client`.
        observer: See `Client`.
        ends_pictures: See `Peer`.
    """

    kind = ClientKind.WEBRTC

    def __init__(
        self,
        *,
        ice: Ice,
        limits: ClientLimits,
        service: str,
        key: str | None,
        observer: Observer,
        ends_pictures: bool = False,
    ) -> None:
        super().__init__(service=service, key=key, observer=observer, bad_limit=limits.bad_messages)
        self._limits = limits
        self._peer = Peer(
            ice=ice,
            silence_s=limits.silence_s,
            connect_timeout_s=limits.connect_s,
            close_timeout_s=0.5 * limits.leave_s,
            ends_pictures=ends_pictures,
        )
        self._picture = PictureTrack(frame_rate=_FRAME_RATE)
        self._control: DataChannel | None = None
        self._telemetry: DataChannel | None = None
        self._unsaid: list[str] = []
        self._can_speak = asyncio.Event()
        self._counts = {"shown": 0, "told": 0, "untold": 0, "replies": 0, "unreplied": 0}

    async def answer(self, offer: Description) -> Description:
        """Answer the client's offer; the connection is made while `run` runs.

        Raises:
            SourceError: The offer cannot be read, or asks for what there is not; the client's fault.

        Cancellation: safe; the connection is closed.
        """
        try:
            if "\nm=video" in offer.sdp:  # a client may also come for messages alone
                self._peer.send_video(self._picture)
            return await self._peer.answer(offer)
        except BaseException:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """Close the connection of a client that never joined."""
        self._picture.stop()
        await self._peer.close()

    # -- the connection -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """See the connection made, hear what comes over it, and close it in the end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                working = [tasks.create_task(work) for work in (self._live(), self._hear(), self._find_telemetry())]
                why = await self.gone()
                if why.partition(":")[0] not in _WITHOUT_WORDS:
                    await self._say_last_words()
                for task in working:
                    task.cancel()
        finally:
            await self.abandon()

    async def _say_last_words(self) -> None:
        """Let what was said last go out; if the service gave up at once, that is before there is a channel for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5 * self._limits.leave_s):
                await self._can_speak.wait()
        await asyncio.sleep(_LAST_WORDS_S)

    async def _live(self) -> None:
        reason = await self._peer.closed()
        self.close(_REASONS.get(reason, Left.LOST))

    async def _hear(self) -> None:
        with suppress(SourceError):  # the connection ended before there was one
            self._control = await self._peer.channel(CONTROL)
            for text in self._unsaid:
                self._control.send(text)
            self._unsaid.clear()
            self._can_speak.set()
            async for raw in self._control:
                try:
                    said = json.loads(raw)
                except (ValueError, RecursionError) as error:
                    self.refuse(f"no JSON: {error!s:.80}. Send an object.")
                    continue
                if isinstance(said, dict):
                    self._heard(said)
                else:
                    self.refuse(f"a JSON {type(said).__name__} is no command. Send an object.")

    async def _find_telemetry(self) -> None:
        with suppress(SourceError):
            self._telemetry = await self._peer.channel(TELEMETRY)

    # -- the service's side ---------------------------------------------------------------------------------------

    def frames(
        self, *, size: tuple[int, int] | None = None, to_value: Callable[[Image], Value] | None = None
    ) -> AsyncFrames[SourceFrame]:
        """Return the newest frames of the client's first video, from when it sends one."""
        return aiter_frames(self._frames(size, to_value))

    async def _frames(
        self, size: tuple[int, int] | None, to_value: Callable[[Image], Value] | None
    ) -> AsyncIterator[SourceFrame]:
        async for track in self._peer.video:
            async with webrtc_frames(track, size=size, to_value=to_value) as frames:
                async for frame in frames:
                    if self.closed is not None:
                        return
                    yield frame

    def show(self, image: Image, *, captured_at: float | None = None) -> None:
        """Show a picture in the client's video; see `Client.show`."""
        if self.closed is None:
            self._counts["shown"] += self._picture.show(image, captured_at=captured_at)

    def send(self, value: Value, *, answers: SourceFrame) -> bool:
        """Refuse: tensors are for programs."""
        raise ConfigurationError("a client of WebRTC takes no tensors. Use show(), or tell() for a few numbers.")

    def tell(self, message: Message) -> bool:
        """Send telemetry; see `Client.tell`."""
        is_sent = self._telemetry is not None and self._telemetry.send_json(message)
        self._counts["told" if is_sent else "untold"] += 1
        return is_sent

    def reply(self, message: Message) -> bool:
        """Send a message; see `Client.reply`."""
        if self._control is None and len(self._unsaid) < _UNSAID:
            self._unsaid.append(json.dumps(message, allow_nan=False))
            is_sent = True
        else:
            is_sent = self._control is not None and self._control.send_json(message)
        self._counts["replies" if is_sent else "unreplied"] += 1
        return is_sent

    def statistics(self) -> Mapping[str, int]:
        """Return counts of what was shown and told."""
        return {**self._counts, "bad": self.bad, "unheard": self.unheard}
