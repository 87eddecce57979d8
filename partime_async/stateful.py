"""Layers that remember: a state per feed, kept between its frames."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partime_async.devices import Work
from partime_async.errors import ConfigurationError
from partime_async.frame import Value


class Stateful(nn.Module):
    """Base of layers whose output depends on the frames before: recurrent cells, running statistics, filters.

    A subclass defines `initial_state` and `step`. In a pipeline every feed has a state of its own: it begins with the
    feed's first frame, goes with the feed, starts over at `Feed.reset_state`, and is detached after each frame, so that
    graphs do not grow. The frames of `Pipeline.process` are one feed. Each feed's outputs are those of the whole module
    run alone on its frames. Where a frame fails, the layers that it came through have seen it, as in the module itself.

    Outside a pipeline the module keeps one state, in `state`, until `reset_state`. It belongs to no `state_dict`, and a
    copy of the module starts without it.

    Example::

        class Memory(pa.Stateful):
            def __init__(self) -> None:
                super().__init__()
                self.cell = nn.GRUCell(64, 64)

            def initial_state(self) -> Tensor:
                return torch.zeros(1, 64)

            def step(self, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
                state = self.cell(value, state)
                return state, state
    """

    def __init__(self) -> None:
        super().__init__()
        self.state: Value | None = None

    def initial_state(self) -> Value:
        """Return the state before the first frame; it is moved to where the frame is."""
        raise ConfigurationError(f"{type(self).__name__} does not define initial_state(). Define it.")

    def step(self, value: Value, state: Value) -> tuple[Value, Value]:
        """Return the output for one frame, and the state behind it. Must not write into `state`."""
        raise ConfigurationError(f"{type(self).__name__} does not define step(). Define it.")

    def forward(self, value: Value) -> Value:
        """Run one frame and remember the state behind it.

        Raises:
            ConfigurationError: The subclass is at fault: a state that is no tensor or tuple of tensors, or one that
                `step` wrote into.
        """
        before = self._checked(self.initial_state(), "initial_state()") if self.state is None else self.state
        if self.state is None:
            before = _moved(before, _tensors(value)[0].device)
        versions = [_version(tensor) for tensor in _tensors(before)]
        output, after = self.step(value, before)
        if versions != [_version(tensor) for tensor in _tensors(before)]:
            raise ConfigurationError(
                f"{type(self).__name__}.step() wrote into the state it was given, which other frames may still need. "
                "Make a new tensor of it instead."
            )
        self.state = self._checked(after, "step()")
        return output

    def reset_state(self) -> None:
        """Forget all frames."""
        self.state = None

    def __getstate__(self) -> dict[str, object]:
        # For `copy` and `pickle`: a state hangs on the frames, and perhaps on a graph, that the copy never saw.
        return {**vars(self), "state": None}

    def _checked(self, state: object, source: str) -> Value:
        if isinstance(state, Tensor):
            return state
        if isinstance(state, tuple) and all(isinstance(part, Tensor) for part in state):
            return state
        raise ConfigurationError(
            f"{type(self).__name__}.{source} gave a {type(state).__name__} for a state. "
            "Let it be a tensor or a flat tuple of tensors."
        )


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a stage's layers remember of one feed, since its latest reset."""

    epoch: int
    states: tuple[Value | None, ...]


class StateKeeper:
    """The states of one stage's `Stateful` layers, for every feed; used on the stage's device thread only.

    Args:
        module: The stage's layers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = stateful_layers(module)
        self._kept: dict[Hashable, _Kept] = {}

    def __bool__(self) -> bool:
        return bool(self._layers)

    def __len__(self) -> int:
        return len(self._kept)

    def work(self, work: Work, owner: Hashable, epoch: int) -> Work:
        """Return the work, done with the state of the feed that the frame came from.

        Args:
            work: Runs the layers.
            owner: The feed.
            epoch: How often the feed was reset before the frame. Every frame carries it, not only the first one behind
                a reset: that one may be dropped, or fail before it comes here.
        """

        def with_state(value: Value) -> Value:
            kept = self._kept.get(owner)
            output: Value = ()
            with states_of(self._layers, kept.states if kept is not None and kept.epoch == epoch else None):
                try:
                    output = work(value)
                finally:
                    # Also of a frame that failed: the layers that it came through have seen it.
                    lent = {_storage(tensor) for tensor in (*_tensors(value), *_tensors(output))}
                    states = tuple(_own(layer.state, lent) for layer in self._layers)
                    self._kept[owner] = _Kept(epoch, states)
            return output

        return with_state

    def clear(self) -> None:
        """Let go of every feed's state: all start over."""
        self._kept.clear()

    def forget(self, owner: Hashable) -> None:
        """Let go of a feed's state."""
        self._kept.pop(owner, None)


def stateful_layers(module: nn.Module) -> list[Stateful]:
    """Return the layers of a module that remember."""
    return [layer for layer in module.modules() if isinstance(layer, Stateful)]


@contextmanager
def states_of(layers: list[Stateful], states: tuple[Value | None, ...] | None) -> Iterator[None]:
    """Let layers have these states (None: the initial ones), and afterwards those that they had."""
    before = [layer.state for layer in layers]
    try:
        for number, layer in enumerate(layers):
            layer.state = None if states is None else states[number]
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer.state = state


def _own(state: Value | None, lent: set[int]) -> Value | None:
    """Return a state without history, in memory of its own.

    What comes in belongs to whoever put it, and what goes out to whoever reads it: they may write into it while the
    state has to last until the next frame.
    """
    if state is None:
        return None
    owned = tuple(
        tensor.detach().clone() if _storage(tensor) in lent else tensor.detach() for tensor in _tensors(state)
    )
    return owned[0] if isinstance(state, Tensor) else owned


def _moved(state: Value, device: torch.device) -> Value:
    if isinstance(state, Tensor):
        return state.to(device)
    return tuple(tensor.to(device) for tensor in state)


def _tensors(value: Value) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse tensor, or another without one storage
        return id(tensor)


def _version(tensor: Tensor) -> int:
    # Made in inference mode it has no counter, and nothing may write into it.
    return -1 if tensor.is_inference() else tensor._version
