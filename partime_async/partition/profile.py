"""Measure what each layer costs and how many bytes cross each cut."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from partime_async.errors import ConfigurationError
from partime_async.partition.probe import bytes_of, devices_of, fresh, undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from partime_async.frame import Value
    from partime_async.partition.layers import LayerChain

_LEAST_REPEATS = 3
_MOST_REPEATS = 200


@dataclass(frozen=True, slots=True)
class Profile:
    """What a chain of layers costs on one device, measured.

    Attributes:
        names: The layers.
        device: Where they ran.
        threads: Intra-op threads they ran with.
        repeats: How often each was measured.
        layer_s: Seconds of each layer, called alone: the median.
        whole_s: Seconds of all layers, called as one: the median.
        cut_bytes: Bytes of the values at each cut, from the frame (cut 0) to the output.
        parameter_bytes: Bytes of the parameters of each layer; one that several layers share counts at the first.
    """

    names: tuple[str, ...]
    device: str
    threads: int
    repeats: int
    layer_s: tuple[float, ...]
    whole_s: float
    cut_bytes: tuple[int, ...]
    parameter_bytes: tuple[int, ...]

    @property
    def costs_s(self) -> tuple[float, ...]:
        """Seconds of each layer as a part of a longer run: `layer_s`, scaled to add up to `whole_s`.

        A layer called alone is charged its call and, on an accelerator, a wait for the device; a run of layers pays
        these once.
        """
        total = sum(self.layer_s)
        return tuple(cost * self.whole_s / total for cost in self.layer_s) if total else self.layer_s


def profile(
    chain: LayerChain,
    example: Value,
    *,
    device: str = "cpu",
    threads: int = 1,
    budget_s: float = 0.5,
    timer: Callable[[Callable[[], None]], float] | None = None,
) -> Profile:
    """Measure every layer of a chain on one device.

    Runs the whole chain over and over, timing each layer once in a pass, so that a layer meets cold caches and other
    work on the machine as it does in the stream, and a disturbance hits one repeat of a layer and not all of them.
    Works on a copy: weights, buffers and random state stay as they are, and the thread count is put back.

    Args:
        chain: The layers.
        example: What one frame is.
        device: Where to measure.
        threads: Intra-op threads.
        budget_s: Seconds to spend. One pass to warm up and three measured ones are made in any case.
        timer: Runs what it is given and returns the seconds it took; by default by the host's clock. For a device that
            works asynchronously, one that waits for it.

    Raises:
        ConfigurationError: The thread count is not positive; the caller is at fault.
    """
    if threads < 1:
        raise ConfigurationError(f"cannot measure with {threads} threads. Give at least 1.")
    scratch = chain.copy()
    whole = scratch.slice(0, len(scratch)).to(device)
    layers = [scratch.slice(index, index + 1).to(device) for index in range(len(scratch))]
    measurement = _Measurement(layers, whole, timer or _by_the_clock, is_input_kept=not chain.mutates_input)
    before = torch.get_num_threads()
    frame = _moved(fresh(example), device)
    try:
        torch.set_num_threads(threads)
        with undisturbed(devices_of(whole, frame), skipped=0), torch.inference_mode():
            measurement.run(frame, budget_s)
    finally:
        torch.set_num_threads(before)
    return Profile(
        names=chain.names,
        device=device,
        threads=threads,
        repeats=len(measurement.whole_s),
        layer_s=tuple(median(times) for times in zip(*measurement.layer_s, strict=True)),
        whole_s=median(measurement.whole_s),
        cut_bytes=tuple(measurement.cut_bytes),
        parameter_bytes=_parameter_bytes(layers),
    )


class _Measurement:
    """Passes over the layers, and what they took."""

    def __init__(
        self,
        layers: list[nn.Module],
        whole: nn.Module,
        timer: Callable[[Callable[[], None]], float],
        *,
        is_input_kept: bool,
    ) -> None:
        self.layer_s: list[list[float]] = []
        self.whole_s: list[float] = []
        self.cut_bytes: list[int] = []
        self._layers = layers
        self._whole = whole
        self._timer = timer
        self._is_input_kept = is_input_kept

    def run(self, frame: Value, budget_s: float) -> None:
        started = time.perf_counter()
        self._measure(frame)  # to warm up: its figures are not kept
        self.layer_s.clear()
        self.whole_s.clear()
        pass_s = 0.0
        while len(self.whole_s) < _LEAST_REPEATS or (
            len(self.whole_s) < _MOST_REPEATS and time.perf_counter() - started + pass_s <= budget_s
        ):
            began = time.perf_counter()
            self._measure(frame)
            pass_s = time.perf_counter() - began

    def _measure(self, frame: Value) -> None:
        value: Value = self._input(frame)
        times: list[float] = []
        self.cut_bytes = [bytes_of(value)]
        for layer in self._layers:
            seconds, value = self._timed(layer, value)
            times.append(seconds)
            self.cut_bytes.append(bytes_of(value))
        self.layer_s.append(times)
        self.whole_s.append(self._timed(self._whole, self._input(frame))[0])

    def _timed(self, module: nn.Module, value: Value) -> tuple[float, Value]:
        results: list[Value] = []
        seconds = self._timer(lambda: results.append(module(value)))
        return seconds, results[-1]

    def _input(self, frame: Value) -> Value:
        return frame if self._is_input_kept else fresh(frame)


def _by_the_clock(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _moved(value: Value, device: str) -> Value:
    return value.to(device) if isinstance(value, torch.Tensor) else tuple(tensor.to(device) for tensor in value)


def _parameter_bytes(layers: list[nn.Module]) -> tuple[int, ...]:
    seen: set[int] = set()
    sizes = []
    for layer in layers:
        parameters = [parameter for parameter in layer.parameters() if id(parameter) not in seen]
        seen.update(map(id, parameters))
        sizes.append(bytes_of(parameters))
    return tuple(sizes)
