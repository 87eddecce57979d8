"""The choice of a cut, measured here: sensible, honest about what was measured, and without a trace."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async import planning
from partime_async.devices import usable_cores
from tests.nets import Residual, assert_same_bits, called, dense, frames_like, streamed

FRAME = torch.ones(1, 6)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for some milliseconds: what is chosen matters less here than that it is sound."""
    monkeypatch.setattr(planning, "_PROFILE_S", 0.01)
    monkeypatch.setattr(planning, "_ROUND_S", 0.01)


def _assert_sound(plan: pa.Plan, module: nn.Sequential) -> None:
    assert sum(plan.balance) == len(list(module)) == len(plan.layer_names)
    assert min(plan.balance) >= 1
    assert len(plan.devices) == len(plan.threads) == len(plan.parameter_bytes) == plan.stages
    assert sum(plan.parameter_bytes) == sum(weight.nbytes for weight in module.parameters())
    assert json.loads(json.dumps(plan.to_dict()))["balance"] == list(plan.balance)
    assert len(str(plan).splitlines()) >= plan.stages + 2


def _assert_priced(plan: pa.Plan) -> None:
    assert len(plan.stage_costs_s) == len(plan.transfer_costs_s) == plan.stages
    assert all(cost > 0 for cost in plan.stage_costs_s)
    assert plan.predicted_period_s >= max(plan.stage_costs_s)
    assert plan.predicted_latency_s >= sum(plan.stage_costs_s)


def test_plan_without_a_wish_races_its_candidates() -> None:
    """With nothing given, as many stages are chosen as pay on these cores, and what was measured is in the plan."""
    module = dense(layers=6)
    plan = pa.plan(module, FRAME)
    _assert_sound(plan, module)
    _assert_priced(plan)
    assert 1 <= plan.stages <= usable_cores()
    assert plan.measured_throughput is not None
    assert plan.measured_throughput > 0
    assert plan.measured_latency_s is not None
    assert "measured:" in str(plan)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_plan_of_given_stages_has_as_many(stages: int) -> None:
    """The number of stages is the caller's to choose, also beyond the cores; each has one thread."""
    module = dense(layers=6)
    plan = pa.plan(module, FRAME, stages=stages)
    _assert_sound(plan, module)
    _assert_priced(plan)
    assert plan.stages == stages
    assert plan.threads == (1,) * stages
    assert plan.measured_throughput is None
    assert plan.note == ""


def test_plan_of_given_stages_and_measure_is_run() -> None:
    """A measured plan says what it gave, in frames/s and in seconds, and stays the plan that was asked for."""
    plan = pa.plan(dense(), FRAME, stages=2, measure=True)
    assert plan.stages == 2
    assert plan.measured_throughput is not None
    assert plan.measured_latency_s is not None
    assert plan.measured_latency_s > 0


def test_plan_of_a_given_balance_is_priced_but_not_changed() -> None:
    """A cut that was given is measured as it is, however uneven."""
    module = dense(layers=6)
    plan = pa.plan(module, FRAME, balance=[1, 9, 1])
    _assert_sound(plan, module)
    _assert_priced(plan)
    assert plan.balance == (1, 9, 1)
    assert plan.stage_costs_s[1] > plan.stage_costs_s[0]


def test_plan_of_uneven_layers_balances_their_measured_costs() -> None:
    """One layer that costs as much as all others together gets a stage to itself."""
    module = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)), nn.Linear(64, 40000), nn.Linear(40000, 64))
    plan = pa.plan(module, torch.ones(1, 64), stages=2)
    assert plan.balance == (5, 1)


def test_plan_that_more_stages_would_not_pay_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """If more stages gave too little, the plan of fewer is chosen and its note says how much they gave."""

    def run(contestant: planning._Contestant, example: Tensor, seconds: float) -> None:
        contestant.periods_s.append(0.01 if len(contestant.streams) == 1 else 0.0096)
        contestant.latencies_s.append(0.01)

    monkeypatch.setattr(planning._Contestant, "run", run)
    module = dense()
    layers, chosen, devices = planning.draw_up(
        planning.Request.checked(module, FRAME, stages=1, balance=None, devices=["cpu"], capture=True)
    )
    request = planning.Request.checked(module, FRAME, stages=None, balance=None, devices=["cpu"], capture=True)
    slow = replace(chosen, balance=(1,) * 7, devices=("cpu",) * 7, threads=(1,) * 7)
    best = planning._raced([slow, chosen], layers, devices, request)[0]
    assert best.stages == 1
    assert "7 stages were tried and gave +4% frames/s" in best.note
    assert "not worth it" in str(best)


