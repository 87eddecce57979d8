"""One network that learns, whose update rule, weights and learning can be changed while pictures go through it.

A new update rule means a new pipeline. The two overlap: while the new one is built the old one goes on, then learning
stops in the old one, what it has learned moves over, new frames go to the new one, and the old one ends when it has
finished those it has. Nothing is shown twice, left out, or learned and lost.

    old    frames ... frames, frozen ... last results, closed
    new          built, warmed up ... load | frames ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from partime_async.errors import CheckpointError, ConfigurationError
from partime_async.frame import Value
from partime_async.learning import Learner, UpdateRule, rules
from partime_async.learning.learner import Loss, OptimizerFactory
from partime_async.offload import in_thread
from partime_async.pipeline import Pipeline

RULES: Mapping[str, Callable[[], UpdateRule]] = {
    "pipedream": rules.pipedream,
    "partime": rules.partime,
    "replay": rules.replay,
    "exact": rules.exact,
}
"""What the page offers, the best first."""

LARGEST_WEIGHTS = 16 * 1024 * 1024
"""Bytes of a file of weights that a browser may send."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a network is and how it learns; all but the update rule.

    Attributes:
        network: Builds it.
        example: One frame for it.
        balance: Layers of each stage.
        loss: See `Learner`.
        optimizer: See `Learner`.
        clip_norm: See `Learner`.
        devices: See `Pipeline`.
    """

    network: Callable[[], nn.Module]
    example: Value
    balance: list[int]
    loss: Loss
    optimizer: OptimizerFactory
    clip_norm: float | None = None
    devices: tuple[str, ...] = ("cpu",)


class Generation:
    """One pipeline of an engine, from its building until its successor has taken over.

    Attributes:
        number: From 1.
        rule: The name of its update rule.
        pipeline: Running.
        is_over: Whether a successor has taken over: new frames go there.
    """

    def __init__(self, number: int, rule: str, pipeline: Pipeline) -> None:
        self.number = number
        self.rule = rule
        self.pipeline = pipeline
        self.is_over = False
        self._users = 0
        self._may_end = asyncio.Event()

    @contextmanager
    def used(self) -> Iterator[Pipeline]:
        """Keep the pipeline running while its feeds are open: ``with generation.used() as pipeline``."""
        self._users += 1
        try:
            yield self.pipeline
        finally:
            self._users -= 1
            self._settle()

    def end(self) -> None:
        """Let the pipeline end as soon as nobody uses it."""
        self.is_over = True
        self._settle()

    async def ended(self) -> None:
        """Wait until it may end.

        Cancellation: safe.
        """
        await self._may_end.wait()

    def _settle(self) -> None:
        if self.is_over and not self._users:
            self._may_end.set()


class Engine:
    """A network with everything a page can do to it: ``async with Engine(recipe) as engine``.

    Changes are made one at a time, in the order in which they were asked for.

    Args:
        recipe: What the network is.
        name: Of its tasks.
    """

    def __init__(self, recipe: Recipe, *, name: str) -> None:
        self._recipe = recipe
        self._name = name
        self._changing = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()
        self._folder: TemporaryDirectory[str] | None = None
        self._files = 0
        self._current: Generation | None = None
        self._next: asyncio.Event = asyncio.Event()
        self._is_frozen = False
        self._initial = Path()
        self._error: BaseException | None = None

    @property
    def error(self) -> BaseException | None:
        """What stopped the network; None: it runs."""
        return self._error

    @property
    def generation(self) -> Generation:
        """The pipeline that takes new frames."""
        if self._current is None:
            raise ConfigurationError("the engine does not run. Use it inside `async with engine`.")
        return self._current

    @property
    def is_frozen(self) -> bool:
        """Whether the network learns nothing now."""
        return self._is_frozen

    async def generations(self) -> AsyncIterator[Generation]:
        """Yield the pipeline that takes new frames, and each that takes over from it.

        Cancellation: safe.
        """
        while True:
            generation, changed = self.generation, self._next
            yield generation
            await changed.wait()

    # -- what can be done to it -----------------------------------------------------------------------------------

    async def freeze(self) -> None:
        """Stop learning; predictions go on."""
        async with self._changing:
            await self.generation.pipeline.freeze()
            self._is_frozen = True

    async def thaw(self) -> None:
        """Go on learning."""
        async with self._changing:
            await self.generation.pipeline.thaw()
            self._is_frozen = False

    async def reset(self) -> None:
        """Go back to the weights that the network began with."""
        async with self._changing:
            await self.generation.pipeline.load(self._initial)

    async def save(self) -> Path:
        """Keep all that was learned in a file of the engine's own, and return its path."""
        async with self._changing:
            return await self._save(self.generation.pipeline)

    async def load(self, path: Path) -> None:
        """Go back to what `save` kept.

        Raises:
            CheckpointError: The file is of another network; nothing was changed.
        """
        async with self._changing:
            await self.generation.pipeline.load(path)

    async def forget(self, path: Path) -> None:
        """Throw a file away that `save` returned."""
        await in_thread(lambda: path.unlink(missing_ok=True), name="partime demo file")

    async def exported(self) -> bytes:
        """Return all that was learned as the contents of a safetensors file."""
        path = await self.save()
        try:
            return await in_thread(path.read_bytes, name="partime demo file")
        finally:
            await self.forget(path)

    async def imported(self, data: bytes) -> None:
        """Take the weights of a safetensors file over, and what its optimisers remember if they are the same.

        Raises:
            CheckpointError: It is damaged, or of another network; nothing was changed.
        """
        path = self._new_file()
        await in_thread(lambda: path.write_bytes(data), name="partime demo file")
        try:
            async with self._changing:
                await self.generation.pipeline.load(path, weights_only=True)
        except CheckpointError as error:
            # Where it was put on its way is nobody's business.
            raise CheckpointError("the file", str(error).removeprefix(f"{path}: ")) from error
        finally:
            await self.forget(path)

    async def edit(self, change: Callable[[dict[str, Tensor]], None]) -> None:
        """Change the weights between two frames.

        Args:
            change: Writes into a copy of all weights, which then replaces them.
        """
        async with self._changing:
            pipeline = self.generation.pipeline
            state = await pipeline.state_dict()
            change(state)
            await pipeline.load_state_dict(state)

    async def use_rule(self, rule: str) -> None:
        """Learn by another update rule from now on, with the same weights and optimisers.

        Raises:
            ConfigurationError: There is no such rule; the caller's fault.
        """
        _checked(rule)
        async with self._changing:
            old = self.generation
            if old.rule == rule:
                return
            new = await self._start(old.number + 1, rule)
            try:
                await old.pipeline.freeze()
                path = await self._save(old.pipeline)
                await new.pipeline.load(path)
                await self.forget(path)
                if self._is_frozen:
                    await new.pipeline.freeze()
            except BaseException:
                new.end()
                if not self._is_frozen:
                    await old.pipeline.thaw()
                raise
            self._take_over(new)
            old.end()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._folder = await in_thread(lambda: TemporaryDirectory(prefix="partime-demo-"), name="partime demo file")
        try:
            await self._tasks.__aenter__()
            first = await self._start(1, next(iter(RULES)))
            self._initial = await self._save(first.pipeline)
            self._take_over(first)
        except BaseException:
            await in_thread(self._folder.cleanup, name="partime demo file")
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._current is not None:
            self._current.end()
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        finally:
            self._current = None
            if self._folder is not None:
                await in_thread(self._folder.cleanup, name="partime demo file")

    async def _start(self, number: int, rule: str) -> Generation:
        """Build and enter a pipeline, in a task that holds it until it may end."""
        started: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._tasks.create_task(self._hold(number, rule, started), name=f"partime {self._name} {number}")
        return await started

    async def _hold(self, number: int, rule: str, started: asyncio.Future[Generation]) -> None:
        # Entered and left in one task, as a pipeline's tasks are its children.
        try:
            async with self._entered(rule) as pipeline:
                generation = Generation(number, rule, pipeline)
                if started.cancelled():
                    return
                started.set_result(generation)
                await generation.ended()
        except Exception as error:
            if started.done():
                self._error = error  # those who use its feeds get it, too
            else:
                started.set_exception(error)

    @asynccontextmanager
    async def _entered(self, rule: str) -> AsyncIterator[Pipeline]:
        recipe = self._recipe
        network = await in_thread(recipe.network, name="partime demo network")
        learner = Learner(recipe.loss, recipe.optimizer, rule=RULES[rule](), clip_norm=recipe.clip_norm)
        async with Pipeline(
            network,
            recipe.example,
            balance=recipe.balance,
            devices=list(recipe.devices),
            learner=learner,
            close_timeout_s=2.0,
        ) as pipeline:
            yield pipeline

    def _take_over(self, generation: Generation) -> None:
        self._current = generation
        changed, self._next = self._next, asyncio.Event()
        changed.set()

    async def _save(self, pipeline: Pipeline) -> Path:
        path = self._new_file()
        await pipeline.save(path)
        return path

    def _new_file(self) -> Path:
        assert self._folder is not None
        self._files += 1
        return Path(self._folder.name) / f"{self._files}.safetensors"


def _checked(rule: str) -> str:
    if rule not in RULES:
        raise ConfigurationError(f"unknown update rule {rule!r}. Use one of {', '.join(RULES)}.")
    return rule
