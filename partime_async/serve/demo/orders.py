"""What any browser may ask of the network: stop and go on, begin anew, another rule, snapshots, files of weights."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from partime_async.errors import ConfigurationError, PartimeError
from partime_async.offload import in_thread
from partime_async.serve.client import Client
from partime_async.serve.demo.engine import LARGEST_WEIGHTS, Engine
from partime_async.serve.demo.show import Show
from partime_async.serve.demo.transfer import Transfer, note_of, with_note

CHANGES_WAITING = 4
"""Changes of the network that one browser may ask for before the first of them is done."""

Command = Mapping[str, object]
Order = Callable[["Visitor", Command], Awaitable[None] | None]
Change = Callable[["Visitor", Command], Awaitable[None]]


class Visitor:
    """One browser.

    Args:
        client: Its connection.

    Attributes:
        show: What it watches; None: it has not said.
        tasks: Ends with the visit.
        transfer: Weights on their way to or from it.
    """

    def __init__(self, client: Client, tasks: asyncio.TaskGroup) -> None:
        self.client = client
        self.tasks = tasks
        self.show: Show | None = None
        self.camera: asyncio.Task[None] | None = None
        self.changes = 0
        self.transfer = Transfer()


class Keeper(Protocol):
    """Whose network it is, and who is told."""

    name: str
    """Of the mode."""

    @property
    def engine(self) -> Engine:
        """The network."""

    def announce(self) -> None:
        """Tell all browsers how things are."""

    def tell_all(self, message: Mapping[str, object]) -> bool:
        """Tell all browsers something that must arrive."""

    def keep(self) -> None:
        """Keep what belongs to a snapshot beside the weights."""

    def go_back(self) -> None:
        """Go back to what `keep` kept."""

    def start_over(self) -> None:
        """Forget what was learned beside the weights."""

    def noted(self) -> Mapping[str, object]:
        """Return what belongs to the weights in a file of them."""

    def take_note(self, noted: Mapping[str, object]) -> None:
        """Take over what came with a file of weights."""


class NetworkOrders:
    """Carries the orders out.

    Args:
        desk: Whose network it is.
    """

    def __init__(self, desk: Keeper) -> None:
        self._desk = desk
        self._snapshot: Path | None = None

    @property
    def has_snapshot(self) -> bool:
        """Whether there is one to go back to."""
        return self._snapshot is not None

    def table(self) -> dict[str, Order]:
        """Return the orders by name."""
        return {
            "download": self._download,
            "upload": self._upload,
            "freeze": self.changing(self._freeze),
            "thaw": self.changing(self._thaw),
            "reset": self.changing(self._reset),
            "rule": self.changing(self._rule),
            "snapshot": self.changing(self._take_snapshot),
            "back": self.changing(self._go_back),
        }

    # -- the network ----------------------------------------------------------------------------------------------

    async def _freeze(self, visitor: Visitor, command: Command) -> None:
        """``{do: freeze}``: stop learning."""
        await self._desk.engine.freeze()

    async def _thaw(self, visitor: Visitor, command: Command) -> None:
        """``{do: thaw}``: go on learning."""
        await self._desk.engine.thaw()

    async def _reset(self, visitor: Visitor, command: Command) -> None:
        """``{do: reset}``: begin anew."""
        self._desk.start_over()  # first: what is kept would teach the new weights the old things
        await self._desk.engine.reset()
        self._note("The network starts over.")

    async def _rule(self, visitor: Visitor, command: Command) -> None:
        """``{do: rule, rule: pipedream}``: learn by another update rule."""
        await self._desk.engine.use_rule(str(command.get("rule")))
        self._note(f"Learning by the rule {self._desk.engine.generation.rule} now.")

    async def _take_snapshot(self, visitor: Visitor, command: Command) -> None:
        """``{do: snapshot}``: keep all that was learned, to go back to."""
        before, self._snapshot = self._snapshot, await self._desk.engine.save()
        self._desk.keep()
        if before is not None:
            await self._desk.engine.forget(before)
        self._note("Snapshot taken.")

    async def _go_back(self, visitor: Visitor, command: Command) -> None:
        """``{do: back}``: go back to the snapshot."""
        if self._snapshot is None:
            raise ConfigurationError("there is no snapshot. Take one first.")
        await self._desk.engine.load(self._snapshot)
        self._desk.go_back()
        self._note("Back at the snapshot.")

    async def _download(self, visitor: Visitor, command: Command) -> None:
        """``{do: download, offset: 0}``: one piece of the weights; the first one takes them."""
        offset = whole(command, "offset", LARGEST_WEIGHTS)
        if offset:
            visitor.client.reply(visitor.transfer.piece(offset))
            return

        async def take(visitor: Visitor, command: Command) -> None:
            noted = {"mode": self._desk.name, **self._desk.noted()}
            data = await self._desk.engine.exported()
            visitor.transfer.offer(await in_thread(partial(with_note, data, noted), name="partime demo file"))
            visitor.client.reply(visitor.transfer.piece(0))

        await self._change(take, visitor, command)

    async def _upload(self, visitor: Visitor, command: Command) -> None:
        """``{do: upload, offset, total, data}``: one piece of weights; the last one puts them in place."""
        data = str(command.get("data", ""))
        received = visitor.transfer.take(
            whole(command, "offset", LARGEST_WEIGHTS), whole(command, "total", LARGEST_WEIGHTS + 1), data
        )
        if received is None:
            visitor.client.reply({"type": "upload", "received": visitor.transfer.received})
            return

        async def put(visitor: Visitor, command: Command) -> None:
            noted = await in_thread(partial(note_of, received), name="partime demo file")
            if noted.get("mode", self._desk.name) != self._desk.name:
                raise ConfigurationError(
                    f"the file is of the mode {noted['mode']!r:.20}. Choose that one, and load it."
                )
            await self._desk.engine.imported(received)
            self._desk.take_note(noted)
            visitor.client.reply({"type": "upload", "received": len(received), "done": True})
            self._note("Weights loaded.")

        await self._change(put, visitor, command)

    def changing(self, order: Change) -> Order:
        """Make an order of what takes a while and changes the network."""
        return partial(self._change, order)

    async def _change(self, order: Change, visitor: Visitor, command: Command) -> None:
        """Carry an order out beside the commands that follow it: a hand that lets go must not wait for a file."""
        if visitor.changes >= CHANGES_WAITING:
            raise ConfigurationError(f"{CHANGES_WAITING} changes are on their way already. Wait a moment.")
        visitor.changes += 1

        async def carry_out() -> None:
            try:
                await order(visitor, command)
            except (PartimeError, OSError) as error:
                visitor.client.reply({"type": "error", "error": str(error)})
            finally:
                visitor.changes -= 1
                self._desk.announce()

        visitor.tasks.create_task(carry_out(), name=f"partime demo {command.get('do')}")

    def _note(self, text: str) -> None:
        self._desk.tell_all({"type": "note", "text": text})


def whole(command: Command, name: str, below: int) -> int:
    """Return a whole number of a command.

    Raises:
        ConfigurationError: It is none, or out of range; the browser's fault.
    """
    number = command.get(name)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < below:
        raise ConfigurationError(f"{name} is {number!r:.40}. Send a whole number from 0 to {below - 1}.")
    return number
