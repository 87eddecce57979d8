"""Recording a module: only where it gives the very bits, and without a trace in the module."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partime_async.devices.capture import capture, equal_bits, trial_copy, unchanged
from partime_async.frame import Value
from partime_async.partition.layers import chain

FRAME = (2, 3, 12, 12)


@pytest.fixture(autouse=True)
def _as_in_a_stream() -> Iterator[None]:
    """Record as a device's thread does: with gradients off, and on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


class Split(nn.Module):
    """One tensor in, two out."""

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value and what to add to it."""
        return value, value.mean(dim=1, keepdim=True)


class Join(nn.Module):
    """Two tensors in, one out."""

    def forward(self, value: tuple[Tensor, Tensor]) -> Tensor:
        """Add the two."""
        return value[0] + value[1]


def convolutions() -> nn.Module:
    """Make a network of convolutions."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten())


def normalised() -> nn.Module:
    """Make a network with statistics that training changes."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))


def linear() -> nn.Module:
    """Make a network of linear layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 32), nn.Tanh(), nn.LayerNorm(32), nn.Linear(32, 5))


def with_tuples() -> nn.Module:
    """Make a network that passes tuples between its layers."""
    return nn.Sequential(Split(), Join(), nn.Conv2d(3, 2, 1), Split())


def with_dropout() -> nn.Module:
    """Make a network that draws random numbers."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Flatten())


NETWORKS = [convolutions, normalised, linear, with_tuples, with_dropout]


def called(run: Callable[[Value], Value], frames: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Call with each frame in turn, under the same random numbers."""
    torch.manual_seed(7)
    outputs = [run(frame.clone()) for frame in frames]
    return [(output.clone(),) if isinstance(output, Tensor) else tuple(map(torch.clone, output)) for output in outputs]


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_capture_network_gives_the_bits_of_eager_execution(network: Callable[[], nn.Module], is_training: bool) -> None:
    """The recording gives exactly what the module gives, frame after frame, and moves its buffers alike."""
    module = network().train(is_training)
    twin = copy.deepcopy(module)
    recorded = capture(module, torch.randn(FRAME))
    assert recorded is not None
    frames = [torch.randn(FRAME) * scale for scale in (1.0, 0.1, 10.0, 1.0, 1.0, 0.0)]
    for found, expected in zip(called(recorded, frames), called(twin, frames), strict=True):
        assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, module.state_dict().values(), twin.state_dict().values()))


@pytest.mark.parametrize("network", NETWORKS)
def test_capture_leaves_the_module_and_the_random_state(network: Callable[[], nn.Module]) -> None:
    """Recording changes no weight, no buffer, no mode and no random number."""
    module = network().train()
    before = copy.deepcopy(module.state_dict())
    example = torch.randn(FRAME)
    random_state = torch.get_rng_state()
    assert capture(module, example) is not None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(map(torch.equal, module.state_dict().values(), before.values()))
    assert module.training


def test_capture_weights_changed_in_place_are_seen() -> None:
    """A recording shares the parameters: new values in them count from the next call."""
    module = linear()
    recorded = capture(module, torch.randn(FRAME))
    assert recorded is not None
    for parameter in module.parameters():
        parameter.mul_(1.5).add_(0.01)
    frame = torch.randn(FRAME)
    assert torch.equal(*map(torch.as_tensor, (recorded(frame), module(frame))))
    other = linear()
    module.load_state_dict(other.state_dict())
    assert torch.equal(*map(torch.as_tensor, (recorded(frame), other(frame))))


class Branching(nn.Module):
    """Depends on data: a recording would keep the branch of the example."""

    def forward(self, value: Tensor) -> Tensor:
        """Take one of two ways."""
        return value * 2 if value.sum() > 0 else value - 1


class Looping(nn.Module):
    """Depends on a number in the data."""

    def forward(self, value: Tensor) -> Tensor:
        """Repeat as often as the data says."""
        for _ in range(int(value.abs().sum().item()) % 3):
            value = value + 1
        return value


class Counting(nn.Module):
    """Keeps a number in a Python attribute, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, value: Tensor) -> Tensor:
        """Scale by how often it was called."""
        self.calls += 1
        return value * self.calls


class CountingSilently(Counting):
    """Keeps a number that does not show in what it returns."""

    def forward(self, value: Tensor) -> Tensor:
        """Count and pass on."""
        self.calls += 1
        return value * 1


class Remembering(nn.Module):
    """Keeps a tensor in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(FRAME)

    def forward(self, value: Tensor) -> Tensor:
        """Return the change since the frame before."""
        change = value - self.last
        self.last = value.clone()
        return change


