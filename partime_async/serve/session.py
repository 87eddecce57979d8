"""One client's frames through one or more pipelines, one behind the other, and what comes out back to the client."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from partime_async.errors import FeedClosed, FrameError, PartimeError
from partime_async.feed import Feed
from partime_async.frame import Result, SourceFrame, Value
from partime_async.iteration import aiter_frames
from partime_async.learning.statistics import LossMeter
from partime_async.serve.client import Client, ClientKind
from partime_async.serve.late import Label, LateTargets
from partime_async.sinks import Renderer
from partime_async.sockets.answers import without_batch
from partime_async.webrtc.worker import Worker

Teach = Callable[[AsyncIterable[SourceFrame]], AsyncIterator[SourceFrame]]
"""Gives frames their targets, such as `partime_async.targets.ahead`."""

_TELEMETRY_S = 0.5
_LARGEST_LABEL = 1 << 31


def batched(tensor: Tensor) -> Value:
    """Return a target as a loss takes it: with a batch dimension. A class is sent as one whole number."""
    return tensor[None]


class Session:
    """Runs until the client leaves.

    Args:
        client: Whose frames they are.
        feeds: Each takes what comes out of the one before; they are open.
        example: What the first takes.
        teach: Gives frames their targets; None: they have those that the client sent, or none.
        to_target: Makes a loss's target of a tensor that the client sent without a batch dimension.
        painter: Draws pictures of results, for clients that see a video.
        label: Takes targets of earlier frames, by their numbers in the last feed's pipeline; None: nothing learns from
            what clients say.
    """

    def __init__(
        self,
        client: Client,
        feeds: Sequence[Feed],
        *,
        example: Value,
        teach: Teach | None,
        to_target: Callable[[Tensor], Value],
        painter: Worker,
        label: Label | None,
    ) -> None:
        self._client = client
        self._feeds = feeds
        self._example = example
        self._teach = teach
        self._to_target = to_target
        self._painter = painter
        self._renderer = Renderer()
        self._target: Value | None = None
        self._losses = LossMeter()
        self._late = LateTargets(label)

    async def run(self) -> None:
        """Move frames and results until the client leaves.

        Cancellation: safe.
        """
        # The feeds' last results come after the last frame, so what is cancelled here waits for nothing any more.
        async with asyncio.TaskGroup() as tasks:
            aside = [tasks.create_task(self._obey()), tasks.create_task(self._tell())]
            for before, behind in zip(self._feeds, self._feeds[1:], strict=False):
                tasks.create_task(self._hand_on(before, behind))
            tasks.create_task(self._put())
            await self._give()
            for task in aside:
                task.cancel()

    # -- frames in ------------------------------------------------------------------------------------------------

    async def _put(self) -> None:
        feed = self._feeds[0]
        size = _camera_size(self._example) if self._client.kind is ClientKind.WEBRTC else None
        frames = self._client.frames(size=size)
        fitted = self._fitted(frames)
        taught = aiter_frames(fitted if self._teach is None else self._teach(fitted))
        try:
            async for frame in taught:
                try:
                    await feed.put(frame.value, frame.target, captured_at=frame.captured_at, context=frame)
                except FrameError as error:
                    self._client.refuse(str(error))
                else:
                    self._client.accept()
        except FeedClosed:
            return
        finally:
            feed.close()
            for each in (taught, fitted, frames):
                await each.aclose()

    async def _fitted(self, frames: AsyncIterable[SourceFrame]) -> AsyncGenerator[SourceFrame, None]:
        """Give tensors from outside a batch dimension, and frames the target that holds now."""
        is_live = self._client.kind is ClientKind.WEBRTC
        async for frame in frames:
            value, target = frame.value, frame.target
            if not is_live and isinstance(value, Tensor):
                value = value[None]
            if isinstance(target, Tensor):
                target = self._to_target(target)
            yield replace(frame, value=value, target=self._target if target is None else target)

    async def _hand_on(self, before: Feed, behind: Feed) -> None:
        try:
            async for result in before:
                if result.error is not None:
                    self._failed(result)
                    continue
                frame = result.context
                assert isinstance(frame, SourceFrame)
                await behind.put(result.output, frame.target, captured_at=result.captured_at, context=frame)
        except FeedClosed:
            return
        finally:
            behind.close()

    # -- results out ----------------------------------------------------------------------------------------------

    async def _give(self) -> None:
        client = self._client
        async for result in self._feeds[-1]:
            frame = result.context
            assert isinstance(frame, SourceFrame)
            if result.loss is not None:
                self._losses.record(result.loss)
            if isinstance(sequence := getattr(frame, "sequence", None), int):
                await self._learn_late(sequence, self._late.result(sequence, result.index))
            if result.error is not None:
                self._failed(result)
            elif client.kind is ClientKind.WEBSOCKET:
                if client.send(without_batch(result.output), answers=frame):
                    client.delivered(result)
            else:
                picture = await self._painter.run(partial(self._renderer.render, result.output, frame.image))
                client.show(picture, captured_at=result.captured_at)
                client.delivered(result)

    async def _learn_late(self, sequence: int, learning: Awaitable[None]) -> None:
        """Tell the client if a target that came behind its frame is of no use: no fault of what it sends otherwise."""
        try:
            await learning
        except FrameError as error:
            self._client.tell({"type": "unlearned", "sequence": sequence, "error": str(error)})

    def _failed(self, result: Result) -> None:
        said = {"type": "failed", "sequence": getattr(result.context, "sequence", None), "error": str(result.error)}
        # A camera's next frame may fail as well, 30 times a second.
        if self._client.kind is ClientKind.WEBSOCKET:
            self._client.reply(said)
        else:
            self._client.tell(said)

    # -- beside ---------------------------------------------------------------------------------------------------

    async def _obey(self) -> None:
        """Do what the client commands; all of it concerns this client alone."""
        async for command in self._client.commands():
            try:
                if command.get("type") == "label":
                    await self._label(command)
                else:
                    self._do(command)
            except PartimeError as error:
                self._client.refuse(str(error))
            else:
                self._client.accept()

    def _do(self, command: dict[str, object]) -> None:
        match command.get("type"):
            case "target":
                self._target = self._stated_target(command)
            case "reset":
                for feed in self._feeds:
                    feed.reset_state()
            case "ping":
                self._client.reply({"type": "pong", "at": command.get("at")})
            case other:
                raise FrameError(f"no command {other!r:.40}. Send target, label, reset or ping.")

    async def _label(self, command: dict[str, object]) -> None:
        """Take the target of a frame that the client sent before.

        Raises:
            FrameError: It names no frame, or no target; the client's fault.
        """
        if self._client.kind is ClientKind.WEBRTC:
            raise FrameError("a camera's frames have no numbers. Send target, for the frames from now on.")
        sequence, target = command.get("sequence"), command.get("target")
        if not isinstance(sequence, int) or isinstance(sequence, bool):
            raise FrameError(f"the frame to label is {sequence!r:.40}. Send the number that was sent with it.")
        stated = self._to_target(target) if isinstance(target, Tensor) else self._stated_target(command)
        if stated is None:
            raise FrameError(f"there is no target for frame {sequence}. Send label, or values.")
        await self._learn_late(sequence, self._late.take(sequence, stated))

    def _stated_target(self, command: dict[str, object]) -> Value | None:
        """Return the target that a command states; None: there is none.

        Raises:
            FrameError: It is none; the client's fault.
        """
        if (label := command.get("label")) is not None:
            if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < _LARGEST_LABEL:
                raise FrameError(f"the label is {label!r:.40}. Send a class's number, from 0.")
            return self._to_target(torch.tensor(label))
        if (values := command.get("values")) is None:
            return None
        try:
            return self._to_target(torch.tensor(values, dtype=torch.float32))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise FrameError(f"the target is no tensor: {error!s:.80}. Send lists of numbers.") from None

    async def _tell(self) -> None:
        """Tell the client how its frames fare, now and then."""
        while True:
            await asyncio.sleep(_TELEMETRY_S)
            self._client.tell(self._telemetry())

    def _telemetry(self) -> dict[str, object]:
        first, last = self._feeds[0].statistics(), self._feeds[-1].statistics()
        told: dict[str, object] = {
            "type": "telemetry",
            "offered": first.frames.offered,
            "delivered": last.frames.delivered,
            "failed": sum(feed.accounts.failed for feed in self._feeds),
            "dropped": dict(first.frames.dropped),
            "latency_ms": {"p50": _ms(last.latency_s.p50), "p99": _ms(last.latency_s.p99)},
            "age_ms": {"p50": _ms(last.age_s.p50), "p99": _ms(last.age_s.p99)},
        }
        if self._late.taken or self._late.refused:
            told["late_targets"] = {"taken": self._late.taken, "refused": self._late.refused}
        losses = self._losses.statistics()
        if losses.count:
            told["loss"] = losses.recent
        return told


def _camera_size(example: Value) -> tuple[int, int] | None:
    """Return height and width of what a network for pictures takes."""
    tensor = example if isinstance(example, Tensor) else example[0]
    return (int(tensor.shape[-2]), int(tensor.shape[-1])) if tensor.ndim == 4 else None


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2) if math.isfinite(seconds) else 0.0
