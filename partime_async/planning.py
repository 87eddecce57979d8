"""Choose how to cut a network here: predict from measured layers, then let the best candidates race each other."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import nn

from partime_async.clock import MonotonicClock
from partime_async.devices import (
    Device,
    DeviceEvent,
    DeviceStream,
    Notifier,
    SimulatedDevice,
    Work,
    cuda_device_count,
    open_device,
    ready,
    usable_cores,
)
from partime_async.errors import ConfigurationError
from partime_async.frame import Value
from partime_async.partition.balance import balance as balanced
from partime_async.partition.balance import check_balance
from partime_async.partition.layers import LayerChain, chain
from partime_async.partition.plan import Plan, choose
from partime_async.partition.probe import fresh, undisturbed
from partime_async.partition.profile import Profile, profile

_PROFILE_S = 0.3
_ROUND_S = 0.15
_ROUNDS = 3
_CANDIDATES = 3
_AHEAD = 3
"""Frames on each stage's stream while candidates race."""

_HOP_S = 10e-6
"""What a stage pays for a hand-over while frames follow each other: its thread never waits for the event loop."""

_MARGIN = 0.05
"""A plan of more stages must give this much more; the same that `partition.plan.choose` asks of predictions."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to plan for; see `Pipeline`."""

    module: nn.Module
    example: Value
    stages: int | None
    balance: tuple[int, ...] | None
    devices: tuple[Device, ...] | None
    capture: bool

    @classmethod
    def checked(
        cls,
        module: nn.Module,
        example: Value,
        *,
        stages: int | None,
        balance: Sequence[int] | None,
        devices: Sequence[str | torch.device | Device] | None,
        capture: bool,
    ) -> Request:
        """Return the request, or say what about it cannot be, as far as that shows without running the module.

        Raises:
            ConfigurationError: Arguments that contradict each other, or an unknown device.
            DeviceError: A device that is not on this machine.
        """
        if not isinstance(module, nn.Module):
            raise ConfigurationError(f"module is a {type(module).__name__}. Pass a torch.nn.Module.")
        if stages is not None and (not isinstance(stages, int) or stages < 1):
            raise ConfigurationError(f"stages is {stages!r}; a pipeline has at least 1. Pass 1 or more, or None.")
        if balance is not None and not isinstance(balance, Sequence):
            raise ConfigurationError(f"balance is {balance!r}. Pass the layers of each stage, such as [3, 2], or None.")
        if stages is not None and balance is not None and stages != len(balance):
            raise ConfigurationError(
                f"stages is {stages} and balance {list(balance)} has {len(balance)} entries. Pass one of the two."
            )
        if devices is not None and (isinstance(devices, str) or not devices):
            raise ConfigurationError(f"devices is {devices!r}. Pass a list such as ['cpu', 'cpu'], or None.")
        opened = None if devices is None else tuple(open_device(device) for device in devices)
        if opened is not None and len({isinstance(device, SimulatedDevice) for device in opened}) > 1:
            raise ConfigurationError("simulated and real devices do not mix. Use one kind for all stages.")
        return cls(module, example, stages, None if balance is None else tuple(balance), opened, capture)


def plan(
    module: nn.Module,
    example: Value,
    *,
    devices: Sequence[str | torch.device | Device] | None = None,
    stages: int | None = None,
    balance: Sequence[int] | None = None,
    capture: bool = True,
    measure: bool = False,
) -> Plan:
    """Measure a network on this machine and return the best way to cut it into stages. Takes seconds; blocks.

    Args:
        module: See `Pipeline`; never changed.
        example: A frame as it will come.
        devices: One per stage; None: every GPU, or the CPU.
        stages: How many stages; None: as many as pay.
        balance: Layers per stage, to see what a given cut would do.
        capture: See `Pipeline`; matters when `measure`.
        measure: Also run the plan for a moment, and fill in `measured_throughput` and `measured_latency_s`. Without
            `stages` and `balance` the best predicted plans are always run against each other.

    Raises:
        PartitionError: The module cannot be cut as asked.
        ConfigurationError: An unknown device.
        DeviceError: A device that is not on this machine.
    """
    request = Request.checked(module, example, stages=stages, balance=balance, devices=devices, capture=capture)
    layers, chosen, used = draw_up(request, is_priced=True)
    if measure and chosen.measured_throughput is None:
        chosen = _raced([chosen], layers, used, request)[0]
    return chosen


