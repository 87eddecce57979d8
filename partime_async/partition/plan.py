"""Choose how many stages, where to cut, on which devices and with how many threads."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from partime_async.errors import ConfigurationError
from partime_async.partition.balance import balance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from partime_async.partition.layers import LayerChain
    from partime_async.partition.profile import Profile


@dataclass(frozen=True, slots=True)
class Plan:
    """A way to run a chain of layers as stages, and what it should give.

    Attributes:
        balance: Layers of each stage.
        devices: Device of each stage.
        threads: Intra-op threads of each stage; 1 where the device is no CPU.
        layer_names: The layers, of all stages.
        parameter_bytes: Bytes of the parameters of each stage.
        stage_costs_s: Seconds that each stage computes for one frame; empty where nobody measured the layers.
        transfer_costs_s: Seconds to bring a frame's values into each stage; empty where nobody measured the layers.
        predicted_period_s: Seconds from one result to the next when frames never run out; 0 where nothing is known.
        note: Why fewer stages were chosen than could be; empty if they were not.
        measured_throughput: Frames/s, where somebody measured it.
        measured_latency_s: Seconds from a frame's admission to its result, where somebody measured it.
    """

    balance: tuple[int, ...]
    devices: tuple[str, ...]
    threads: tuple[int, ...]
    layer_names: tuple[str, ...]
    parameter_bytes: tuple[int, ...]
    stage_costs_s: tuple[float, ...]
    transfer_costs_s: tuple[float, ...]
    predicted_period_s: float
    note: str = ""
    measured_throughput: float | None = None
    measured_latency_s: float | None = None

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.balance)

    @property
    def predicted_throughput(self) -> float:
        """Frames/s when frames never run out; infinite where nothing is known."""
        return 1.0 / self.predicted_period_s if self.predicted_period_s else float("inf")

    @property
    def predicted_latency_s(self) -> float:
        """Seconds that one frame takes through all stages."""
        return sum(self.stage_costs_s) + sum(self.transfer_costs_s)

    def to_dict(self) -> dict[str, object]:
        """Return the plan as values that `json` writes."""
        fields = {name: list(item) if isinstance(item, tuple) else item for name, item in asdict(self).items()}
        derived = {
            "predicted_throughput": self.predicted_throughput if self.predicted_period_s else None,  # JSON has no inf
            "predicted_latency_s": self.predicted_latency_s,
        }
        return fields | derived

    def __str__(self) -> str:
        heads = ("stage", "device", "threads", "layers", "count", "parameters", "ms", "share")
        rows = [heads, *(self._row(stage) for stage in range(self.stages))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if head in ("device", "layers") else cell.rjust(width)
                for cell, width, head in zip(row, widths, heads, strict=True)
            ).rstrip()
            for row in rows
        ]
        if self.predicted_period_s:
            lines.append(_figures("predicted", self.predicted_throughput, self.predicted_latency_s))
        if self.measured_throughput is not None:
            lines.append(_figures("measured", self.measured_throughput, self.measured_latency_s))
        return "\n".join([*lines, self.note] if self.note else lines)

    def _row(self, stage: int) -> tuple[str, ...]:
        start = sum(self.balance[:stage])
        first, last = self.layer_names[start], self.layer_names[start + self.balance[stage] - 1]
        cost, total = dict(enumerate(self.stage_costs_s)).get(stage), sum(self.stage_costs_s)
        return (
            str(stage),
            self.devices[stage],
            str(self.threads[stage]),
            first if self.balance[stage] == 1 else f"{first} .. {last}",
            str(self.balance[stage]),
            _bytes(self.parameter_bytes[stage]),
            "-" if cost is None else f"{1e3 * cost:.2f}",
            f"{cost / total:.0%}" if cost is not None and total else "-",
        )


def _figures(word: str, throughput: float, latency_s: float | None) -> str:
    latency = "" if latency_s is None else f", latency {1e3 * latency_s:.2f} ms"
    return f"{word}: {throughput:.1f} frames/s{latency}"


def _bytes(size: int) -> str:
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _counted(stages: int) -> str:
    return "1 stage" if stages == 1 else f"{stages} stages"


def choose(
    profiles: Mapping[int, Profile],
    chain: LayerChain,
    *,
    cores: int,
    devices: Sequence[str] | None = None,
    stages: int | None = None,
    device_profiles: Mapping[str, Profile] | None = None,
    hop_cost_s: float = 50e-6,
    bandwidth_bytes_per_s: float = 8e9,
    margin: float = 0.05,
) -> list[Plan]:
    """Predict every sensible plan from measured costs, and order them.

    The model: stages on a CPU share its cores, so a frame takes at least the sum of stage seconds times threads,
    divided by the cores; stages on one accelerator take turns; every boundary between stages costs the later one a
    hop, and the bytes of its values where the device changes. Memory bandwidth and the interpreter's lock are not in
    it: plans near each other are worth measuring.

    Args:
        profiles: Costs on the CPU, by the intra-op threads of one stage; may be empty where no stage is on a CPU.
        chain: The layers.
        cores: CPU cores to count on. No plan runs more threads than these at a time, unless `stages` asks for it.
        devices: The devices in the order of the stages. More stages than devices share them in runs of equal length;
            fewer use the first ones. None, or one CPU alone: as many stages on the CPU as pay.
        stages: How many stages; None to compare all that fit.
        device_profiles: Costs on the other devices, by name.
        hop_cost_s: Seconds for the hand-over of a frame from one stage to the next.
        bandwidth_bytes_per_s: Of a copy between devices.
        margin: By which share a plan's period must be shorter to be chosen over one of fewer stages.

    Returns:
        The chosen plan, then the others by predicted period, latency and number of stages.

    Raises:
        PartitionError: That many stages are impossible; the caller is at fault.
        ConfigurationError: A profile that is needed, or a positive number, is missing; the caller is at fault.
    """
    _check(profiles, cores, devices, stages)
    model = _Model(profiles, device_profiles or {}, chain, cores, hop_cost_s, bandwidth_bytes_per_s)
    counts = [stages] if stages is not None else range(1, _most_stages(chain, cores, devices) + 1)
    plans = [
        model.plan(placement, threads)
        for count in counts
        for placement in [_placement(devices or ["cpu"], count)]
        for threads in _thread_counts(profiles, placement, cores, is_fixed=stages is not None)
    ]
    plans.sort(key=_order)
    best = _preferred(plans, margin)
    return [replace(best, note=_note(best, plans, margin)), *(plan for plan in plans if plan is not best)]


def _check(profiles: Mapping[int, Profile], cores: int, devices: Sequence[str] | None, stages: int | None) -> None:
    for name, number in (("cores", cores), ("stages", stages if stages is not None else 1)):
        if number < 1:
            raise ConfigurationError(f"{name}={number} cannot be planned for. Give at least 1.")
    if devices is not None and not devices:
        raise ConfigurationError("the list of devices is empty. Name at least one, or give None for the CPU.")
    if not profiles and any(map(_is_cpu, devices or ["cpu"])):
        raise ConfigurationError("there is no profile of the CPU. Give one for at least one thread count.")


def _is_cpu(device: str) -> bool:
    return device.partition(":")[0] == "cpu"


def _most_stages(chain: LayerChain, cores: int, devices: Sequence[str] | None) -> int:
    is_free = devices is None or (len(devices) == 1 and _is_cpu(devices[0]))
    return min(cores if is_free else len(devices or ()), len(chain) - len(chain.forbidden_cuts))


def _placement(devices: Sequence[str], stages: int) -> tuple[str, ...]:
    used = devices[:stages]
    return tuple(used[stage * len(used) // stages] for stage in range(stages))


def _thread_counts(
    profiles: Mapping[int, Profile], placement: Sequence[str], cores: int, *, is_fixed: bool
) -> Iterable[int]:
    on_cpu = sum(map(_is_cpu, placement))
    if not on_cpu:
        return (1,)
    fitting = [threads for threads in sorted(profiles) if threads * on_cpu <= cores]
    # One stage is always a candidate, and so is what was asked for, crowded as it may be.
    return fitting or ([min(profiles)] if is_fixed or len(placement) == 1 else [])


def _order(plan: Plan) -> tuple[float, float, int]:
    return plan.predicted_period_s, plan.predicted_latency_s, plan.stages


def _preferred(plans: Sequence[Plan], margin: float) -> Plan:
    """Return the best plan of the fewest stages that no more stages beat by the margin; `plans` is in order."""
    firsts: dict[int, Plan] = {}
    for plan in plans:
        firsts.setdefault(plan.stages, plan)
    best, *others = (firsts[count] for count in sorted(firsts))
    for plan in others:
        if plan.predicted_period_s < best.predicted_period_s * (1 - margin):
            best = plan
    return best


def _note(best: Plan, plans: Sequence[Plan], margin: float) -> str:
    more = [plan for plan in plans if plan.stages > best.stages]
    if not more:
        return ""
    gain = more[0].predicted_throughput / best.predicted_throughput - 1 if best.predicted_period_s else 0.0
    return (
        f"{_counted(best.stages)}: {_counted(more[0].stages)} would give {gain:+.1%} frames/s, "
        f"and more stages must shorten the time between two results by {margin:.0%} to be chosen."
    )


@dataclass(frozen=True, slots=True)
class _Model:
    profiles: Mapping[int, Profile]
    device_profiles: Mapping[str, Profile]
    chain: LayerChain
    cores: int
    hop_cost_s: float
    bandwidth_bytes_per_s: float

    def plan(self, placement: tuple[str, ...], threads: int) -> Plan:
        profiles = [self._profile(device, threads) for device in placement]
        costs = [profile.costs_s for profile in profiles]
        # The frame comes from the host: a first stage on an accelerator copies it, and nobody hands it over.
        origins = ("cpu", *placement[:-1])
        transfers = [
            self._transfers(profiles[stage].cut_bytes, origins[stage], device, self.hop_cost_s if stage else 0.0)
            for stage, device in enumerate(placement)
        ]
        sizes = balance(costs, transfers, forbidden_cuts=self.chain.forbidden_cuts)
        starts = (0, *itertools.accumulate(sizes))
        spans = list(itertools.pairwise(starts))
        stage_costs = tuple(sum(row[start:stop]) for row, (start, stop) in zip(costs, spans, strict=True))
        transfer_costs = tuple(row[start] for row, (start, _) in zip(transfers, spans, strict=True))
        stage_threads = tuple(threads if _is_cpu(device) else 1 for device in placement)
        return Plan(
            balance=sizes,
            devices=placement,
            threads=stage_threads,
            layer_names=self.chain.names,
            parameter_bytes=tuple(sum(profiles[0].parameter_bytes[start:stop]) for start, stop in spans),
            stage_costs_s=stage_costs,
            transfer_costs_s=transfer_costs,
            predicted_period_s=self._period(placement, stage_costs, transfer_costs, stage_threads),
        )

    def _profile(self, device: str, threads: int) -> Profile:
        profile = self.profiles[threads] if _is_cpu(device) else self.device_profiles.get(device)
        if profile is None:
            raise ConfigurationError(
                f"there is no profile of device {device!r}, only of {sorted(self.device_profiles) or 'the CPU'}. "
                "Measure it first, or leave the device out."
            )
        return profile

    def _transfers(self, cut_bytes: Sequence[int], origin: str, device: str, hop_s: float) -> list[float]:
        is_copied = origin != device and not (_is_cpu(origin) and _is_cpu(device))
        return [hop_s + (size / self.bandwidth_bytes_per_s if is_copied else 0.0) for size in cut_bytes[:-1]]

    def _period(
        self,
        placement: Sequence[str],
        stage_costs: Sequence[float],
        transfer_costs: Sequence[float],
        threads: Sequence[int],
    ) -> float:
        bounds = [cost + transfer for cost, transfer in zip(stage_costs, transfer_costs, strict=True)]
        loads: dict[str, float] = {}
        for device, cost, count in zip(placement, stage_costs, threads, strict=True):
            is_cpu = _is_cpu(device)
            share = cost * count / self.cores if is_cpu else cost
            loads["cpu" if is_cpu else device] = loads.get("cpu" if is_cpu else device, 0.0) + share
        return max(*bounds, *loads.values())
