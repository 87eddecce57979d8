"""Plans: the model's arithmetic, the choice, and the table."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from partime_async.errors import ConfigurationError, PartitionError
from partime_async.partition.layers import LayerChain, chain
from partime_async.partition.plan import Plan, choose
from partime_async.partition.profile import Profile


def a_chain(layers: int = 8) -> LayerChain:
    """Build a chain of that many layers."""
    return chain(nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers))), torch.ones(1, 2))


def a_profile(
    *, layer_s: float = 1e-3, layers: int = 8, device: str = "cpu", threads: int = 1, cut_bytes: int = 8000
) -> Profile:
    """Make a profile of equal layers."""
    return Profile(
        names=tuple(map(str, range(layers))),
        device=device,
        threads=threads,
        repeats=3,
        layer_s=(layer_s,) * layers,
        whole_s=layers * layer_s,
        cut_bytes=(cut_bytes,) * (layers + 1),
        parameter_bytes=(24,) * layers,
    )


def test_choose_of_equal_layers_on_two_cores_takes_two_stages() -> None:
    """Two stages halve the time between results, and the latency is the sum of stages and hop."""
    best = choose({1: a_profile()}, a_chain(), cores=2)[0]
    assert best.balance == (4, 4)
    assert best.devices == ("cpu", "cpu")
    assert best.threads == (1, 1)
    assert best.predicted_period_s == pytest.approx(4.05e-3)
    assert best.predicted_throughput == pytest.approx(1 / 4.05e-3)
    assert best.predicted_latency_s == pytest.approx(8.05e-3)
    assert best.parameter_bytes == (96, 96)
    assert best.note == ""


def test_choose_compares_stages_and_threads_that_fit_the_cores() -> None:
    """Candidates are all stages and threads whose product fits, best first."""
    profiles = {1: a_profile(), 2: a_profile(layer_s=0.6e-3, threads=2), 4: a_profile(layer_s=0.5e-3, threads=4)}
    plans = choose(profiles, a_chain(), cores=4)
    assert {(plan.stages, plan.threads[0]) for plan in plans} == {
        (1, 1),
        (1, 2),
        (1, 4),
        (2, 1),
        (2, 2),
        (3, 1),
        (4, 1),
    }
    periods = [plan.predicted_period_s for plan in plans]
    assert periods == sorted(periods)
    assert (plans[0].stages, plans[0].threads[0]) == (4, 1)


def test_choose_of_small_layers_keeps_one_stage_and_says_why() -> None:
    """Where the hop eats the gain one stage is planned, and the note has the gain and the margin."""
    best, other = choose({1: a_profile(layer_s=7.3e-6)}, a_chain(), cores=2)
    assert best.stages == 1
    assert other.stages == 2
    assert other.predicted_period_s < best.predicted_period_s
    assert best.note.startswith("1 stage: 2 stages would give +1.9% frames/s")
    assert "5%" in best.note


def test_choose_with_a_wider_margin_keeps_fewer_stages() -> None:
    """The margin is the caller's."""
    assert choose({1: a_profile()}, a_chain(), cores=2, margin=0.6)[0].stages == 1


def test_choose_with_stages_given_plans_only_these_even_on_fewer_cores() -> None:
    """Stages asked for are planned though they crowd the cores, and the cores bound what they give."""
    plans = choose({1: a_profile(), 2: a_profile(layer_s=0.6e-3, threads=2)}, a_chain(), cores=2, stages=4)
    assert [plan.balance for plan in plans] == [(2, 2, 2, 2)]
    assert plans[0].threads == (1, 1, 1, 1)
    assert plans[0].predicted_period_s == pytest.approx(4e-3)