def draw_up(request: Request, *, is_priced: bool = False) -> tuple[LayerChain, Plan, tuple[Device, ...]]:
    """Copy the module, cut it, and choose; blocks, so never on the event loop.

    Args:
        request: What is wanted.
        is_priced: Measure the layers also when the cut is given.

    Returns:
        The layers, the plan, and the device of each stage.
    """
    layers = chain(request.module, request.example)
    devices = request.devices or _default_devices()
    if any(isinstance(device, SimulatedDevice) for device in devices):
        chosen, placed = _simulated(layers, request, devices)
        return layers, chosen, placed
    if request.balance is not None:
        sizes = check_balance(request.balance, layers)
        placed = _in_runs(devices, len(sizes))
        return layers, _given(layers, sizes, placed, request, is_priced=is_priced), placed
    by_name = {device.name: device for device in devices}
    names = None if request.devices is None and devices[0].name == "cpu" else [device.name for device in devices]
    candidates = choose(
        _cpu_profiles(layers, request, devices),
        layers,
        cores=usable_cores(),
        devices=names,
        stages=request.stages,
        device_profiles=_device_profiles(layers, request, devices),
        hop_cost_s=_HOP_S,
    )
    if request.stages is None and len(candidates) > 1:
        candidates = _raced(candidates[:_CANDIDATES], layers, tuple(by_name.values()), request)
    chosen = candidates[0]
    return layers, chosen, tuple(by_name[name] for name in chosen.devices)


def _default_devices() -> tuple[Device, ...]:
    count = cuda_device_count()
    return tuple(open_device(f"cuda:{index}") for index in range(count)) or (open_device("cpu"),)


