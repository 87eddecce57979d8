"""Chains of layers: the same numbers for every cut, and the caller's module untouched."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from partime_async.errors import PartitionError
from partime_async.partition.layers import chain
from partime_async.partition.probe import tensors_in
from tests.partition.nets import (
    FRAME,
    Block,
    assert_same,
    called,
    flat_resnet,
    nested,
    plain,
    recurrent,
    state_of,
    traced,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from partime_async.frame import Value

NETS = pytest.mark.parametrize("net", [plain, nested, flat_resnet, traced, recurrent])


@NETS
@pytest.mark.parametrize("training", [False, True])
def test_slices_cut_anywhere_give_the_modules_numbers_bit_for_bit(
    net: Callable[[], tuple[nn.Module, Value]], training: bool
) -> None:
    """Two slices run one after the other compute what the module computes, for every cut, in both modes."""
    module, example = net()
    module.train(training)
    layers = chain(module, example)
    buffers = dict(layers.slice(0, len(layers)).named_buffers())
    before = copy.deepcopy(buffers)
    torch.manual_seed(3)
    expected = called(module, example)
    for cut in range(1, len(layers)):
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
        torch.manual_seed(3)
        assert_same(layers.slice(cut, len(layers))(layers.slice(0, cut)(example)), expected)
        assert_same(buffers, dict(module.named_buffers()))


@NETS
def test_slices_one_layer_each_give_the_modules_numbers_and_gradients(
    net: Callable[[], tuple[nn.Module, Value]],
) -> None:
    """A chain cut at every place gives the module's output, and the module's gradients in its own parameters."""
    module, example = net()
    layers = chain(module.eval(), example)
    value = example
    for index in range(len(layers)):
        value = layers.slice(index, index + 1)(value)
    expected = called(module, example)
    assert_same(value, expected)
    for result in (value, expected):
        first = next(tensors_in(result))
        torch.autograd.backward(first.sum())
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    found = {name: parameter.grad for name, parameter in layers.slice(0, len(layers)).named_parameters()}
    assert_same(found, gradients)


@NETS
def test_slices_state_dicts_have_the_modules_keys(net: Callable[[], tuple[nn.Module, Value]]) -> None:
    """The keys of the slices of any division are the module's own, each once, and the tensors are the chain's."""
    module, example = net()
    layers = chain(module, example)
    whole = layers.state_dict()
    assert list(whole) == list(module.state_dict())
    for cut in range(1, len(layers)):
        first, second = layers.slice(0, cut).state_dict(), layers.slice(cut, len(layers)).state_dict()
        assert sorted([*first, *second]) == sorted(whole)
        assert all(tensor.data_ptr() == whole[name].data_ptr() for name, tensor in (first | second).items())


@NETS
def test_chain_leaves_the_module_and_the_random_state_untouched(net: Callable[[], tuple[nn.Module, Value]]) -> None:
    """Weights, buffers, modes, hooks, the example and the random state are bit for bit what they were."""
    module, example = net()
    calls: list[str] = []
    module.train()
    next(module.children()).eval()
    next(module.children()).register_forward_hook(lambda *_: calls.append("hook"))
    before, frame = state_of(module), copy.deepcopy(example)
    modes = [child.training for child in module.modules()]
    random_state = torch.get_rng_state()
    layers = chain(module, example)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert_same(dict(module.state_dict()), before)
    assert_same(example, frame)
    assert [child.training for child in module.modules()] == modes
    assert layers.training
    calls.clear()
    called(module, example)
    assert calls


def test_chain_of_nested_sequential_names_layers_by_their_path() -> None:
    """Nested Sequentials are flattened, an empty one vanishes, and the names are the paths of the layers."""
    module, example = nested()
    assert chain(module, example).names == ("0", "1.0.0", "1.0.1", "1.2", "2")


def test_chain_of_traced_module_has_no_layer_boundary_where_a_size_is_alive() -> None:
    """A layer of a traced module is one operation, or a run of them where something other than tensors would cross."""
    module, example = traced()
    layers = chain(module, example)
    assert layers.forbidden_cuts == frozenset()
    assert "stem" in layers.names
    assert "blocks.1.conv" in layers.names
    assert layers.names[-4:] == ("join", "view", "head", "add_4")


def test_chain_of_traced_module_passes_skip_connections_as_a_flat_tuple() -> None:
    """What a later layer still needs travels with the value, each tensor once."""
    module, example = traced()
    layers = chain(module.eval(), example)
    value = layers.slice(0, layers.names.index("blocks.1.conv"))(example)
    assert isinstance(value, tuple)
    assert [tuple(tensor.shape) for tensor in value] == [(5,), (2, 4, 6, 6), (2, 4, 6, 6)]


def test_chain_given_a_tuple_of_one_calls_forward_with_one_argument() -> None:
    """A tuple example stands for the arguments of forward even if it holds one tensor only."""
    block = Block(2).eval()
    image = torch.randn(1, 2, 4, 4)
    layers = chain(block, (image,))
    assert_same(layers.slice(0, len(layers))((image,)), block(image))


def test_chain_of_module_that_returns_its_input_has_one_layer() -> None:
    """A forward without any operation is one layer."""

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    layers = chain(Same(), torch.ones(2))
    assert len(layers) == 1
    assert_same(layers.slice(0, 1)(torch.ones(2)), torch.ones(2))


def test_slice_out_of_range_raises() -> None:
    """A run of layers that does not exist is refused with the chain's length."""
    layers = chain(*plain())
    for start, stop in ((0, 0), (2, 1), (-1, 2), (0, 5)):
        with pytest.raises(PartitionError, match="chain of 4"):
            layers.slice(start, stop)


def test_copy_of_a_chain_has_weights_of_its_own() -> None:
    """Writing into a copy leaves the chain's weights alone."""
    layers = chain(*plain())
    before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    with torch.no_grad():
        for parameter in layers.copy().slice(0, 4).parameters():
            parameter.zero_()
    assert_same(dict(layers.state_dict()), before)


def test_slice_loads_a_part_of_the_modules_state() -> None:
    """A slice takes its keys of a state_dict of the original module, strictly."""
    module, example = nested()
    layers = chain(module.eval(), example)
    other, _ = nested()
    part = layers.slice(1, len(layers))
    part.load_state_dict({key: tensor for key, tensor in other.state_dict().items() if key in part.state_dict()})
    layers.slice(0, 1).load_state_dict({key: other.state_dict()[key] for key in ("0.weight", "0.bias")})
    assert_same(layers.slice(0, len(layers))(example), other.eval()(example))


def test_traceback_of_a_failing_layer_shows_its_call() -> None:
    """An error inside a slice keeps its own type and a traceback through the line that called the layer."""
    layers = chain(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), FRAME)
    with pytest.raises(RuntimeError, match="mat1 and mat2") as info:
        layers.slice(0, 2)(torch.ones(1, 5))
    lines = [str(entry) for entry in info.traceback]
    assert any("layers 0 to 1" in line and "(value)" in line for line in lines)


def test_deep_copy_of_a_slice_is_independent() -> None:
    """A slice can be copied, and the copy computes with weights of its own."""
    module, example = traced()
    layers = chain(module.eval(), example)
    whole = layers.slice(0, len(layers))
    twin = copy.deepcopy(whole)
    with torch.no_grad():
        for tensor in itertools.chain(twin.parameters(), twin.buffers()):
            tensor.zero_()
    assert_same(whole(example), called(module, example))
