"""Tracing: what becomes a layer, and what a trace must not forget."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

from partime_async.errors import PartitionError
from partime_async.models.resnet import OnMain
from partime_async.partition.layers import chain
from tests.partition.nets import FRAME, Branching, Frozen, Remembering, TwoEnds, assert_same, traced


def test_submodule_that_cannot_be_traced_stays_whole() -> None:
    """A part with a branch, with memory, with hooks or with no_grad becomes one layer that does what it did."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.branching = Branching()
            self.remembering = Remembering()
            self.frozen = Frozen()
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.remembering(self.branching(self.first(x)))
            result: Tensor = self.last(self.frozen(x))
            return result

    module = Parts()
    layers = chain(module, FRAME)
    assert layers.names == ("first", "branching", "remembering", "frozen", "last")
    whole = layers.slice(0, 5)
    for scale in (1.0, -2.0, 3.0):
        assert_same(whole(FRAME * scale), module(FRAME * scale))


def test_hooks_of_submodules_run_in_the_slices() -> None:
    """A submodule with a hook stays whole, and its hook runs with every frame."""
    seen: list[int] = []
    module = TwoEnds().eval()
    module.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    _, example = traced()
    layers = chain(module, example)
    assert "blocks.0" in layers.names
    seen.clear()
    layers.slice(0, len(layers))(example)
    assert seen == [1]


def test_constant_made_in_forward_moves_with_its_layer_and_stays_out_of_the_state() -> None:
    """A tensor that forward makes is a buffer of the slice that uses it, and no key of the state_dict."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) * torch.tensor([1.0, 0.0, 1.0, 0.0])

    layers = chain(Masked(), FRAME)
    last = layers.slice(1, 2)
    assert [tuple(buffer.shape) for buffer in last.buffers()] == [(4,)]
    assert layers.state_dict() == {}
    assert last.state_dict() == {}


def test_buffer_read_in_forward_is_read_at_each_frame() -> None:
    """An expression of a buffer is computed with each frame, not once while tracing."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Buffer(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) * (self.scale * 2)

    layers = chain(Scaled(), FRAME)
    whole = layers.slice(0, len(layers))
    whole.load_state_dict({"scale": torch.full((4,), 5.0)})
    assert_same(whole(FRAME), torch.tanh(FRAME) * 10)


def test_modules_running_in_other_threads_while_tracing_are_not_recorded() -> None:
    """A stage at work in another thread goes on undisturbed while a module is traced."""
    bystander, results = nn.Linear(4, 4), []

    class Meanwhile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: results.append(bystander(FRAME)))
            thread.start()
            thread.join()
            return torch.tanh(x)

    layers = chain(Meanwhile(), FRAME)
    assert layers.names == ("tanh",)
    assert all(isinstance(result, Tensor) for result in results)


def test_weights_taken_past_the_module_are_refused() -> None:
    """An expression of a weight that a trace would freeze as a constant is an error, not a silent one."""

    class Sidestepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            weight = self._parameters["weight"]
            assert weight is not None
            return x * (weight * 2)

    with pytest.raises(PartitionError, match="takes for a constant"):
        chain(Sidestepping(), FRAME)


def test_tuple_with_a_buffer_leaves_its_stage_as_copies() -> None:
    """A layer that gives its own buffer beside its result gives a copy of it when a stage ends there."""

    class WithMemory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.Buffer(torch.ones(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, self.memory

    layers = chain(nn.Sequential(WithMemory(), OnMain(nn.Linear(4, 4))), FRAME)
    start = layers.slice(0, 1)
    _, memory = start(FRAME)
    start.get_buffer("0.memory").zero_()
    assert_same(memory, torch.ones(4))


def test_part_of_a_module_that_is_held_whole_is_held_once() -> None:
    """A layer and a part of it called by itself are one module in the slice, with the original's keys."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.attention(x, x, x)
            result: Tensor = self.attention.out_proj(y)
            return result

    module = Both()
    layers = chain(module, FRAME)
    whole = layers.slice(0, len(layers))
    assert set(whole.state_dict()) == set(module.state_dict())
    assert_same(whole(FRAME), module(FRAME))
    assert layers.forbidden_cuts == {1, 2}


def test_state_that_a_module_sets_on_a_submodule_is_refused() -> None:
    """Memory kept in an attribute of a leaf is found, too."""

    class Setting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            self.linear.last = y
            return y

    with pytest.raises(PartitionError, match="keeps state in the attribute 'last'"):
        chain(Setting(), FRAME)


def test_slices_can_be_traced_and_frozen() -> None:
    """A slice is a module as any other to those who capture it."""
    module, example = traced()
    layers = chain(module.eval(), example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        part = layers.slice(0, 4)
        # Without its numeric optimisations, which fold BatchNorm into the convolution before it: other numbers.
        frozen = torch.jit.freeze(torch.jit.trace(part, (example,)), optimize_numerics=False)  # type: ignore[no-untyped-call]
        assert_same(frozen(example), part(example))
