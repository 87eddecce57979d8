"""Promise 8: the weights are the user's own, and snapshots and swaps happen at one frame boundary in all stages."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.models.resnet import Add, Fork, OnMain
from tests.bench import steps
from tests.nets import (
    TIMEOUT_S,
    Dawdles,
    Gate,
    Gated,
    Residual,
    Reveals,
    Tells,
    Threads,
    TwoEnds,
    Value,
    assert_same_bits,
    called,
    dense,
    frames_like,
    streamed,
)

FRAME = torch.ones(1, 6)


class Tied(nn.Module):
    """Uses one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, value: Tensor) -> Tensor:
        """Return both layers of the value."""
        result: Tensor = self.second(torch.relu(self.first(value)))
        return result


class Extra(nn.Module):
    """Keeps a number beside its tensors, and adds it."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = {"value": 1.0}
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, value: Tensor) -> Tensor:
        """Return the product plus the number."""
        return value * self.weight + self.offset["value"]

    def get_extra_state(self) -> dict[str, float]:
        """Return the number."""
        return self.offset

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Take the number."""
        self.offset = dict(state)


def _unlike(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return another state for the same module."""
    return {name: item + 1 if isinstance(item, Tensor) else item for name, item in state.items()}


NETS: dict[str, tuple[nn.Module, Value, list[int]]] = {
    "dense": (dense(), FRAME, [3, 4]),
    "nested": (nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), Residual(6)).eval(), FRAME, [1, 2]),
    "tuples": (nn.Sequential(Fork(), OnMain(nn.Linear(6, 6)), Add(), nn.Linear(6, 2)), FRAME, [2, 2]),
    "traced": (TwoEnds().eval(), (FRAME, FRAME), [2, 2]),
    "tied": (Tied(), FRAME, [3]),
    "extra": (nn.Sequential(nn.Linear(6, 6), Extra()), FRAME, [1, 1]),
}


def _pipeline(name: str) -> tuple[nn.Module, pa.Pipeline]:
    module, example, balance = NETS[name]
    layers = len(pa.plan(module, example, devices=["simulated:1ms"]).layer_names)
    balance = [*balance[:-1], layers - sum(balance[:-1])]
    return module, pa.Pipeline(module, example, balance=balance)


def _assert_same_state(found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    assert list(found) == list(expected), "keys, or their order, differ"
    for key, item in expected.items():
        if isinstance(item, Tensor):
            assert_same_bits(found[key], item.detach())
        else:
            assert found[key] == item


@pytest.mark.parametrize("name", NETS)
async def test_state_dict_is_that_of_the_module(name: str) -> None:
    """Keys, order and values are the module's own, while running and after; the copy shares nothing."""
    module, pipeline = _pipeline(name)
    with pytest.raises(pa.PipelineNotRunning, match="never entered"):
        await pipeline.state_dict()
    async with pipeline:
        running = await pipeline.state_dict()
    left = await pipeline.state_dict()
    for state in (running, left):
        _assert_same_state(state, module.state_dict())
        for item in state.values():
            if isinstance(item, Tensor):
                assert not item.requires_grad
                item.add_(1)
    async with pipeline:
        _assert_same_state(await pipeline.state_dict(), module.state_dict())


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "left"])
@pytest.mark.parametrize("name", NETS)
async def test_load_state_dict_gives_the_outputs_of_a_module_with_that_state(name: str, is_running: bool) -> None:
    """After a swap, whether it runs or was left, the pipeline is the module with the new state, recorded or not."""
    module, pipeline = _pipeline(name)
    other = copy.deepcopy(module)
    other.load_state_dict(_unlike(module.state_dict()))
    frames = frames_like(NETS[name][1], 3)
    async with pipeline:
        if is_running:
            assert_same_bits(await streamed(pipeline, frames), called(module, frames))
            await pipeline.load_state_dict(other.state_dict())
            assert_same_bits(await streamed(pipeline, frames), called(other, frames))
    if not is_running:
        await pipeline.load_state_dict(other.state_dict())
        _assert_same_state(await pipeline.state_dict(), other.state_dict())
        async with pipeline:
            assert_same_bits(await streamed(pipeline, frames), called(other, frames))


