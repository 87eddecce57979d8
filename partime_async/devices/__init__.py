"""Streams and events on real and simulated devices; the only place that touches `torch.cuda`."""

from __future__ import annotations

import re

import torch

from partime_async.devices.base import Device, DeviceEvent, DeviceStream, Work, ready
from partime_async.devices.cpu import CpuDevice, usable_cores
from partime_async.devices.cuda import CudaDevice, cuda_device_count
from partime_async.devices.notifier import Notifier
from partime_async.devices.simulated import SimulatedDevice
from partime_async.errors import ConfigurationError

__all__ = [
    "CpuDevice",
    "CudaDevice",
    "Device",
    "DeviceEvent",
    "DeviceStream",
    "Notifier",
    "SimulatedDevice",
    "Work",
    "cuda_device_count",
    "open_device",
    "ready",
    "usable_cores",
]

_SIMULATED = re.compile(r"simulated:(?P<service>[0-9.]+)ms(?:\+(?P<transfer>[0-9.]+)ms)?")


def open_device(spec: str | torch.device | Device) -> Device:
    """Return the device that is named: ``cpu``, ``cuda``, ``cuda:1``, ``simulated:5ms`` or ``simulated:5ms+0.5ms``.

    Raises:
        ConfigurationError: No device has this name.
        DeviceError: The device is not on this machine.
    """
    if not isinstance(spec, (str, torch.device)):
        return spec
    name = str(spec)
    if name == "cpu":
        return CpuDevice()
    if re.fullmatch(r"cuda(:\d+)?", name):
        return CudaDevice(int(name.partition(":")[2] or 0))
    if match := _SIMULATED.fullmatch(name):
        return SimulatedDevice(float(match["service"]) / 1e3, transfer_s=float(match["transfer"] or 0) / 1e3)
    raise ConfigurationError(
        f"unknown device {name!r}. Use 'cpu', 'cuda', 'cuda:1', or 'simulated:5ms' for one that only takes its time."
    )
