"""One stage's learner, called as its device thread does, and the order in which a stage works."""

from __future__ import annotations

import asyncio

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.clock import LoopClock
from partime_async.learning import StageLearner
from partime_async.learning.passes import NONE
from tests.learning.reference import simulate
from tests.learning.school import RULES, SGD, WIDTH, assert_same_weights, blocks, lessons, mse, plain
from tests.nets import TIMEOUT_S, Gate, assert_same_bits

FRAME = torch.full((1, WIDTH), 0.5)
ONES = (torch.ones(1, WIDTH),)


def _first(graph: str = "stash", lag: int = 1, *, stages: int = 2, module: nn.Module | None = None) -> StageLearner:
    learner = pa.Learner(mse, SGD, rule=pa.UpdateRule(graph, lag))
    return StageLearner(learner, module or nn.Linear(WIDTH, WIDTH), 0, stages)


def test_stage_without_a_gradient_takes_no_step() -> None:
    """None is not zero: neither the optimiser nor the version moves, and none is passed on."""
    stage = _first(lag=0)
    stage.forward(0, FRAME)
    assert stage.backward(0, NONE) == NONE
    assert (stage.version, stage.statistics().updates, stage.statistics().discarded) == (0, 0, 0)


def test_stage_given_a_gradient_for_a_pass_that_is_gone_discards_and_counts_it() -> None:
    """A gradient that finds nothing to go back through teaches nothing."""
    stage = _first(lag=1)
    assert stage.backward(1, ONES) == NONE
    assert stage.statistics().discarded == 1
    assert stage.version == 0