async def test_load_state_dict_with_extra_state_sets_it() -> None:
    """What a module keeps beside its tensors is read and replaced like them."""
    module, pipeline = _pipeline("extra")
    state = {**module.state_dict(), "1._extra_state": {"value": 5.0}}
    async with pipeline:
        before = await pipeline.process(FRAME)
        await pipeline.load_state_dict(state)
        after = await pipeline.process(FRAME)
        assert (await pipeline.state_dict())["1._extra_state"] == {"value": 5.0}
    torch.testing.assert_close(torch.as_tensor(after.output), torch.as_tensor(before.output) + 4.0)


async def test_load_state_dict_leaves_the_callers_state_and_module_alone() -> None:
    """What was passed in is copied: later changes to it, or to the module, do not reach the pipeline."""
    module, pipeline = _pipeline("dense")
    state = _unlike(module.state_dict())
    before = {name: tensor.clone() for name, tensor in state.items()}
    async with pipeline:
        await pipeline.load_state_dict(state)
        for tensor in state.values():
            tensor.zero_()
        _assert_same_state(await pipeline.state_dict(), before)


# -- one boundary -----------------------------------------------------------------------------------------------------


def _revealing(*, has_delays: bool = True) -> nn.Sequential:
    """Build four stages, each of which writes its weight into the output."""
    layers: list[nn.Module] = []
    for stage in range(4):
        layers += [Dawdles(stage), Reveals()] if has_delays else [Reveals()]
    return nn.Sequential(*layers)


def _version(number: int, module: nn.Module) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, float(number)) for name, tensor in module.state_dict().items()}


async def test_swaps_while_streaming_reach_every_stage_between_the_same_two_frames() -> None:
    """Of hundreds of frames under a hail of swaps, none sees weights of two versions, and each says which it saw."""
    module = _revealing()
    async with pa.Pipeline(module, torch.ones(1, 1), balance=[2] * 4, capture=False) as pipeline:
        results: list[pa.Result] = []

        async def read() -> None:
            frames = (torch.full((1, 1), float(number)) for number in range(300))
            results.extend([result async for result in pipeline.stream(list(frames))])

        reading = asyncio.ensure_future(read())
        version = 0
        while not reading.done():
            version += 1
            await pipeline.load_state_dict(_version(version, module))
        await reading
    assert version > 5
    seen = []
    for result in results:
        frame, *weights = torch.as_tensor(result.output)[0].tolist()
        assert frame == result.sequence
        assert len(set(weights)) == 1, "a frame saw weights of two versions"
        assert result.weight_versions == (int(weights[0]),) * 4
        seen.append(int(weights[0]))
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


async def test_snapshots_while_streaming_belong_to_one_boundary() -> None:
    """A snapshot between two swaps has the weights of one version in all stages, and the stream never stops."""
    module = _revealing()
    async with pa.Pipeline(module, torch.ones(1, 1), balance=[2] * 4, capture=False) as pipeline:
        streaming = asyncio.ensure_future(streamed(pipeline, [torch.ones(1, 1)] * 200))
        version = 0
        while not streaming.done():
            version += 1
            swap = asyncio.ensure_future(pipeline.load_state_dict(_version(version, module)))
            state, _, _ = await asyncio.gather(pipeline.state_dict(), swap, steps(3))
            assert len({float(tensor) for tensor in state.values()}) == 1
        assert len(await streaming) == 200


