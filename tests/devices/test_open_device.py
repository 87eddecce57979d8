"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from partime_async.devices import CpuDevice, SimulatedDevice, open_device, usable_cores
from partime_async.errors import ConfigurationError, DeviceError


def test_open_device_cpu_by_name_or_torch_device() -> None:
    """The CPU has as many lanes as this process has cores."""
    for spec in ("cpu", torch.device("cpu")):
        device = open_device(spec)
        assert isinstance(device, CpuDevice)
        assert device.name == "cpu"
        assert device.lanes == usable_cores() >= 1


@pytest.mark.parametrize(
    ("spec", "service_s", "transfer_s"),
    [("simulated:5ms", 0.005, 0.0), ("simulated:0.5ms+0.25ms", 0.0005, 0.00025), ("simulated:0ms", 0.0, 0.0)],
)
def test_open_device_simulated_reads_its_times(spec: str, service_s: float, transfer_s: float) -> None:
    """The name states the times, and the device states the name."""
    device = open_device(spec)
    assert isinstance(device, SimulatedDevice)
    assert (device.service_s, device.transfer_s) == (service_s, transfer_s)
    assert device.name == spec


def test_open_device_device_is_itself() -> None:
    """What is a device already is not opened again."""
    device = SimulatedDevice(0.001)
    assert open_device(device) is device


@pytest.mark.parametrize("spec", ["gpu", "cuda:", "cuda:x", "cuda:-1", "simulated", "simulated:5", "cpu:0", ""])
def test_open_device_unknown_name_says_which_there_are(spec: str) -> None:
    """A name that no device has is refused with examples of names."""
    with pytest.raises(ConfigurationError, match=r"unknown device .* Use 'cpu', 'cuda'"):
        open_device(spec)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is here")
@pytest.mark.parametrize("spec", ["cuda", "cuda:1", torch.device("cuda", 0)])
def test_open_device_cuda_without_one_raises(spec: str | torch.device) -> None:
    """A device that this machine has not got is an error of its own kind."""
    with pytest.raises(DeviceError, match="does not exist"):
        open_device(spec)
