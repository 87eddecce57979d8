"""A private copy of the network, tried out on a thread of its own while the stream goes on."""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.evaluation import Contents, Original, rest_of
from tests.nets import TIMEOUT_S, Gate, Reveals, dense, frames_like

EXAMPLE = torch.zeros(1, 6)


class Rich(nn.Module):
    """Has everything that a copy may get wrong: ties, buffers in and out of the state, a mode, plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("offset", torch.ones(6), persistent=False)
        self.head = nn.Linear(6, 6)
        self.label = "as it came"

    def forward(self, value: Tensor) -> Tensor:
        """Use them all."""
        result: Tensor = self.head(self.last(self.drop(self.norm(self.first(value) + self.offset))))
        return result


async def test_evaluate_gives_the_module_as_it_was_passed_in_with_the_weights_of_now() -> None:
    """Class, attributes, ties and buffers are the original's, the mode is evaluation, the weights are learned ones."""
    module = Rich().train()
    example = torch.randn(4, 6)
    learner = pa.Learner(nn.functional.mse_loss, functools.partial(torch.optim.SGD, lr=0.1))

    def look(copied: nn.Module) -> tuple[nn.Module, Tensor]:
        assert not torch.is_grad_enabled()
        return copied, copied(example)

    async with pa.Pipeline(module, example, balance=[5, 1], devices=["cpu"], learner=learner) as pipeline:
        for frame in frames_like(example, 6):
            await pipeline.process(frame, torch.zeros(4, 6))
        copied, output = await pipeline.evaluate(look)
        state = await pipeline.state_dict()
    assert type(copied) is Rich
    assert copied.label == "as it came"
    assert copied.last.weight is copied.first.weight
    assert not any(part.training for part in copied.modules())
    assert all(parameter.requires_grad for parameter in copied.parameters())
    own = copy.deepcopy(module).eval()
    own.load_state_dict(state)
    assert torch.equal(output, own(example))
    assert any(not torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


async def test_evaluate_sees_the_weights_of_one_frame_boundary_while_the_stream_goes_on() -> None:
    """Frames and weight swaps run on during the evaluation; what it sees is from one moment, and stays."""
    module = nn.Sequential(Reveals(), Reveals(), Reveals())
    gate = Gate()

    def look(copied: nn.Module) -> list[dict[str, Tensor]]:
        before = copy.deepcopy(copied.state_dict())
        gate.go_through()
        return [before, dict(copied.state_dict())]

    async with pa.Pipeline(module, EXAMPLE[:, :1], balance=[1, 1, 1], devices=["cpu"]) as pipeline:
        gate.close()
        evaluation = asyncio.ensure_future(pipeline.evaluate(look))
        await gate.reached()
        versions = []
        for number in range(1, 6):
            state = {name: torch.full_like(tensor, number) for name, tensor in (await pipeline.state_dict()).items()}
            await pipeline.load_state_dict(state)
            versions.append((await pipeline.process(EXAMPLE[:, :1])).weight_versions)
        gate.open()
        before, after = await evaluation
        seen = await pipeline.evaluate(lambda copied: {float(tensor) for tensor in copied.parameters()})
    assert versions == [(number,) * 3 for number in range(1, 6)]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert seen == {5.0}


async def test_evaluate_changes_nothing_of_the_pipeline() -> None:
    """The copy is the function's own: to train it, to break it, whatever."""

    def spoil(copied: nn.Module) -> None:
        with torch.no_grad():
            for tensor in (*copied.parameters(), *copied.buffers()):
                tensor.zero_()

    module = Rich().eval()
    example = torch.randn(2, 6)
    async with pa.Pipeline(module, example, balance=[5, 1], devices=["cpu"]) as pipeline:
        await pipeline.evaluate(spoil)
        result = await pipeline.process(example)
        second = await pipeline.evaluate(lambda copied: copied(example))
    assert torch.equal(torch.as_tensor(result.output), module(example))
    assert torch.equal(second, module(example))


async def test_evaluate_runs_on_a_thread_of_its_own_with_one_intra_op_thread() -> None:
    """It takes no core from the stages unless it is told to."""
    names: list[str] = []

    def look(_: nn.Module) -> int:
        names.append(threading.current_thread().name)
        return torch.get_num_threads()

    async with pa.Pipeline(dense(), EXAMPLE, balance=[4, 3], devices=["cpu"]) as pipeline:
        assert await pipeline.evaluate(look) == 1
        assert await pipeline.evaluate(look, threads=2) == 2
    assert names == ["partime evaluation"] * 2


async def test_evaluate_works_before_and_after_running_as_state_dict_does() -> None:
    """It needs the network to be there, not to run."""
    pipeline = pa.Pipeline(dense(), EXAMPLE, balance=[4, 3], devices=["cpu"])
    with pytest.raises(pa.PipelineNotRunning, match="never entered"):
        await pipeline.evaluate(lambda copied: None)
    async with pipeline:
        expected = (await pipeline.process(EXAMPLE + 1.0)).output
    found = await pipeline.evaluate(lambda copied: copied(EXAMPLE + 1.0))
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


async def test_evaluate_raises_what_its_function_raises_and_the_stream_goes_on() -> None:
    """An evaluation that fails is its caller's business alone."""

    def fail(_: nn.Module) -> None:
        raise KeyError("no such data")

    async with pa.Pipeline(dense(), EXAMPLE, balance=[4, 3], devices=["cpu"]) as pipeline:
        with pytest.raises(KeyError, match="no such data"):
            await pipeline.evaluate(fail)
        assert (await pipeline.process(EXAMPLE)).error is None


async def test_evaluate_that_is_cancelled_waits_for_its_function_and_then_raises() -> None:
    """No thread is left that runs something nobody waits for."""
    gate = Gate()
    ended = threading.Event()

    def work(_: nn.Module) -> None:
        gate.go_through()
        ended.set()

    async with pa.Pipeline(dense(), EXAMPLE, balance=[4, 3], devices=["cpu"]) as pipeline:
        gate.close()
        evaluation = asyncio.ensure_future(pipeline.evaluate(work))
        await gate.reached()
        evaluation.cancel()
        await pipeline.process(EXAMPLE)
        assert not evaluation.done()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(evaluation, TIMEOUT_S)
        assert ended.is_set()


async def test_evaluation_outlasts_the_pipeline_that_it_is_of() -> None:
    """Its module needs nothing of the pipeline, which can be left meanwhile."""
    gate = Gate()

    def work(copied: nn.Module) -> Tensor:
        gate.go_through()
        output: Tensor = copied(EXAMPLE)
        return output

    module = dense()
    async with pa.Pipeline(module, EXAMPLE, balance=[4, 3], devices=["cpu"]) as pipeline:
        gate.close()
        evaluation = asyncio.ensure_future(pipeline.evaluate(work))
        await gate.reached()
    gate.open()
    assert torch.equal(await evaluation, module(EXAMPLE))


async def test_evaluate_of_layers_that_remember_starts_fresh_and_leaves_the_feeds_alone() -> None:
    """The copy has a state of its own, from the first frame on."""

    class Sum(pa.Stateful):
        def initial_state(self) -> Tensor:
            return torch.zeros(1, 6)

        def step(self, value: pa.Value, state: pa.Value) -> tuple[pa.Value, pa.Value]:
            after = torch.as_tensor(value) + torch.as_tensor(state)
            return after, after

    one = torch.ones(1, 6)
    async with pa.Pipeline(nn.Sequential(Sum(), nn.Identity()), EXAMPLE, balance=[1, 1], devices=["cpu"]) as pipeline:
        await pipeline.process(one)
        assert float((await pipeline.evaluate(lambda copied: copied(one)))[0, 0]) == 1.0
        assert float(torch.as_tensor((await pipeline.process(one)).output)[0, 0]) == 2.0


@pytest.mark.parametrize("threads", [0, -1, 1.5])
async def test_evaluate_without_a_thread_is_refused(threads: int) -> None:
    """It needs at least one."""
    async with pa.Pipeline(dense(), EXAMPLE, balance=[4, 3], devices=["cpu"]) as pipeline:
        with pytest.raises(pa.ConfigurationError, match="threads is"):
            await pipeline.evaluate(lambda copied: None, threads=threads)


async def test_evaluate_with_a_coroutine_function_is_refused() -> None:
    """What it returned would never be awaited."""

    async def look(_: nn.Module) -> None:
        pass

    async with pa.Pipeline(dense(), EXAMPLE, balance=[4, 3], devices=["cpu"]) as pipeline:
        with pytest.raises(pa.ConfigurationError, match="coroutine"):
            await pipeline.evaluate(look)  # type: ignore[unused-coroutine]


def test_original_has_no_weights_of_its_own_and_does_not_follow_the_module() -> None:
    """It costs no memory to speak of, and what becomes of the module later is no matter."""
    module = Rich()
    original = Original(module)
    contents = Contents(copy.deepcopy(module.state_dict()), rest_of(module))
    module.first = nn.Linear(6, 3)
    module.label = "changed"
    copied = original.copy(contents)
    assert isinstance(copied, Rich)
    assert copied.label == "as it came"
    assert copied.last.weight is copied.first.weight
    gone = weakref.ref(copied)
    del copied
    assert gone() is None


def test_rest_of_a_module_is_what_its_state_dict_leaves_out() -> None:
    """Buffers that are not persistent count for the output as much as the others."""
    module = Rich()
    module.offset.fill_(7.0)  # type: ignore[operator]
    rest = rest_of(module)
    assert list(rest) == ["offset"]
    copied = Original(Rich()).copy(Contents(copy.deepcopy(module.state_dict()), rest))
    assert torch.equal(torch.as_tensor(copied.offset), torch.full((6,), 7.0))