async def test_counters_of_all_stages_agree_in_every_snapshot() -> None:
    """With a counter of frames in each stage, every snapshot shows the same count in all, and in order."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = nn.Buffer(torch.zeros(1))

        def forward(self, value: Tensor) -> Tensor:
            self.count.add_(1)
            return value + 0.0

    net = nn.Sequential(*(layer for stage in range(3) for layer in (Dawdles(stage), Counts())))
    async with pa.Pipeline(net, FRAME, balance=[2, 2, 2], capture=False) as pipeline:
        streaming = asyncio.ensure_future(streamed(pipeline, [FRAME] * 150))
        counts = []
        while not streaming.done():
            state = await pipeline.state_dict()
            assert len({float(tensor) for tensor in state.values()}) == 1
            counts.append(float(state["1.count"]))
        await streaming
        assert float((await pipeline.state_dict())["5.count"]) == 150.0
    assert counts == sorted(counts)
    assert len(set(counts)) > 3


async def test_swap_half_way_when_the_pipeline_is_aborted_is_completed() -> None:
    """Leaving by an error while a swap is between two stages leaves one version of the weights, old or new."""
    for held_up in range(4):
        gate = Gate()
        module = nn.Sequential(
            *(layer for k in range(4) for layer in (Gated(gate if k == held_up else Gate()), Reveals()))
        )
        pipeline = pa.Pipeline(module, torch.ones(1, 1), balance=[2] * 4, capture=False)
        await pipeline.__aenter__()
        gate.close()
        asking = asyncio.ensure_future(pipeline.process(torch.ones(1, 1)))
        await gate.reached()
        swapping = asyncio.ensure_future(pipeline.load_state_dict(_version(7, module)))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.01, gate.open)
        await pipeline.__aexit__(KeyError, KeyError(), None)
        await asyncio.wait_for(asyncio.gather(asking, swapping, return_exceptions=True), TIMEOUT_S)
        versions = {float(tensor) for tensor in (await pipeline.state_dict()).values()}
        assert len(versions) == 1
        assert (swapping.exception() is None) == (versions == {7.0})


async def test_weights_are_replaced_on_other_threads_than_the_loops() -> None:
    """Replacing weights happens on other threads than the event loop's, running or not."""

    class Watched(nn.Linear):
        def __init__(self, threads: Threads) -> None:
            super().__init__(6, 6)
            self.threads = threads

        def _load_from_state_dict(self, *args: object) -> None:
            Tells(self.threads)(torch.ones(1))
            super()._load_from_state_dict(*args)

    threads = Threads()
    net = nn.Sequential(Watched(threads), Watched(threads))
    pipeline = pa.Pipeline(net, FRAME, balance=[1, 1], capture=False)
    async with pipeline:
        await pipeline.load_state_dict(net.state_dict())
    await pipeline.load_state_dict(net.state_dict())
    assert threads.names
    assert "MainThread" not in threads.names


# -- states that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "left"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("linear2.weight"), "1 key.s. missing .'linear2.weight'"),
        (lambda state: state.update(other=torch.ones(1)), "1 unknown .'other'"),
        (lambda state: state.update({"linear2.weight": torch.ones(6, 5)}), r"linear2.weight is a tensor \(6, 5\)"),
        (lambda state: state.update({"linear4.bias": torch.ones(6, dtype=torch.float64)}), "of float64, expected"),
        (lambda state: state.update({"linear4.bias": [1.0] * 6}), "linear4.bias is of type list"),
        (lambda state: state.update({"linear4.bias": None}), "linear4.bias is of type NoneType"),
        (lambda state: state.update({"linear4.bias": torch.ones(6, device="meta")}), "meta device"),
        (lambda state: state.clear(), "8 key.s. missing"),
    ],
)
async def test_load_state_dict_that_does_not_fit_changes_nothing(change: object, told: str, is_running: bool) -> None:
    """A state with other keys, shapes or dtypes is refused, named, before any stage has changed."""
    module, pipeline = _pipeline("dense")
    state: dict[str, Tensor] = _unlike(module.state_dict())
    assert callable(change)
    change(state)
    async with pipeline:
        if is_running:
            with pytest.raises(pa.ConfigurationError, match=told) as caught:
                await pipeline.load_state_dict(state)
            assert str(caught.value).endswith("made from.")
            assert (await pipeline.process(FRAME)).weight_versions == (0, 0)
        _assert_same_state(await pipeline.state_dict(), module.state_dict())
    if not is_running:
        with pytest.raises(pa.ConfigurationError, match=told):
            await pipeline.load_state_dict(state)
        _assert_same_state(await pipeline.state_dict(), module.state_dict())


async def test_weights_of_a_pipeline_that_is_being_entered_are_not_to_be_had() -> None:
    """While the stages warm up, on their own weights, nobody reads or replaces these."""
    gate = Gate()
    pipeline = pa.Pipeline(nn.Sequential(nn.Linear(6, 6), Gated(gate)), FRAME, balance=[1, 1], capture=False)
    async with pipeline:
        pass
    gate.close()
    entering = asyncio.ensure_future(pipeline.__aenter__())
    await gate.reached()
    for call in (pipeline.state_dict(), pipeline.load_state_dict({})):
        with pytest.raises(pa.PipelineNotRunning, match="being entered"):
            await call
    gate.open()
    await entering
    await pipeline.state_dict()
    await pipeline.__aexit__(None, None, None)
