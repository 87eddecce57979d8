"""Promise 1: inference equals the unpipelined module, bit for bit, whatever the cut, the timing or the loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.models import build, deep_conv, frame_conv, mlp
from partime_async.models.resnet import Add, Fork, OnMain, OnShortcut
from tests.nets import (
    Dawdles,
    Residual,
    Swap,
    Tells,
    Threads,
    TwoEnds,
    Value,
    assert_same_bits,
    balances,
    called,
    dense,
    frames_like,
    streamed,
)

Net = Callable[[], tuple[nn.Module, Value]]


def _nested() -> tuple[nn.Module, Value]:
    inner = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Sequential(), nn.Dropout(0.5))
    return nn.Sequential(nn.Linear(6, 6), inner, nn.LayerNorm(6), nn.Linear(6, 3)).eval(), torch.ones(2, 6)


def _tuples() -> tuple[nn.Module, Value]:
    return nn.Sequential(Swap(), Swap(), Swap()), (torch.ones(2, 3), torch.ones(1, 3))


def _in_place() -> tuple[nn.Module, Value]:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), torch.ones(
        1, 6
    )


def _traced() -> tuple[nn.Module, Value]:
    return nn.Sequential(Residual(6), Residual(6)).eval(), torch.ones(3, 6)


def _flat_residual() -> tuple[nn.Module, Value]:
    net = nn.Sequential(Fork(), OnShortcut(nn.Linear(6, 6)), OnMain(nn.BatchNorm1d(6)), OnMain(nn.ReLU()), Add())
    return net.eval(), torch.ones(2, 6)


NETS: dict[str, Net] = {
    "conv-a": lambda: (deep_conv(layers=3, channels=4, kernel=3), torch.ones(1, 3, 12, 12)),
    "conv-b": lambda: (frame_conv(layers=4, channels=4, pool_every=2), torch.ones(1, 3, 12, 12)),
    "mlp": lambda: (mlp(layers=4, width=8), torch.ones(1, 8)),
    "flat residual": _flat_residual,
    "nested": _nested,
    "tuples": _tuples,
    "in place": _in_place,
    "residual": lambda: (Residual(6).eval(), torch.ones(3, 6)),
    "residual blocks": _traced,
    "two ends": lambda: (TwoEnds().eval(), (torch.ones(2, 6), torch.ones(2, 6))),
    "one layer": lambda: (nn.Sequential(nn.Linear(6, 2)), torch.ones(1, 6)),
}


@pytest.mark.parametrize("capture", [True, False], ids=["captured", "eager"])
@pytest.mark.parametrize("name", NETS)
async def test_outputs_of_a_net_in_two_stages_equal_the_module(name: str, capture: bool) -> None:
    """Every kind of net gives the module's own bits, recorded or not."""
    module, example = NETS[name]()
    frames = frames_like(example, 6)
    expected = called(module, frames)
    async with pa.Pipeline(module, example, balance=_halves(module, example), capture=capture) as pipeline:
        assert_same_bits(await streamed(pipeline, frames), expected)


def _halves(module: nn.Module, example: Value) -> list[int]:
    plan = pa.plan(module, example, devices=["simulated:1ms", "simulated:1ms"])
    return list(plan.balance)


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(f"resnet{n}", marks=pytest.mark.slow) for n in (34, 50, 101, 152))]
)
async def test_outputs_of_a_resnet_equal_the_module(name: str) -> None:
    """The residual nets of the package give the module's own bits in three stages."""
    module, example = build(name, classes=3).eval(), torch.ones(1, 3, 32, 32)
    frames = frames_like(example, 2)
    layers = len(list(module.children()))
    balance = [layers // 3, layers // 3, layers - 2 * (layers // 3)]
    async with pa.Pipeline(module, example, balance=balance, capture=False) as pipeline:
        found = await streamed(pipeline, frames)
    assert_same_bits(found, called(module, frames))


async def test_outputs_for_every_balance_equal_the_module() -> None:
    """However five layers are divided over one to five stages, the bits are the same."""
    module, example = dense(layers=3), torch.ones(1, 6)
    frames = frames_like(example, 5)
    expected = called(module, frames)
    for balance in balances(len(module)):
        async with pa.Pipeline(module, example, balance=balance, capture=False) as pipeline:
            assert_same_bits(await streamed(pipeline, frames), expected)
            assert pipeline.plan.balance == tuple(balance)


@pytest.mark.parametrize(("depth", "capacity"), [(None, 1), (None, 2), (1, 1), (1, 5), (2, 2), (7, 1)])
async def test_outputs_for_any_depth_and_capacity_equal_the_module(depth: int | None, capacity: int) -> None:
    """However far the stages may run ahead, the bits and their order are the same."""
    module, example = dense(), torch.ones(1, 6)
    frames = frames_like(example, 40)
    async with pa.Pipeline(
        module, example, balance=[2, 1, 4], depth=depth, capacity=capacity, capture=False
    ) as pipeline:
        assert_same_bits(await streamed(pipeline, frames), called(module, frames))


async def test_outputs_with_random_stage_times_equal_the_module() -> None:
    """Stages that take a random time for each frame give the same bits in the same order."""
    layers = [layer for seed in range(4) for layer in (Dawdles(seed), nn.Linear(6, 6))]
    module, example = nn.Sequential(*layers), torch.ones(1, 6)
    frames = frames_like(example, 30)
    async with pa.Pipeline(module, example, balance=[2, 2, 2, 2], capture=False) as pipeline:
        assert_same_bits(await streamed(pipeline, frames), called(module, frames))


@pytest.mark.parametrize("capture", [True, False], ids=["captured", "eager"])
async def test_batch_norm_in_training_mode_has_the_statistics_of_sequential_calls(capture: bool) -> None:
    """After N frames in training mode, outputs and running statistics are those of N calls of the module."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    example = torch.ones(2, 3, 8, 8)
    frames = frames_like(example, 12)
    reference = copy.deepcopy(module)
    with torch.no_grad():
        expected = [reference(frame) for frame in frames]
    async with pa.Pipeline(module, example, balance=[2, 3], capture=capture) as pipeline:
        assert_same_bits(await streamed(pipeline, frames), expected)
        state = await pipeline.state_dict()
    assert_same_bits(list(state.values()), list(reference.state_dict().values()))


async def test_outputs_in_evaluation_mode_leave_the_statistics_alone() -> None:
    """In evaluation mode the running statistics stay what they were."""
    module, example = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).eval(), torch.ones(2, 6)
    async with pa.Pipeline(module, example, balance=[1, 1]) as pipeline:
        await streamed(pipeline, frames_like(example, 5))
        state = await pipeline.state_dict()
    assert_same_bits(list(state.values()), list(module.state_dict().values()))


async def test_outputs_of_special_numbers_equal_the_module() -> None:
    """NaN, infinities, denormal numbers and the sign of zero come out as the module has them."""
    module, example = nn.Sequential(nn.ReLU(), nn.Identity(), nn.Hardtanh(-1e30, 1e30)), torch.ones(1, 6)
    frames: list[Value] = [torch.tensor([[math.nan, math.inf, -math.inf, -0.0, 1e-42, 3e38]])]
    async with pa.Pipeline(module, example, balance=[1, 1, 1]) as pipeline:
        assert_same_bits(await streamed(pipeline, frames), called(module, frames))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
async def test_outputs_of_other_dtypes_equal_the_module(dtype: torch.dtype) -> None:
    """Frames of doubles, of halves and of whole numbers give the module's own bits."""
    module: nn.Module
    if dtype is torch.int64:
        module, frame = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), torch.tensor([[1, 8, 0]])
    else:
        module, frame = dense().to(dtype), torch.randn(2, 6, dtype=dtype)
    async with pa.Pipeline(module, frame.clone(), balance=[1, len(list(module)) - 1]) as pipeline:
        assert_same_bits(await streamed(pipeline, [frame]), called(module, [frame]))


