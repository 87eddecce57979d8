"""Profiles: what is counted is right, what is measured is kept apart, and nothing is left changed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from partime_async.errors import ConfigurationError
from partime_async.partition.layers import chain
from partime_async.partition.profile import Profile, profile
from tests.partition.nets import assert_same, flat_resnet, nested, plain, recurrent, traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from partime_async.frame import Value


class Stopwatch:
    """Says stated seconds for each run it is given, in turn."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds
        self.runs = 0

    def __call__(self, run: Callable[[], None]) -> float:
        """Run, and say the next of the seconds."""
        run()
        self.runs += 1
        return self.seconds[(self.runs - 1) % len(self.seconds)]


@pytest.mark.parametrize("net", [plain, nested, flat_resnet, traced, recurrent])
def test_profile_of_any_chain_leaves_everything_as_it_was(net: Callable[[], tuple[nn.Module, Value]]) -> None:
    """Weights, buffers, random state, thread count and the frame stay bit for bit as they were."""
    module, example = net()
    layers = chain(module.train(), example)
    before, frame = copy.deepcopy(dict(layers.state_dict())), copy.deepcopy(example)
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    measured = profile(layers, example, budget_s=0.0, threads=2)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert_same(dict(layers.state_dict()), before)
    assert_same(example, frame)
    assert measured.names == layers.names
    assert measured.repeats == 3
    assert len(measured.layer_s) == len(layers)
    assert min(measured.layer_s) > 0
    assert measured.whole_s > 0


def test_profile_counts_the_bytes_at_each_cut_and_of_each_layer() -> None:
    """Bytes at a cut are those of all tensors that cross it, and a parameter counts once."""
    module, example = traced()
    layers = chain(module.eval(), example)
    measured = profile(layers, example, budget_s=0.0)
    assert measured.cut_bytes[0] == 4 * (2 * 3 * 6 * 6 + 5)
    assert measured.cut_bytes[-1] == 4 * (2 * 5 + 2 * 4 * 6 * 6)
    assert measured.cut_bytes[layers.names.index("blocks.1.conv")] == 4 * (5 + 2 * 2 * 4 * 6 * 6)
    assert len(measured.cut_bytes) == len(layers) + 1
    assert sum(measured.parameter_bytes) == sum(4 * parameter.numel() for parameter in module.parameters())
    assert measured.parameter_bytes[layers.names.index("blocks.0.conv")] == 4 * (4 * 4 * 9 + 4)


def test_profile_counts_a_shared_parameter_at_the_first_layer() -> None:
    """A parameter of two layers is counted once."""
    linear = nn.Linear(4, 4)
    example = torch.ones(1, 4)
    measured = profile(chain(nn.Sequential(linear, nn.Tanh(), linear), example), example, budget_s=0.0)
    assert measured.parameter_bytes == (80, 0, 0)


def test_profile_takes_the_median_of_what_the_timer_says() -> None:
    """Figures are the timer's medians for each layer and for the whole; the warm-up is not among them."""
    example = torch.ones(1, 4)
    layers = chain(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), example)
    stopwatch = Stopwatch(*(99, 99, 99), *(1, 2, 6), *(3, 3, 8), *(50, 1, 7))
    measured = profile(layers, example, budget_s=0.0, timer=stopwatch)
    assert measured.layer_s == (3.0, 2.0)
    assert measured.whole_s == 7
    assert stopwatch.runs == 12


def test_profile_costs_add_up_to_the_whole() -> None:
    """Costs are the layers' shares of the time that all of them take together."""
    measured = Profile(("a", "b"), "cpu", 1, 3, (1.0, 3.0), 2.0, (4, 4, 4), (0, 0))
    assert measured.costs_s == (0.5, 1.5)
    nothing = Profile(("a",), "cpu", 1, 3, (0.0,), 0.0, (4, 4), (0,))
    assert nothing.costs_s == (0.0,)


def test_profile_with_time_left_repeats_but_not_for_ever() -> None:
    """A tiny net is measured more often, up to a bound."""
    example = torch.ones(1, 4)
    measured = profile(chain(nn.Sequential(nn.Linear(4, 4)), example), example, budget_s=60.0)
    assert measured.repeats == 200


def test_profile_of_a_layer_that_overwrites_the_frame_gives_it_a_copy() -> None:
    """Each repeat starts from the frame as it was, though the first layer writes into it."""
    seen: list[float] = []

    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(float(x.sum()))
            return x.mul_(2)

    example = torch.ones(1, 4)
    layers = chain(nn.Sequential(Doubling()), example)
    assert layers.mutates_input
    profile(layers, example, budget_s=0.0)
    assert set(seen) == {4.0}


def test_profile_with_no_thread_raises() -> None:
    """A thread count below one is refused, with the number."""
    example = torch.ones(1, 4)
    with pytest.raises(ConfigurationError, match=r"with 0 threads\. Give at least 1"):
        profile(chain(nn.Sequential(nn.Linear(4, 4)), example), example, threads=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_profile_on_cuda_measures_a_copy_there() -> None:
    """The copy is measured on the device, and the chain stays where it was."""
    module, example = flat_resnet()
    layers = chain(module.eval(), example)
    measured = profile(layers, example, device="cuda:0", budget_s=0.0)
    assert measured.device == "cuda:0"
    assert measured.whole_s > 0
    assert all(tensor.device.type == "cpu" for tensor in layers.state_dict().values())