@pytest.mark.parametrize("devices", [["simulated:5ms"], ["simulated:5ms"] * 2, ["simulated:2ms+1ms"] * 4])
def test_plan_on_simulated_devices_shares_the_layers_out(devices: list[str]) -> None:
    """A simulated stage takes its time whatever it holds: one stage for each device, the layers evenly."""
    module = dense(layers=6)
    plan = pa.plan(module, FRAME, devices=devices)
    _assert_sound(plan, module)
    assert plan.stages == len(devices)
    assert max(plan.balance) - min(plan.balance) <= 1
    assert plan.predicted_throughput == pytest.approx(200.0 if len(devices) < 4 else 1000 / 3)


def test_plan_on_more_devices_than_layers_leaves_some_out() -> None:
    """There are no more stages than layers."""
    assert pa.plan(nn.Sequential(nn.Linear(6, 6)), FRAME, devices=["simulated:5ms"] * 3).stages == 1
    assert pa.plan(nn.Sequential(nn.Linear(6, 6)), FRAME).stages == 1


def test_plan_of_more_stages_than_devices_lets_neighbours_share() -> None:
    """Several stages on one device are next to each other."""
    plan = pa.plan(dense(layers=6), FRAME, stages=4, devices=["simulated:5ms", "simulated:9ms"])
    assert plan.devices == ("simulated:5ms", "simulated:5ms", "simulated:9ms", "simulated:9ms")


def test_plan_on_two_cpus_has_at_most_two_stages() -> None:
    """Devices that are named bound the number of stages."""
    assert pa.plan(dense(), FRAME, devices=["cpu", "cpu"]).stages <= 2


@pytest.mark.parametrize("stages", [None, 2])
def test_plan_leaves_module_example_and_random_numbers_alone(stages: int | None) -> None:
    """Measuring and racing change nothing of the caller's: weights, modes, example, random state, threads."""
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), Residual(6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    example = torch.randn(4, 6)
    before, example_before = copy.deepcopy(module), example.clone()
    random_state, threads, names = torch.get_rng_state(), torch.get_num_threads(), set(threading.enumerate())
    pa.plan(module, example, stages=stages, measure=True)
    assert_same_bits(list(module.state_dict().values()), list(before.state_dict().values()))
    assert [part.training for part in module.modules()] == [part.training for part in before.modules()]
    assert_same_bits(example, example_before)
    assert_same_bits(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert set(threading.enumerate()) == names


async def test_plan_made_while_a_loop_runs_works() -> None:
    """In a notebook, whose loop runs always, a plan can be made, though it holds the loop up."""
    assert pa.plan(dense(), FRAME, measure=True).measured_throughput is not None


async def test_pipeline_without_a_wish_plans_off_the_loop_and_gives_the_same_numbers() -> None:
    """Entering measures and races on other threads, and what was chosen gives the module's own bits."""
    module, frames = dense(layers=6), frames_like(FRAME, 5)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count())
    async with pa.Pipeline(module, FRAME) as pipeline:
        counting.cancel()
        assert turns > 100, "the loop went on while the plan was made"
        assert pipeline.plan.measured_throughput is not None
        assert_same_bits(await streamed(pipeline, frames), called(module, frames))
        assert len(pipeline.statistics().stages) == pipeline.plan.stages


async def test_pipeline_with_a_balance_measures_nothing() -> None:
    """A cut that is given is taken as it is: entering takes no time for measures, and the plan has none."""
    async with pa.Pipeline(dense(), FRAME, balance=[3, 4]) as pipeline:
        plan = pipeline.plan
    assert plan.balance == (3, 4)
    assert plan.stage_costs_s == ()
    assert "predicted" not in str(plan) or plan.predicted_period_s == 0.0


def test_pipeline_that_was_never_entered_has_no_plan() -> None:
    """There is no plan before the network was cut."""
    with pytest.raises(pa.PipelineNotRunning):
        _ = pa.Pipeline(dense(), FRAME).plan