async def test_outputs_of_frames_with_any_memory_layout_equal_the_module() -> None:
    """A frame that is a view, turned round, repeated or in another memory format gives the module's own bits."""
    module, example = deep_conv(layers=2, channels=4, kernel=3), torch.ones(1, 3, 8, 8)
    whole = torch.randn(3, 1, 8, 9)
    frames: list[Value] = [
        whole.transpose(0, 1)[..., :8],
        whole.transpose(0, 1)[..., 1:].flip(-1),
        torch.randn(1, 3, 8, 8).to(memory_format=torch.channels_last),
        torch.randn(1, 1, 8, 8).expand(1, 3, 8, 8),
        torch.randn(1, 3, 8, 8, requires_grad=True),
    ]
    async with pa.Pipeline(module, example, balance=[3, 3]) as pipeline:
        found = await streamed(pipeline, frames)
    assert_same_bits(found, called(module, frames))
    assert not any(output.requires_grad for output in found if isinstance(output, Tensor))


async def test_frames_of_a_net_that_writes_into_its_input_stay_as_they_were() -> None:
    """A first layer that works in place does not change the caller's frame."""
    module, example = _in_place()
    frames = frames_like(example, 4)
    before = copy.deepcopy(frames)
    async with pa.Pipeline(module, example, balance=[3, 1]) as pipeline:
        await streamed(pipeline, frames)
    assert_same_bits(frames, before)


async def test_outputs_of_one_frame_offered_many_times_are_equal() -> None:
    """The same tensor may be in flight several times at once."""
    module, example = dense(), torch.ones(1, 6)
    frame = torch.randn(1, 6)
    async with pa.Pipeline(module, example, balance=[3, 4]) as pipeline:
        assert_same_bits(await streamed(pipeline, [frame] * 20), called(module, [frame] * 20))


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
async def test_module_is_left_as_it_was(is_training: bool) -> None:
    """Weights, buffers, gradients, modes, hooks and random numbers of the caller are untouched by a whole run."""
    module = nn.Sequential(Residual(6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 2))
    module.train(is_training)
    module[3].weight.grad = torch.ones(2, 6)
    module[2].register_forward_hook(lambda *_: None)
    before = copy.deepcopy(module)
    tensors = [*module.parameters(), *module.buffers()]
    hooks = dict(module[2]._forward_hooks)
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    async with pa.Pipeline(module, torch.ones(3, 6), balance=[2, 2], capture=True):
        pass
    assert list(map(id, [*module.parameters(), *module.buffers()])) == list(map(id, tensors))
    assert_same_bits(list(module.state_dict().values()), list(before.state_dict().values()))
    assert_same_bits(module[3].weight.grad, torch.ones(2, 6))
    assert [part.training for part in module.modules()] == [part.training for part in before.modules()]
    assert dict(module[2]._forward_hooks) == hooks
    assert_same_bits(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads


async def test_layers_never_run_on_the_loops_thread() -> None:
    """Building, recording and running the network all happen on other threads than the event loop's."""
    threads = Threads()
    module = nn.Sequential(nn.Linear(6, 6), Tells(threads), nn.Linear(6, 6), Tells(threads))
    async with pa.Pipeline(module, torch.ones(1, 6), stages=2) as pipeline:
        await streamed(pipeline, frames_like(torch.ones(1, 6), 5))
    assert {"partime stage 0", "partime stage 1"} <= threads.names
    assert "MainThread" not in threads.names