def test_stage_emits_a_gradient_for_every_input_and_an_empty_tensor_where_there_is_none() -> None:
    """Inputs of integers, and those that nothing depends on, get no gradient: empty, never zeros."""

    class Picks(nn.Module):
        """Uses the first of three."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, values: tuple[Tensor, ...]) -> Tensor:
            """Return the first, turned."""
            turned: Tensor = self.linear(values[0])
            return turned

    stage = StageLearner(pa.Learner(mse, SGD, rule=pa.rules.exact()), Picks(), 1, 2)
    output, loss = stage.forward(0, (FRAME, torch.ones(2, dtype=torch.long), torch.ones(3)), FRAME)
    assert loss == float(mse(output, FRAME))
    used, integers, unused = stage.backward(0)
    assert used.shape == FRAME.shape
    assert (integers.numel(), unused.numel()) == (0, 0)


def test_stage_hands_out_an_output_without_a_graph() -> None:
    """What leaves a stage cannot reach its weights, nor, behind the last stage, its memory."""
    stage = StageLearner(
        pa.Learner(mse, SGD, rule=pa.rules.exact()), nn.Sequential(nn.Linear(WIDTH, 2), nn.Tanh()), 0, 1
    )
    output, _ = stage.forward(0, FRAME, torch.zeros(1, 2))
    assert isinstance(output, Tensor)
    assert not output.requires_grad
    output.fill_(7.0)  # the graph keeps the output of Tanh: a shared one would spoil the gradient, or raise
    stage.backward(0)
    assert stage.version == 1


def test_stage_leaves_no_gradient_in_its_parameters() -> None:
    """A gradient is applied once: none is left that a later pass would add to."""
    module = nn.Linear(WIDTH, WIDTH)
    stage = _first("current", 2, module=module)
    stage.forward(0, FRAME)
    stage.forward(1, FRAME)
    for event in (6, 7):
        stage.forward(event, FRAME)
        stage.backward(event, ONES)
    assert stage.statistics().updates == 2
    assert all(parameter.grad is None for parameter in module.parameters())


def test_stage_under_stash_keeps_one_copy_of_the_weights_per_version() -> None:
    """Frames that ran at one version share its leaves: nothing is copied while nothing is learned."""
    stage = _first("stash", 4)
    for event in range(3):
        stage.forward(event, FRAME)
        stage.backward(event)
    copies = {id(tensor) for each in stage._passes.values() if each.leaves for tensor in each.leaves.tensors}
    assert len(copies) == 2


def test_stage_begun_again_has_no_frame_to_come_back_to() -> None:
    """The frames of another run have the same numbers: nothing of the last one may answer to them."""
    stage = _first("stash", 1)
    for event in range(3):
        stage.forward(event, FRAME)
    stage.begin()
    assert stage.statistics().kept == 0
    assert stage.backward(3, ONES) == NONE


def test_module_of_a_stage_is_itself_again_behind_every_pass() -> None:
    """What stands in for weights and buffers is there during the pass alone, also when the pass raises."""

    class Fails(nn.Module):
        """Raises when told to."""

        is_told = False

        def forward(self, value: Tensor) -> Tensor:
            """Return the input, or raise."""
            if self.is_told:
                raise ValueError("as told")
            return value * 1.0

    failing = Fails()
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), failing).eval()
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for graph in ("stash", "replay"):
        stage = _first(graph, 1, module=module)
        stage.forward(0, FRAME)
        stage.forward(1, FRAME)
        failing.is_told = True
        with pytest.raises(ValueError, match="as told"):
            stage.forward(2, FRAME)
        if graph == "replay":
            with pytest.raises(ValueError, match="as told"):
                stage.backward(2, ONES)
        failing.is_told = False
        now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        assert all(now[name] is own[name] for name in own)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("rule", RULES, ids=str)
async def test_result_leaves_before_what_is_learned_from_its_frame(rule: pa.UpdateRule, stages: int) -> None:
    """A stage held up in its optimiser's step has handed its output on: the frame's result comes all the same."""
    gate = Gate()
    learner = pa.Learner(mse, SGD, rule=rule, gradient_hook=lambda *_: gate.go_through())
    frames, targets = lessons(9, missing=0.0)
    async with asyncio.timeout(TIMEOUT_S), pa.Pipeline(blocks(2), FRAME, stages=stages, learner=learner) as pipeline:
        for frame, target in zip(frames[:5], targets[:5], strict=True):
            await pipeline.process(frame, target)
        for frame, target in zip(frames[5:], targets[5:], strict=True):
            await pipeline.state_dict()  # behind what the frames before teach
            gate.close()
            result = await pipeline.process(frame, target)
            assert result.loss is not None
            await gate.reached()
            gate.open()


SERVICE_S = 0.01


@pytest.mark.looptime
@pytest.mark.parametrize("rule", [pa.rules.pipedream(), pa.rules.partime(), pa.rules.replay()], ids=str)
async def test_latency_on_an_idle_pipeline_is_that_of_the_forward_passes(rule: pa.UpdateRule) -> None:
    """A frame waits for nobody's backward pass, if it comes when all of them are done."""
    devices = [pa.SimulatedDevice(SERVICE_S) for _ in range(4)]
    frames, targets = lessons(12, missing=0.0)
    net, learner = blocks(4), pa.Learner(mse, SGD, rule=rule)
    pipeline = pa.Pipeline(net, FRAME, balance=[1] * 4, devices=devices, learner=learner, clock=LoopClock())
    async with pipeline:
        for frame, target in zip(frames, targets, strict=True):
            result = await pipeline.process(frame, target)
            assert result.latency_s == pytest.approx(4 * SERVICE_S)
            await asyncio.sleep(10 * SERVICE_S)  # of virtual time: until all is learned
    assert_same_weights(
        await pipeline.state_dict(), simulate(net, [1] * 4, frames, targets, plain(learner)).weights[-1]
    )


@pytest.mark.looptime
async def test_learning_at_lag_one_overlaps_in_all_stages() -> None:
    """With equal forward and backward passes, four stages learn about as fast as one of them could alone."""
    devices = [pa.SimulatedDevice(SERVICE_S) for _ in range(4)]
    count = 60
    frames, targets = lessons(count, missing=0.0)
    learner, clock = pa.Learner(mse, SGD), LoopClock()
    pipeline = pa.Pipeline(blocks(4), FRAME, balance=[1] * 4, devices=devices, learner=learner, clock=clock)
    async with pipeline:
        began = clock.now()
        results = [result async for result in pipeline.stream(list(zip(frames, targets, strict=True)))]
        took = clock.now() - began
    assert len(results) == count
    assert took / count < 1.25 * 2 * SERVICE_S


async def test_stages_of_a_pipeline_learn_the_same_whether_they_are_looked_at_or_not() -> None:
    """Snapshots and statistics in the middle of the stream change no bit."""
    frames, targets = lessons(10)
    ends = []
    for is_looked_at in (False, True):
        torch.manual_seed(5)
        async with pa.Pipeline(blocks(3), FRAME, balance=[1, 1, 1], learner=pa.Learner(mse, SGD)) as pipeline:
            for frame, target in zip(frames, targets, strict=True):
                await pipeline.process(frame, target)
                if is_looked_at:
                    await pipeline.state_dict()
                    pipeline.statistics()
            ends.append([*(await pipeline.state_dict()).values()])
    assert_same_bits(*ends)
