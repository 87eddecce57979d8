"""Layers that remember: a state per feed, kept between its frames."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from partime_async.devices import Work
from partime_async.frame import Value


class Stateful(nn.Module):
    """Base of layers whose output depends on the frames before: recurrent cells, running statistics, filters.

    A subclass defines `initial_state` and `step`. In a pipeline every feed has a state of its own: it begins with the
    feed's first frame, goes with the feed, starts over at `Feed.reset_state`, and is detached after each frame, so that
    graphs do not grow. Outside a pipeline the module keeps one state, in `state`, until `reset_state`.

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
        """Return the state before the first frame."""
        raise TypeError(f"{type(self).__name__} does not define initial_state(). Define it.")

    def step(self, value: Value, state: Value) -> tuple[Value, Value]:
        """Return the output for one frame, and the state behind it. Must not write into `state`."""
        raise TypeError(f"{type(self).__name__} does not define step(). Define it.")

    def forward(self, value: Value) -> Value:
        """Run one frame and remember the state behind it."""
        before = self.initial_state() if self.state is None else self.state
        output, self.state = self.step(value, before)
        return output

    def reset_state(self) -> None:
        """Forget all frames."""
        self.state = None


class StateKeeper:
    """The states of one stage's `Stateful` layers, for every feed; used on the stage's device thread only.

    Args:
        module: The stage's layers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = stateful_layers(module)
        self._states: dict[Hashable, tuple[Value | None, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._layers)

    def __len__(self) -> int:
        return len(self._states)

    def work(self, work: Work, owner: Hashable, *, is_reset: bool) -> Work:
        """Return the work, done with the state of the feed that the frame came from.

        If the work raises, the feed's state stays as it was before the frame.
        """

        def with_state(value: Value) -> Value:
            if is_reset:
                self.forget(owner)
            with states_of(self._layers, self._states.get(owner)):
                output = work(value)
                self._states[owner] = tuple(_detached(layer.state) for layer in self._layers)
            return output

        return with_state

    def clear(self) -> None:
        """Let go of every feed's state."""
        self._states.clear()

    def forget(self, owner: Hashable) -> None:
        """Let go of a feed's state."""
        self._states.pop(owner, None)


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


def _detached(state: Value | None) -> Value | None:
    if state is None or isinstance(state, Tensor):
        return None if state is None else state.detach()
    return tuple(tensor.detach() for tensor in state)