def _in_runs(devices: Sequence[Device], stages: int) -> tuple[Device, ...]:
    """Give each stage its device: neighbours share one where there are more stages than devices."""
    used = devices[:stages]
    return tuple(used[stage * len(used) // stages] for stage in range(stages))


def _simulated(layers: LayerChain, request: Request, devices: Sequence[Device]) -> tuple[Plan, tuple[Device, ...]]:
    count = len(request.balance) if request.balance is not None else request.stages or min(len(devices), len(layers))
    placed = _in_runs(devices, count)
    if request.balance is not None:
        sizes = check_balance(request.balance, layers)
    else:
        # A simulated stage takes its time however many layers it has: share them out evenly.
        even = [[1.0] * len(layers)] * count
        sizes = balanced(even, [[0.0] * len(layers)] * count, forbidden_cuts=layers.forbidden_cuts)
    simulated = [device for device in placed if isinstance(device, SimulatedDevice)]
    costs = tuple(device.service_s for device in simulated)
    transfers = tuple(device.transfer_s for device in simulated)
    period = max(cost + transfer for cost, transfer in zip(costs, transfers, strict=True))
    return _plan(layers, sizes, placed, (1,) * count, costs, transfers, period), placed


def _given(
    layers: LayerChain, sizes: tuple[int, ...], placed: Sequence[Device], request: Request, *, is_priced: bool
) -> Plan:
    threads = (1,) * len(sizes)
    if not is_priced:
        return _plan(layers, sizes, placed, threads, (), (), 0.0)
    profiles = {
        device.name: profile(layers, request.example, device=device.name, budget_s=_PROFILE_S, timer=device.timed)
        for device in placed
    }
    spans = itertools.pairwise((0, *itertools.accumulate(sizes)))
    costs = tuple(
        sum(profiles[device.name].costs_s[start:stop]) for device, (start, stop) in zip(placed, spans, strict=True)
    )
    on_one: dict[str, float] = {}
    for device, cost in zip(placed, costs, strict=True):
        on_one[device.name] = on_one.get(device.name, 0.0) + cost / device.lanes
    return _plan(layers, sizes, placed, threads, costs, (0.0,) * len(sizes), max(*costs, *on_one.values()))


def _plan(
    layers: LayerChain,
    sizes: tuple[int, ...],
    placed: Sequence[Device],
    threads: tuple[int, ...],
    costs: tuple[float, ...],
    transfers: tuple[float, ...],
    period_s: float,
) -> Plan:
    starts = itertools.pairwise((0, *itertools.accumulate(sizes)))
    weights = [layers.slice(start, stop).parameters() for start, stop in starts]
    return Plan(
        balance=sizes,
        devices=tuple(device.name for device in placed),
        threads=threads,
        layer_names=layers.names,
        parameter_bytes=tuple(sum(weight.nbytes for weight in part) for part in weights),
        stage_costs_s=costs,
        transfer_costs_s=transfers,
        predicted_period_s=period_s,
    )


def _cpu_profiles(layers: LayerChain, request: Request, devices: Sequence[Device]) -> dict[int, Profile]:
    if not any(device.name == "cpu" for device in devices):
        return {}
    cores = usable_cores()
    # With the stages given, each gets one thread; free to choose, one stage on all cores is a rival to reckon with.
    counts = {1} if request.stages is not None else {1, *(cores // share for share in range(1, cores + 1))}
    return {threads: profile(layers, request.example, threads=threads, budget_s=_PROFILE_S) for threads in counts}


def _device_profiles(layers: LayerChain, request: Request, devices: Sequence[Device]) -> dict[str, Profile]:
    return {
        device.name: profile(layers, request.example, device=device.name, budget_s=_PROFILE_S, timer=device.timed)
        for device in devices
        if device.name != "cpu"
    }


@dataclass(slots=True)
class _Contestant:
    """A candidate with streams of its own, ready to run."""

    plan: Plan
    streams: list[DeviceStream]
    works: list[Work] = field(default_factory=list)
    periods_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def run(self, example: Value, seconds: float) -> None:
        """Run frames for about this long, as far ahead as a pipeline would."""
        pending: deque[DeviceEvent] = deque()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds or count < _AHEAD:
            pending.append(self._enqueue(example))
            count += 1
            if len(pending) > _AHEAD * len(self.streams):
                pending.popleft().wait()
        for event in pending:
            event.wait()
        self.periods_s.append((time.perf_counter() - began) / count)
        began = time.perf_counter()
        self._enqueue(example).wait()
        self.latencies_s.append(time.perf_counter() - began)

    def outcome(self) -> Plan:
        """Return the plan with what was measured."""
        return replace(
            self.plan, measured_throughput=1.0 / median(self.periods_s), measured_latency_s=median(self.latencies_s)
        )

    def _enqueue(self, example: Value) -> DeviceEvent:
        event = ready(example)
        for number, (stream, work) in enumerate(zip(self.streams, self.works, strict=True)):
            event = stream.enqueue(work, event, to_host=number == len(self.streams) - 1)
        return event


def _raced(plans: Sequence[Plan], layers: LayerChain, devices: Sequence[Device], request: Request) -> list[Plan]:
    """Run the candidates in turns, so that what else the machine does hits all alike, and order them by the result."""
    by_name = {device.name: device for device in devices}
    touched = dict.fromkeys(device.torch_device for device in devices)
    # On a thread of its own, as the caller's may have a loop that runs already.
    with undisturbed([*touched], skipped=0), ThreadPoolExecutor(1, "partime race") as thread:
        outcomes = thread.submit(lambda: asyncio.run(_race(plans, layers, by_name, request))).result()
    outcomes.sort(key=lambda plan: plan.stages)
    best, *others = outcomes
    for rival in others:
        if (rival.measured_throughput or 0.0) > (best.measured_throughput or 0.0) * (1 + _MARGIN):
            best = rival
    more = [plan for plan in outcomes if plan.stages > best.stages]
    if more:
        rival = max(more, key=lambda plan: plan.measured_throughput or 0.0)
        gain = (rival.measured_throughput or 0.0) / (best.measured_throughput or 1.0) - 1
        best = replace(best, note=f"{rival.stages} stages were tried and gave {gain:+.0%} frames/s: not worth it.")
    return [best, *(plan for plan in outcomes if plan.balance != best.balance or plan.threads != best.threads)]


async def _race(plans: Sequence[Plan], layers: LayerChain, devices: dict[str, Device], request: Request) -> list[Plan]:
    # A loop of its own, on the planner's thread, that nobody else waits for: blocking it is fine.
    notifier: Notifier[DeviceEvent] = Notifier(asyncio.get_running_loop())
    contestants: list[_Contestant] = []
    try:
        for candidate in plans:
            contestants.append(contestant := _Contestant(candidate, []))
            for number, (name, threads) in enumerate(zip(candidate.devices, candidate.threads, strict=True)):
                stream = devices[name].open_stream(
                    f"partime trial {number}", notifier=notifier, clock=MonotonicClock(), threads=threads
                )
                contestant.streams.append(stream)
            _make_ready(contestant, layers, request)
        for _ in range(_ROUNDS):
            for contestant in contestants:
                contestant.run(request.example, _ROUND_S)
    finally:
        for contestant in contestants:
            for stream in contestant.streams:
                await stream.aclose(timeout_s=10.0)
    return [contestant.outcome() for contestant in contestants]


def _make_ready(contestant: _Contestant, layers: LayerChain, request: Request) -> None:
    # The frames of a race must leave no trace in BatchNorm statistics and the like: they run through a copy.
    scratch = layers.copy()
    value = fresh(request.example)
    spans = itertools.pairwise((0, *itertools.accumulate(contestant.plan.balance)))
    for stream, (start, stop) in zip(contestant.streams, spans, strict=True):
        work, value = stream.prepare(scratch.slice(start, stop), value, capture=request.capture)
        # The example is the caller's own: a layer that writes into its input gets a copy of it.
        contestant.works.append(_on_a_copy(work) if start == 0 and layers.mutates_input else work)


def _on_a_copy(work: Work) -> Work:
    return lambda value: work(fresh(value))
