"""A pipeline's weights seen from outside: read, replaced, tried out and kept on disk, whether it runs or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from partime_async.assembly import Assembly, Part
from partime_async.checkpoint import Snapshot, StageRecord, read, write
from partime_async.errors import CheckpointError, ConfigurationError
from partime_async.evaluation import Contents, evaluated
from partime_async.flight import Mark
from partime_async.learning.stepper import Memory
from partime_async.offload import in_thread
from partime_async.run import Run

T = TypeVar("T")


class Weights:
    """What `Pipeline` does with its weights; see there.

    While the pipeline runs, all stages act between the same two frames; else a thread acts for them.

    Args:
        assembly: Has the weights.
        run: Uses them; None: the pipeline does not run.
    """

    def __init__(self, assembly: Assembly, run: Run | None) -> None:
        self._assembly = assembly
        self._run = run

    async def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of all weights and buffers."""
        states, _ = await self._at_a_boundary([part.snapshot for part in self._assembly.parts])
        return self._assembly.merge(states)

    async def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all weights and buffers."""
        await self._at_a_boundary(self._assembly.replacements(state), changes_weights=True)
        await self._tell_skip(state)

    async def evaluate(self, function: Callable[[nn.Module], T], *, threads: int) -> T:
        """Return what a function returns for a copy of the module."""
        assembly = self._assembly
        contents, _ = await self._at_a_boundary([part.contents for part in assembly.parts])

        def make() -> nn.Module:
            return assembly.copy(contents).eval()

        return await evaluated(function, make, threads=threads)

    async def snapshot(self) -> Snapshot:
        """Return a copy of all that was learned."""
        assembly = self._assembly
        records, frames = await self._at_a_boundary([_recording(part) for part in assembly.parts])
        stages = tuple(record for _, record in records if record is not None)
        weights = assembly.merge([contents.state for contents, _ in records])
        return Snapshot(weights, frames, stages or None)

    async def save(self, path: Path) -> None:
        """Write all that was learned to a file."""
        snapshot = await self.snapshot()
        await in_thread(lambda: write(path, snapshot), name="partime save")

    async def load(self, path: Path, *, weights_only: bool) -> None:
        """Go on from a file."""
        snapshot = await in_thread(lambda: read(path), name="partime load")
        await self.resume(snapshot, weights_only=weights_only, origin=str(path))

    async def resume(self, snapshot: Snapshot, *, weights_only: bool, origin: str = "the snapshot") -> None:
        """Go on from a snapshot; `origin` says in errors where it is from."""
        try:
            actions = self._assembly.replacements(snapshot.weights)
        except ConfigurationError as error:
            raise CheckpointError(origin, str(error)) from error
        if self._assembly.learner is not None and not weights_only:
            stages = _learned(origin, snapshot, self._assembly.parts)
            await in_thread(lambda: _rehearse(origin, stages, self._assembly.parts), name="partime load")
            learnings = zip(actions, stages, self._assembly.parts, strict=True)
            actions = [_resuming(action, stage, part) for action, stage, part in learnings]
        _, frames = await self._at_a_boundary(actions, changes_weights=True)
        self._assembly.frames += snapshot.frames - frames
        await self._tell_skip(snapshot.weights)

    async def _at_a_boundary(
        self, actions: Sequence[Callable[[], T]], *, changes_weights: bool = False
    ) -> tuple[list[T], int]:
        """Return what the actions return, and how many frames have been through the network before them."""
        before = self._assembly.frames
        if self._run is None:
            return await in_thread(lambda: [action() for action in actions], name="partime weights"), before
        mark = Mark(actions, changes_weights=changes_weights)
        results = await self._run.deliver(mark)
        return results, before + mark.boundary

    async def _tell_skip(self, state: Mapping[str, Tensor]) -> None:
        if self._run is not None and self._assembly.skip is not None:
            await self._assembly.skip.restart(state)


def _recording(part: Part) -> Callable[[], tuple[Contents, StageRecord | None]]:
    def record() -> tuple[Contents, StageRecord | None]:
        contents, learner = part.contents(), part.learner
        if learner is None:
            return contents, None
        memory = learner.memory()
        on_host = Memory(_on_host(memory.optimizer), _on_host(memory.scheduler))
        updates = learner.statistics().updates
        return contents, StageRecord(_trained(part), learner.version, updates, learner.kinds, on_host)

    return record


def _resuming(replace: Callable[[], None], stage: StageRecord, part: Part) -> Callable[[], None]:
    def resume() -> None:
        replace()
        assert part.learner is not None
        part.learner.resume(stage.memory, version=stage.version, updates=stage.updates)
        if part.recovery is not None:
            part.recovery.replaced()

    return resume


def _learned(origin: str, snapshot: Snapshot, parts: Sequence[Part]) -> Sequence[StageRecord]:
    """Return what each stage had learned, if it is what these stages can go on from."""
    remedy = "Pass weights_only=True to go on from the weights with the optimisers as they are."
    if snapshot.stages is None:
        raise CheckpointError(origin, f"it was made without a learner, and this pipeline has one. {remedy}")
    written = [stage.parameters for stage in snapshot.stages]
    wanted = [_trained(part) for part in parts]
    if written != wanted:
        raise CheckpointError(
            origin,
            f"its {len(written)} stage(s) train {list(map(len, written))} parameters, and those of this pipeline "
            f"{list(map(len, wanted))}, or others. Cut the network as it was, with balance, and freeze the same "
            f"parameters. Or: {remedy}",
        )
    for number, (stage, part) in enumerate(zip(snapshot.stages, parts, strict=True)):
        assert part.learner is not None
        if stage.kinds != part.learner.kinds:
            raise CheckpointError(
                origin,
                f"stage {number} was trained with {_told(stage.kinds)}, and this pipeline has "
                f"{_told(part.learner.kinds)}. Use the same optimizer and scheduler. Or: {remedy}",
            )
    return snapshot.stages


def _rehearse(origin: str, stages: Sequence[StageRecord], parts: Sequence[Part]) -> None:
    for number, (stage, part) in enumerate(zip(stages, parts, strict=True)):
        assert part.learner is not None
        try:
            part.learner.rehearse(stage.memory)
        except Exception as error:
            raise CheckpointError(
                origin,
                f"the optimizer or scheduler of stage {number} does not take what is in it: "
                f"{type(error).__name__}: {error}. Use those that it was made with.",
            ) from error


def _trained(part: Part) -> tuple[str, ...]:
    return tuple(name for name, weight in part.module.named_parameters() if weight.requires_grad)


def _told(kinds: tuple[str | None, str | None]) -> str:
    optimizer, scheduler = kinds
    return f"{optimizer or 'no optimizer'} and {scheduler or 'no scheduler'}"


def _on_host(value: T) -> T:
    """Return a tree of values with its tensors on the CPU."""
    made: object = value
    if isinstance(value, Tensor):
        made = value.to("cpu")
    elif isinstance(value, dict):
        made = type(value)({key: _on_host(item) for key, item in value.items()})
    elif type(value) in (list, tuple):
        made = type(value)(_on_host(item) for item in value)  # type: ignore[call-arg, attr-defined]
    return made  # type: ignore[return-value]  # of the same kind
