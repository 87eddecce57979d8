"""No order of events on the devices makes a CUDA stream read too early or write too soon, and the test would see it."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from partime_async.devices import CpuDevice, CudaDevice, Device, cuda, cuda_transfers, ready
from partime_async.devices.cuda_event import CudaEvent
from tests.devices.cuda_networks import Difference, Stage, fresh, in_place, run_network, same, streams_on, view
from tests.devices.gpu_double import GpuDouble

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the device itself is here")


@pytest.mark.parametrize("seed", range(16))
async def test_network_any_order_of_events_is_free_of_races(seed: int) -> None:
    """Random stages on random devices give the values of plain calls, and every access to memory is ordered."""
    choice = random.Random(seed)
    gpu = GpuDouble(2, seed=seed, eagerness=choice.choice([0.0, 0.3, 0.9]))
    places: list[Device] = [CudaDevice(0, runtime=gpu), CudaDevice(1, slots=1, runtime=gpu), CpuDevice()]
    count = choice.randint(1, 4)
    devices = [choice.choices(places, (5, 3, 1))[0] for _ in range(count)]
    # The first stage gets the frame of the user, which it must not change.
    kinds: list[Callable[[], nn.Module]] = [Difference, *(partial_stage(run) for run in (fresh, same, view))]
    modules = [choice.choice(kinds)() for _ in range(count)]
    if count > 2 and not isinstance(devices[-2], CpuDevice):
        modules[-2:] = [Stage(fresh), Stage(in_place)]
    assert await run_network(gpu, devices, modules, seed=seed)
    assert gpu.races == []
    assert gpu.open_streams == 0


def partial_stage(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], nn.Module]:
    """Return what makes a stage of a function."""
    return lambda: Stage(run)


MUTANTS = {
    "work does not wait for its source": ("cuda_transfers", "runtime.wait(work, event)", "pass"),
    "work does not wait for its input": ("cuda_transfers", "runtime.wait(work, job.done)", "pass"),
    "a slot is filled again at once": ("cuda_transfers", "self._runtime.synchronize(copied)", "pass"),
    "a copy between devices does not wait": ("cuda_transfers", "runtime.wait(there, event)", "pass"),
    "a result leaves before it is there": ("cuda_transfers", "self._runtime.wait(lane, job.ended)", "pass"),
    "a result slot is given back at once": (
        "cuda_transfers",
        "            job.done = self._runtime.record(lane, is_timed=True)\n",
        "            job.done = self._runtime.record(lane, is_timed=True)\n            self._results.put(job.slot)\n",
    ),
    "the user's stream is not waited for": ("cuda", "self._runtime.record_caller, indices", "lambda _: None, ()"),
    "an input is let go when it is launched": (
        "cuda",
        "        job.launched()\n",
        "        source.release()\n        job.launched()\n",
    ),
    "what was brought is let go when it is launched": (
        "cuda",
        "        job.launched()\n",
        "        job.held = ()\n        job.launched()\n",
    ),
    "a kept input is not copied": ("cuda", "if self._keeps_input:", "if False:"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_checker_without_one_of_the_waits_reports_a_race(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait and each hold is there for a reason: without it, the same runs have races."""
    devices_module = _mutated(*MUTANTS[mutant], monkeypatch)
    if mutant in ("a slot is filled again at once", "a result slot is given back at once"):
        assert await _run_ahead(devices_module, to_host="result" in mutant) != []
        return
    races = []
    for seed in range(20):
        gpu = GpuDouble(2, seed=seed, eagerness=0.1)
        first, second = (devices_module.CudaDevice(index, slots=2, runtime=gpu) for index in range(2))
        modules = [Stage(fresh), Difference(), Stage(fresh), Stage(fresh)]
        with suppress(AssertionError):  # of the double: times of events that are not passed yet
            await run_network(gpu, [first, first, second, second], modules, seed=seed)
        races += gpu.races
        if races:
            break
    assert races


async def test_staging_launcher_far_ahead_waits_for_the_copies() -> None:
    """A launcher that runs ahead of a device that does nothing stops before it rewrites a slot."""
    assert await _run_ahead(cuda) == []


async def _run_ahead(devices_module: ModuleType, *, to_host: bool = False) -> list[str]:
    gpu = GpuDouble()
    async with streams_on(devices_module.CudaDevice(slots=2, runtime=gpu)) as (stream,):
        work, _ = await asyncio.to_thread(stream.prepare, Stage(fresh), torch.zeros(4), capture=False)
        gpu.hold()
        # What comes back is looked at alone: frames that are pinned are not staged.
        frames = [gpu.pin(torch.zeros(4)) if to_host else torch.zeros(4) for _ in range(6)]
        jobs = [stream.enqueue(work, ready(frame), to_host=to_host) for frame in frames]
        assert isinstance(jobs[-1], CudaEvent)
        await asyncio.to_thread(jobs[-1].wait_until_launched)
        gpu.release()
    return gpu.races


def _mutated(name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return `devices.cuda`, made again with one line of its own or of `devices.cuda_transfers` changed."""
    made = {}
    for original in (cuda_transfers, cuda):
        path = Path(str(original.__file__))
        source = path.read_text()
        if path.stem == name:
            assert source.count(old) == 1, f"{old!r} is not a line of {path.name} any more"
            source = source.replace(old, new)
        spec = importlib.util.spec_from_loader(original.__name__, loader=None)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, original.__name__, module)
        exec(compile(source, str(path), "exec"), vars(module))
        made[path.stem] = module
    return made["cuda"]
