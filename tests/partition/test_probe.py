"""What one frame shows of a graph, and the comparison of a trace with its module."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from partime_async.partition.graph import sequential_graph, trace
from partime_async.partition.probe import bytes_of, difference, probe, storage_of, tensors_in, told, undisturbed

CPU = (torch.device("cpu"),)


def test_probe_keeps_only_values_that_live() -> None:
    """A value is freed once no step needs it, so a deep net needs the memory of its widest place, not of all."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(value() is not None for value in made))
            result = x + 1
            made.append(weakref.ref(result))
            return result

    module = nn.Sequential(*(Watching() for _ in range(6)))
    with undisturbed(CPU, skipped=0):
        probe(sequential_graph(module), [torch.zeros(2)], module)
    assert max(alive) <= 2


def test_probe_finds_the_value_that_cannot_travel() -> None:
    """A number that is alive across a cut is named."""

    class Reshaping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x).view(x.size(0), -1)

    with undisturbed(CPU, skipped=0):
        graph = trace(Reshaping(), 1)
        facts = probe(graph, [torch.zeros(2, 3)], Reshaping())
    assert [crossing.unfit for crossing in facts.crossings] == ["", "", "'size', which crosses it, is 2 and no tensor"]


def test_undisturbed_draws_the_same_numbers_for_the_same_count_and_leaves_the_state() -> None:
    """Work inside gets repeatable numbers, other ones for another count, and the caller's come as if nothing was."""
    state = torch.get_rng_state()
    drawn = []
    for skipped in (0, 1, 1):
        with undisturbed(CPU, skipped=skipped):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_undisturbed_inside_inference_mode_counts_versions() -> None:
    """A caller's inference mode does not hide what is written in place."""
    with torch.inference_mode(), undisturbed(CPU, skipped=0):
        tensor = torch.zeros(2)
        assert tensor.add_(1)._version == 1
        assert not torch.is_grad_enabled()


def test_difference_of_equal_results_is_empty() -> None:
    """The same numbers, whole ones and not-a-numbers included, are no difference; nor is random work."""
    value = (torch.tensor([1.0, float("nan")]), torch.tensor([1, 2]), torch.zeros(0))
    assert difference(lambda: value, lambda: [*value], CPU) == ""
    assert difference(lambda: torch.rand(3), lambda: torch.rand(3), CPU) == ""


def test_difference_says_what_differs() -> None:
    """Other shapes, other numbers and a failure of either are told."""
    two, three = torch.zeros(2), torch.zeros(3)
    assert "float32 (3,)" in difference(lambda: two, lambda: three, CPU)
    assert difference(lambda: two, lambda: two + 1e-3, CPU) == "its numbers are others"
    assert difference(lambda: two.long(), lambda: two.long() + 1, CPU) == "its numbers are others"
    assert difference(lambda: two, lambda: two @ three, CPU).startswith("RuntimeError: ")


def test_tensors_are_found_however_nested() -> None:
    """Tuples, lists and dictionaries are searched, and bytes counted over all of them."""
    nested = ({"a": torch.zeros(2)}, [torch.zeros(3, dtype=torch.float64)], 4)
    assert [tuple(tensor.shape) for tensor in tensors_in(nested)] == [(2,), (3,)]
    assert bytes_of(nested) == 8 + 24


def test_told_describes_values_for_messages() -> None:
    """Tensors by type and shape, containers and others by their kind, plain values as they are."""
    value: tuple[object, ...] = (torch.zeros(2, 3), [1], {}, 4, None, object())
    assert told(value) == "(float32 (2, 3), a list, a dict, 4, None, a object)"


def test_storage_of_views_is_the_same_and_of_sparse_tensors_their_own() -> None:
    """Views share memory; a tensor without one storage shares with none."""
    tensor = torch.ones(4)
    assert storage_of(tensor) == storage_of(tensor[1:])
    assert storage_of(tensor) != storage_of(torch.ones(4))
    sparse = torch.eye(2).to_sparse()
    assert storage_of(sparse) == id(sparse)