class Listing(nn.Module):
    """Keeps what it saw in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, value: Tensor) -> Tensor:
        """Note and pass on."""
        self.seen.append(value)
        return value * 1


class Tagging(nn.Module):
    """Makes an attribute when it is called first."""

    def forward(self, value: Tensor) -> Tensor:
        """Note the shape and pass on."""
        self.shape = value.shape
        return value * 1


class Failing(nn.Module):
    """Cannot run at all."""

    def forward(self, value: Tensor) -> Tensor:
        """Raise."""
        raise LookupError("no")


STATEFUL = [Branching, Looping, Counting, CountingSilently, Remembering, Listing, Tagging, Failing]


@pytest.mark.parametrize("kind", STATEFUL)
def test_capture_module_that_could_differ_is_refused(kind: type[nn.Module]) -> None:
    """Branches on data, and state outside of buffers, are never recorded; the module stays as it was."""
    module = kind()
    before = {name: copy.deepcopy(value) for name, value in vars(module).items() if not name.startswith("_")}
    assert capture(module, torch.randn(FRAME)) is None
    after = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]


def test_capture_list_of_tensors_is_compared_tensor_by_tensor() -> None:
    """A list of tensors that stays as it is may be recorded; one that a call changes may not."""

    class Anchored(nn.Module):
        def __init__(self, step: float) -> None:
            super().__init__()
            self.step = step
            self.anchors = [torch.ones(3), torch.zeros(3)]

        def forward(self, value: Tensor) -> Tensor:
            self.anchors = [anchor + self.step for anchor in self.anchors]
            return value * 2

    assert capture(Anchored(0.0), torch.randn(FRAME)) is not None
    assert capture(Anchored(1.0), torch.randn(FRAME)) is None


def test_capture_slice_of_a_chain_is_recorded() -> None:
    """What a pipeline runs, consecutive layers of a network, is recorded: layers kept in attributes are no state."""
    network = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())])
    example = torch.randn(1, 8)

    with torch.no_grad():
        assert capture(chain(network, example).slice(2, 6), example) is not None


def test_capture_signed_zero_counts_as_a_difference() -> None:
    """Equal means the same bits: -0.0 is not 0.0, and a NaN is itself."""
    assert equal_bits(torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]))
    assert not equal_bits(torch.tensor([float("nan")]), torch.tensor([0.0]))
    assert not equal_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not equal_bits(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))
    assert equal_bits(torch.tensor([True, False]), torch.tensor([True, False]))


def test_capture_integer_frames_work() -> None:
    """Frames of bytes, as cameras give them, can be recorded."""

    class Scaled(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return F.avg_pool2d(value.float() / 255, 2)

    frame = torch.randint(0, 255, FRAME, dtype=torch.uint8)
    recorded = capture(Scaled(), frame)
    assert recorded is not None
    assert torch.equal(torch.as_tensor(recorded(frame)), Scaled()(frame))


def test_unchanged_block_that_raises_restores_all_the_same() -> None:
    """Buffers, parameters and the random state come back whatever happens inside."""
    module = normalised()
    before = copy.deepcopy(module.state_dict())
    random_state = torch.get_rng_state()
    with contextlib.suppress(LookupError), unchanged(module):
        module(torch.randn(FRAME))
        next(module.parameters()).zero_()
        raise LookupError
    assert all(map(torch.equal, module.state_dict().values(), before.values()))
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("shares_parameters", [False, True])
def test_trial_copy_called_changes_nothing_of_the_original(shares_parameters: bool) -> None:
    """Buffers and Python state of the copy are its own, and parameters are shared only on demand."""
    module = nn.Sequential(normalised(), Listing())
    before = copy.deepcopy(module.state_dict())
    trial = trial_copy(module, shares_parameters=shares_parameters)
    trial(torch.randn(FRAME))
    assert all(map(torch.equal, module.state_dict().values(), before.values()))
    assert vars(module[1])["seen"] == []
    is_shared = [left is right for left, right in zip(module.parameters(), trial.parameters(), strict=True)]
    assert is_shared == [shares_parameters] * len(is_shared)


def test_trial_copy_of_a_module_with_a_computed_weight_works() -> None:
    """`torch.nn.utils.weight_norm` leaves a tensor with a graph in the module, which cannot be deep-copied."""
    with pytest.warns(FutureWarning):
        module = nn.utils.weight_norm(nn.Linear(3, 3))
    with torch.enable_grad():
        module(torch.ones(1, 3))
    frame = torch.randn(1, 3)
    assert torch.equal(trial_copy(module)(frame), module(frame))
    recorded = capture(module, frame)
    assert recorded is None or torch.equal(torch.as_tensor(recorded(frame)), module(frame))
