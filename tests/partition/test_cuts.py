"""Cuts that two stages must not have between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from partime_async.partition.layers import chain
from tests.partition.nets import assert_same


def test_cut_before_an_inplace_layer_is_forbidden() -> None:
    """A layer that overwrites its input cannot be the first of a stage, and the reason names it."""
    layers = chain(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)), torch.randn(1, 4))
    assert layers.forbidden_cuts == {1}
    assert "layer '1' writes in place" in layers.cut_reason(1)
    assert layers.cut_reason(2) == ""
    assert not layers.mutates_input


def test_cut_before_an_inplace_write_through_a_view_is_forbidden() -> None:
    """A write through an alias of the value counts, at every cut since the value was made."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.Unflatten(0, (2, 2)), nn.ReLU(inplace=True), nn.Tanh())
    layers = chain(module, torch.randn(1, 4))
    assert layers.forbidden_cuts == {1, 2, 3}


def test_cut_across_which_a_skip_connection_is_overwritten_is_forbidden() -> None:
    """A value that waits for a later layer to overwrite it must not cross a cut on its way."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            kept = self.a(x)
            changed = self.b(kept)
            kept.add_(changed)
            result: Tensor = self.c(kept)
            return result

    layers = chain(Late(), torch.randn(1, 4))
    assert layers.names == ("a", "b", "add_", "c")
    assert layers.forbidden_cuts == {1, 2}


def test_first_layer_in_place_mutates_the_input() -> None:
    """A write into the frame itself is told apart: it forbids no cut by itself, and the frame must be a copy."""
    example = -torch.ones(1, 4)
    layers = chain(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), example)
    assert layers.mutates_input
    assert layers.forbidden_cuts == frozenset()
    assert_same(example, -torch.ones(1, 4))


def test_inplace_layer_behind_another_of_the_same_storage_forbids_both_cuts() -> None:
    """The frame passed on as a view and then overwritten forbids the cut between, too."""
    layers = chain(nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), torch.randn(1, 2, 2))
    assert layers.mutates_input
    assert layers.forbidden_cuts == {1}


def test_cuts_between_layers_with_tied_weights_are_forbidden() -> None:
    """One stage must own a parameter: no cut between its first and its last use, and the reason names it."""
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    layers = chain(nn.Sequential(nn.Tanh(), first, nn.Tanh(), last, nn.Tanh()), torch.randn(1, 4))
    assert layers.forbidden_cuts == {2, 3}
    assert layers.cut_reason(2) == "layers '1' and '3' share '3.weight', which one stage must own"


def test_module_used_twice_works_in_one_stage() -> None:
    """A module that stands in the chain twice keeps both its names, and its uses cannot be parted."""
    shared = nn.Linear(4, 4)
    module = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 2))
    example = torch.randn(1, 4)
    layers = chain(module, example)
    assert layers.names == ("0", "1", "2", "3")
    assert layers.forbidden_cuts == {1, 2}
    assert set(layers.slice(0, 3).state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert_same(layers.slice(0, 4)(example), module(example))


def test_module_under_two_names_keeps_both_in_a_traced_module() -> None:
    """A second name of a traced module's part goes with the first, so no key of the state_dict is lost."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.alias = self.a
            self.b = nn.Linear(4, 4)
            self.tied = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(torch.tanh(self.alias(x)))
            return result

    module = Twice()
    layers = chain(module, torch.randn(1, 4))
    assert set(layers.slice(0, 1).state_dict()) == {"a.weight", "a.bias", "alias.weight", "alias.bias"}
    assert set(layers.slice(1, 3).state_dict()) == {"b.weight", "b.bias", "tied"}
    assert layers.slice(1, 3).get_parameter("tied") is layers.slice(1, 3).get_parameter("b.weight")


def test_activation_without_state_may_stand_in_several_stages() -> None:
    """A shared module without weights and without changing attributes forbids nothing."""

    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    swish = Swish()
    layers = chain(nn.Sequential(nn.Linear(4, 4), swish, nn.Linear(4, 4), swish), torch.randn(1, 4))
    assert layers.forbidden_cuts == frozenset()


def test_module_with_python_state_must_not_be_parted() -> None:
    """A shared module that changes an attribute of its own belongs to one stage."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 1000

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    counting = Counting()
    layers = chain(nn.Sequential(counting, nn.Linear(4, 4), counting), torch.randn(1, 4))
    assert layers.forbidden_cuts == {1, 2}


def test_value_that_is_a_view_of_a_weight_leaves_its_stage_as_a_copy() -> None:
    """A stage may change its weights while a value made from them is on its way, so the value is none of them."""

    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.ones(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            rows = self.queries.expand(2, -1)
            return torch.tanh(x) + rows

    layers = chain(Queries(), torch.randn(2, 4))
    first = layers.slice(0, 1)
    value = first(torch.randn(2, 4))
    with torch.no_grad():
        first.get_parameter("queries").zero_()
    assert_same(value[1].detach(), torch.ones(2, 4))


def test_cut_with_a_nested_value_is_forbidden_in_a_sequential() -> None:
    """A Sequential keeps its layers, and the cut where no flat tuple crosses is forbidden with the reason."""

    class Last(nn.Module):
        def forward(self, value: tuple[Tensor, tuple[Tensor, Tensor]]) -> Tensor:
            return value[0][:, -1]

    layers = chain(nn.Sequential(nn.LSTM(3, 4, batch_first=True), Last(), nn.Linear(4, 2)), torch.randn(1, 5, 3))
    assert layers.forbidden_cuts == {1}
    assert "neither a tensor nor a flat tuple" in layers.cut_reason(1)