def test_choose_with_forbidden_cuts_respects_them() -> None:
    """No plan cuts where the chain must not be cut, and no more stages are tried than its cuts allow."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2))
    layers = chain(module, torch.ones(1, 2))
    plans = choose({1: a_profile(layers=4)}, layers, cores=4)
    assert max(plan.stages for plan in plans) == 3
    assert next(plan for plan in plans if plan.stages == 2).balance in {(1, 3), (3, 1)}


def test_choose_with_two_accelerators_charges_the_copies() -> None:
    """The frame's copy to the first device and the copy between devices are part of the stages' times."""
    profiles = {name: a_profile(device=name) for name in ("cuda:0", "cuda:1")}
    plans = choose(
        {}, a_chain(), cores=2, devices=["cuda:0", "cuda:1"], device_profiles=profiles, bandwidth_bytes_per_s=8e6
    )
    assert plans[0].devices == ("cuda:0", "cuda:1")
    assert plans[0].transfer_costs_s == pytest.approx((1e-3, 1.05e-3))
    assert plans[0].predicted_period_s == pytest.approx(5.05e-3)
    assert plans[1].devices == ("cuda:0",)


def test_choose_with_stages_on_one_accelerator_is_bound_by_their_sum() -> None:
    """Stages that share an accelerator take turns on it, so more of them promise nothing."""
    plans = choose(
        {}, a_chain(), cores=2, devices=["cuda:0"], stages=4, device_profiles={"cuda:0": a_profile(device="cuda:0")}
    )
    assert plans[0].devices == ("cuda:0",) * 4
    assert plans[0].predicted_period_s == pytest.approx(8e-3)


def test_choose_with_processor_and_accelerator_uses_each_ones_profile() -> None:
    """The division follows the speed of each device."""
    plans = choose(
        {1: a_profile(layer_s=3e-3)},
        a_chain(),
        cores=2,
        devices=["cpu", "cuda:0"],
        stages=2,
        device_profiles={"cuda:0": a_profile(device="cuda:0")},
    )
    assert plans[0].balance == (2, 6)
    assert plans[0].threads == (1, 1)


def test_choose_with_more_stages_than_devices_gives_each_a_run() -> None:
    """Stages share the devices in their order."""
    profiles = {name: a_profile(device=name) for name in ("cuda:0", "cuda:1")}
    plans = choose({}, a_chain(), cores=2, devices=list(profiles), stages=4, device_profiles=profiles)
    assert plans[0].devices == ("cuda:0", "cuda:0", "cuda:1", "cuda:1")


def test_choose_with_one_processor_named_is_free_to_use_its_cores() -> None:
    """Naming the CPU once does not limit it to one stage; naming it twice does limit it to two."""
    assert choose({1: a_profile()}, a_chain(), cores=4, devices=["cpu"])[0].stages == 4
    assert choose({1: a_profile()}, a_chain(), cores=4, devices=["cpu", "cpu"])[0].stages == 2


def test_choose_of_layers_without_cost_gives_one_stage() -> None:
    """Costs of zero, as a coarse timer may give, divide nothing by zero."""
    best = choose({1: a_profile(layer_s=0.0)}, a_chain(), cores=2)[0]
    assert best.stages == 1
    assert best.predicted_throughput == float("inf")
    assert "-" in str(best)


def test_choose_on_one_core_with_profiles_of_more_threads_only_gives_one_stage() -> None:
    """One stage is planned whatever was profiled."""
    assert choose({2: a_profile(threads=2)}, a_chain(), cores=1)[0].balance == (8,)


def test_choose_of_too_many_stages_raises() -> None:
    """More stages than layers are refused with the number that works."""
    with pytest.raises(PartitionError, match="Use at most 8"):
        choose({1: a_profile()}, a_chain(), cores=2, stages=9)


def test_choose_without_what_it_needs_raises() -> None:
    """A missing profile, an empty list of devices and a count of zero are refused."""
    layers = a_chain()
    with pytest.raises(ConfigurationError, match="no profile of the CPU"):
        choose({}, layers, cores=2)
    with pytest.raises(ConfigurationError, match="no profile of device 'cuda:0'"):
        choose({1: a_profile()}, layers, cores=2, devices=["cuda:0"])
    with pytest.raises(ConfigurationError, match="list of devices is empty"):
        choose({1: a_profile()}, layers, cores=2, devices=[])
    with pytest.raises(ConfigurationError, match="cores=0"):
        choose({1: a_profile()}, layers, cores=0)
    with pytest.raises(ConfigurationError, match="stages=0"):
        choose({1: a_profile()}, layers, cores=2, stages=0)


def a_plan() -> Plan:
    """Make a plan of two unequal stages."""
    return Plan(
        balance=(1, 3),
        devices=("cpu", "cuda:0"),
        threads=(1, 1),
        layer_names=("conv1", "relu1", "conv2", "relu2"),
        parameter_bytes=(900, 2_500_000),
        stage_costs_s=(1e-3, 3e-3),
        transfer_costs_s=(0.0, 1e-3),
        predicted_period_s=4e-3,
    )


def test_plan_prints_as_a_table() -> None:
    """A line for each stage, and the predicted figures under it."""
    assert str(a_plan()) == (
        "stage  device  threads  layers          count  parameters    ms  share\n"
        "    0  cpu           1  conv1               1       900 B  1.00    25%\n"
        "    1  cuda:0        1  relu1 .. relu2      3      2.5 MB  3.00    75%\n"
        "predicted: 250.0 frames/s, latency 5.00 ms"
    )


def test_plan_with_measured_figures_and_a_note_prints_them() -> None:
    """Measured figures and the note follow the predicted ones."""
    measured = dataclasses.replace(a_plan(), measured_throughput=200.0, measured_latency_s=6e-3, note="why")
    assert str(measured).splitlines()[-2:] == ["measured: 200.0 frames/s, latency 6.00 ms", "why"]
    half = dataclasses.replace(a_plan(), measured_throughput=200.0)
    assert str(half).splitlines()[-1] == "measured: 200.0 frames/s"


def test_plan_as_a_dictionary_survives_json() -> None:
    """All fields and the figures derived from them are there as plain values."""
    plan = a_plan()
    fields = json.loads(json.dumps(plan.to_dict()))
    assert fields["balance"] == [1, 3]
    assert fields["predicted_throughput"] == pytest.approx(250.0)
    assert fields["predicted_latency_s"] == pytest.approx(5e-3)
    assert set(fields) > {field.name for field in dataclasses.fields(plan)}


def test_plan_whose_layers_nobody_measured_prints_without_figures() -> None:
    """A plan for a balance that was given has a table without times, and plain values for json."""
    plan = dataclasses.replace(a_plan(), stage_costs_s=(), transfer_costs_s=(), predicted_period_s=0.0)
    assert str(plan) == (
        "stage  device  threads  layers          count  parameters  ms  share\n"
        "    0  cpu           1  conv1               1       900 B   -      -\n"
        "    1  cuda:0        1  relu1 .. relu2      3      2.5 MB   -      -"
    )
    assert json.loads(json.dumps(plan.to_dict(), allow_nan=False))["predicted_throughput"] is None


def test_plan_of_a_huge_net_prints_gigabytes() -> None:
    """Sizes beyond the largest unit stay in it."""
    assert "2500.0 GB" in str(dataclasses.replace(a_plan(), parameter_bytes=(900, 2_500_000_000_000)))
