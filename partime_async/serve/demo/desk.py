"""What both services of the demo share: the browsers that watch, what they may ask for, and what all of them are told.

All browsers see, and change, one network. Each has its own camera, and all of them share the moving scene.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from partime_async.errors import ConfigurationError, PartimeError
from partime_async.frame import SourceFrame
from partime_async.iteration import AsyncFrames, aiter_frames
from partime_async.pipeline import Pipeline
from partime_async.serve.client import Client, ClientKind
from partime_async.serve.demo.engine import RULES, Engine, Recipe
from partime_async.serve.demo.networks import HEIGHT, WIDTH
from partime_async.serve.demo.orders import Command, NetworkOrders, Order, Visitor, whole
from partime_async.serve.demo.readings import StageMeter
from partime_async.serve.demo.scene import LOOKS, LiveScene
from partime_async.serve.demo.show import Show

TELL_EVERY_S = 0.1
"""Telemetry goes out this often."""


class Mode:
    """What a mode may add to a desk; by itself it adds nothing."""

    def keep(self) -> None:
        """Keep what the mode knows beside the weights, as a snapshot is taken."""

    def go_back(self) -> None:
        """Go back to what `keep` kept."""

    def start_over(self) -> None:
        """Forget what the mode knows beside the weights."""

    def noted(self) -> Mapping[str, object]:
        """Return what belongs to the weights in a file of them, as JSON has it."""
        return {}

    def take_note(self, noted: Mapping[str, object]) -> None:
        """Take over what came with a file of weights, which are in place now."""

    def left(self, visitor: Visitor) -> None:
        """Take note that a browser leaves what it watches."""

    async def work(self) -> None:
        """Do what goes on for as long as the service runs, until cancelled."""
        await asyncio.Event().wait()

    def tick(self) -> None:
        """Do what is to be done ten times a second."""

    def greet(self, visitor: Visitor) -> None:
        """Tell a browser that has just come what only newcomers need."""


class Desk(Mode, ABC):
    """A service: one network, and the browsers around it.

    Args:
        recipe: What the network is.
        name: Of the mode.
        scene_size: Width and height of the moving scene.

    Attributes:
        engine: Has the network.
        name: Of the mode.
        visitors: The browsers, by their connections.
    """

    def __init__(self, recipe: Recipe, *, name: str, scene_size: tuple[int, int]) -> None:
        self.engine = Engine(recipe, name=name)
        self.visitors: dict[Client, Visitor] = {}
        self.name = name
        self._scene = LiveScene(scene_size)
        self._scene_show: Show | None = None
        self._scene_task: asyncio.Task[None] | None = None
        self._working: list[asyncio.Task[None]] = []
        self._tasks = asyncio.TaskGroup()
        self._stages = StageMeter()
        self._error: BaseException | None = None
        self.orders = NetworkOrders(self)
        self._orders: dict[str, Order] = {
            "watch": self._watch,
            "look": self._look,
            "stranger": self._stranger,
            **self.orders.table(),
        }

    # -- what a mode adds -----------------------------------------------------------------------------------------

    @abstractmethod
    def new_show(self, open_source: Callable[[], AsyncFrames[SourceFrame]], *, name: str) -> Show:
        """Make a show of a source."""

    @abstractmethod
    def readings(self, show: Show) -> dict[str, object]:
        """Return the mode's own telemetry: small numbers, under short names."""

    def state(self) -> dict[str, object]:
        """Return what all browsers are to know, but for the telemetry."""
        return {
            "type": "state",
            "mode": self.name,
            "frozen": self.engine.is_frozen,
            "rule": self.engine.generation.rule,
            "rules": list(RULES),
            "looks": list(LOOKS),
            "look": self._scene.look,
            "snapshot": self.orders.has_snapshot,
            "visitors": len(self.visitors),
        }

    # -- the service ----------------------------------------------------------------------------------------------

    def describe(self) -> Mapping[str, object]:
        """Say what is served."""
        return {"mode": self.name, "sees": [HEIGHT, WIDTH], "rules": list(RULES), "looks": list(LOOKS)}

    @property
    def error(self) -> BaseException | None:
        """What stopped the service for all; None: it runs."""
        return self._error or self.engine.error

    def pipelines(self) -> Mapping[str, Pipeline]:
        """Return the pipeline that takes new frames."""
        return {self.name: self.engine.generation.pipeline}

    async def serve(self, client: Client) -> None:
        """Serve one browser until it leaves.

        Raises:
            ConfigurationError: It is no browser.

        Cancellation: safe.
        """
        if client.kind is not ClientKind.WEBRTC:
            raise ConfigurationError("the demo is a page for browsers. Open it at the server's own address.")
        async with asyncio.TaskGroup() as tasks:
            visitor = Visitor(client, tasks)
            self.visitors[client] = visitor
            try:
                self.announce()
                async for command in client.commands():
                    await self._obey(visitor, command)
            finally:
                del self.visitors[client]
                self._leave_show(visitor)
                self.announce()

    def announce(self) -> None:
        """Tell all browsers how things are."""
        if self.visitors:
            state = self.state()
            for client in self.visitors:
                client.reply(state)

    def tell_all(self, message: Mapping[str, object]) -> bool:
        """Tell all browsers something that must arrive, and return whether it went out to every one."""
        replies = [client.reply(message) for client in self.visitors]
        return all(replies)

    async def __aenter__(self) -> Self:
        await self.engine.__aenter__()
        try:
            await self._tasks.__aenter__()
            for work, what in ((self._tell, "telemetry"), (self.work, "work")):
                task = self._tasks.create_task(self._guarded(work()), name=f"partime {self.name} {what}")
                self._working.append(task)
        except BaseException as error:
            await self.engine.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in (*self._working, self._scene_task):
            if task is not None:
                task.cancel()
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        finally:
            await self.engine.__aexit__(kind, error, traceback)

    # -- shows ----------------------------------------------------------------------------------------------------

    def _watch(self, visitor: Visitor, command: Command) -> None:
        """``{do: watch, source: camera | scene}``: choose what to look at; also how a browser says hello."""
        self._leave_show(visitor)
        if command.get("source") == "camera":
            client = visitor.client
            show = self.new_show(partial(client.frames, size=(HEIGHT, WIDTH)), name="demo camera")
            visitor.camera = visitor.tasks.create_task(_camera(show, client), name=f"partime camera {client.number}")
        else:
            show = self._scene_for_all()
        show.watchers.add(visitor.client)
        visitor.show = show
        self.announce()
        self.greet(visitor)

    def _scene_for_all(self) -> Show:
        if self._scene_show is None:
            self._scene_show = self.new_show(lambda: aiter_frames(self._scene), name="demo scene")
            self._scene_task = self._tasks.create_task(self._guarded(self._scene_show.run()), name="partime demo scene")
        return self._scene_show

    def _leave_show(self, visitor: Visitor) -> None:
        self.left(visitor)
        show, visitor.show = visitor.show, None
        if show is None:
            return
        show.watchers.discard(visitor.client)
        if visitor.camera is not None:
            visitor.camera.cancel()
            visitor.camera = None
        elif not show.watchers and self._scene_task is not None:
            # Nobody looks: the network rests.
            self._scene_task.cancel()
            self._scene_show = self._scene_task = None

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """Do work of the service; what breaks it is told to all, and does not end the server."""
        try:
            await work
        except Exception as error:
            self._error = _first(error)
            words = f"{type(self._error).__name__}: {self._error}. Start the demo again."
            self.tell_all({"type": "error", "error": words})

    def _look(self, visitor: Visitor, command: Command) -> None:
        """``{do: look, look: 0}``: choose the look of the scene, for all."""
        self._scene.look = whole(command, "look", len(LOOKS))
        self.announce()

    def _stranger(self, visitor: Visitor, command: Command) -> None:
        """``{do: stranger}``: let something never seen cross the picture."""
        if visitor.show is not None:
            visitor.show.let_stranger_in()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _obey(self, visitor: Visitor, command: Command) -> None:
        order = self._orders.get(str(command.get("do")))
        try:
            if order is None:
                raise ConfigurationError(f"there is no order {command.get('do')!r:.40}. Reload the page.")
            done = order(visitor, command)
            if done is not None:
                await done
        except PartimeError as error:
            visitor.client.reply({"type": "error", "error": str(error)})

    async def _tell(self) -> None:
        """Send telemetry to all browsers, each about what it watches."""
        due = time.monotonic()
        while True:
            due = max(due + TELL_EVERY_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if not self.visitors:
                continue
            self.tick()
            stages = self._stages.readings(self.engine.generation.pipeline)
            told: dict[Show, dict[str, object]] = {}
            for client, visitor in self.visitors.items():
                show = visitor.show
                if show is None:
                    continue
                if show not in told:
                    told[show] = {"type": "t", **show.meter.readings(), **stages, **self.readings(show)}
                client.tell(told[show])


async def _camera(show: Show, client: Client) -> None:
    """Show one browser's camera; what is wrong with it is that browser's to know."""
    try:
        await show.run()
    except Exception as error:
        client.reply({"type": "error", "error": str(_first(error))})


def _first(error: Exception) -> BaseException:
    """Return what is inside groups of errors."""
    inner: BaseException = error
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner
