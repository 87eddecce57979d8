"""Small networks, and layers that fail, wait or tell when a test wants them to."""

from __future__ import annotations

import asyncio
import copy
import random
import threading
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import partime_async as pa
from partime_async.models import mlp

Value = pa.Value
TIMEOUT_S = 20.0


class Shared:
    """What all copies of a layer share: a pipeline runs a copy of the network it is given."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class Gate(Shared):
    """Holds a stage's thread up while it is closed."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._opened.set()
        self._reached = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def close(self) -> None:
        """Hold up whoever comes next; on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._opened.clear()

    def open(self) -> None:
        """Let everybody pass."""
        self._opened.set()

    async def reached(self) -> None:
        """Wait until somebody is held up, by a gate that was closed before or will be."""
        await asyncio.wait_for(self._reached.wait(), TIMEOUT_S)

    def go_through(self) -> None:
        """Wait while the gate is closed; on a stage's thread."""
        if not self._opened.is_set():
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._reached.set)
            self._opened.wait(TIMEOUT_S)


class Gated(nn.Module):
    """Passes its input on when its gate lets it."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, plus 0."""
        self.gate.go_through()
        return value + 0.0


class Commanded(nn.Module):
    """Raises if the first number of the frame is the command, else adds 1 to the others."""

    def __init__(self, command: float, make_error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.command = command
        self.make_error = make_error

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, plus 1 but for the first number."""
        if value.flatten()[0] == self.command:
            raise self.make_error()
        return value + F.pad(torch.ones(value.shape[-1] - 1), (1, 0))


def commanded(layers: int, make_error: Callable[[], BaseException] = lambda: ValueError("as told")) -> nn.Sequential:
    """Build a net whose layer k raises on a frame that begins with 100 + k."""
    return nn.Sequential(*(Commanded(100.0 + layer, make_error) for layer in range(layers)))


def command(number: float) -> Tensor:
    """Make a frame for `commanded`."""
    return torch.tensor([[number, 0.0, 0.0]])


class Threads(Shared):
    """The threads that layers ran on."""

    def __init__(self) -> None:
        self.names: set[str] = set()


class Tells(nn.Module):
    """Notes the thread that it runs on."""

    def __init__(self, threads: Threads) -> None:
        super().__init__()
        self.threads = threads

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, plus 0."""
        self.threads.names.add(threading.current_thread().name)
        return value + 0.0


class Dawdles(nn.Module):
    """Takes a random time of at most a millisecond."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, value: Tensor) -> Tensor:
        """Return the input, plus 0."""
        noise = random.Random(hash((self.seed, float(value.flatten()[0]))))
        time.sleep(noise.random() * 0.001)
        return value + 0.0


class Reveals(nn.Module):
    """Appends its one weight to the frame: the output says which weights each stage had."""

    def __init__(self) -> None:
        super().__init__()
        self.version = nn.Parameter(torch.zeros(1, 1))

    def forward(self, value: Tensor) -> Tensor:
        """Return the input with one more number."""
        return torch.cat([value, self.version.expand(value.shape[0], 1)], dim=1)


class Residual(nn.Module):
    """A block that `torch.fx` has to follow: its input goes two ways."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        for linear in (self.first, self.second):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")

    def forward(self, value: Tensor) -> Tensor:
        """Return the input plus what the block makes of it."""
        inner: Tensor = self.second(F.relu(self.norm(self.first(value))))
        return value + inner


class TwoEnds(nn.Module):
    """Takes two tensors and gives two."""

    def __init__(self) -> None:
        super().__init__()
        self.left = mlp(layers=2, width=6)
        self.right = mlp(layers=1, width=6)
        self.block = Residual(6)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block of the sum, and the right half."""
        other = self.right(right)
        return self.block(self.left(left) + other), other * 2.0


class Swap(nn.Module):
    """A layer from a tuple to a tuple."""

    def forward(self, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return both the other way round, added up in one place."""
        left, right = values
        return right, left + right


def dense(layers: int = 4, width: int = 6) -> nn.Sequential:
    """Build a small Kaiming-initialised net."""
    return mlp(layers=layers, width=width)


def frames_like(example: Value, count: int, seed: int = 0) -> list[Value]:
    """Make random frames of the example's shapes."""
    generator = torch.Generator().manual_seed(seed)

    def one(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    return [one(example) if isinstance(example, Tensor) else tuple(map(one, example)) for _ in range(count)]


def called(module: nn.Module, frames: Sequence[Value]) -> list[Value]:
    """Return what a copy of the module gives, frame after frame, called as its documentation says."""
    own = copy.deepcopy(module)
    is_packed = not isinstance(module, nn.Sequential)
    with torch.no_grad():
        return [own(*frame) if is_packed and isinstance(frame, tuple) else own(frame) for frame in frames]


async def streamed(pipeline: pa.Pipeline, source: AsyncIterable[object] | Iterable[object]) -> list[Value]:
    """Return the outputs of a whole stream."""
    async with asyncio.timeout(TIMEOUT_S):
        return [result.output async for result in pipeline.stream(source)]


def assert_same_bits(found: object, expected: object) -> None:
    """Assert that two values are equal bit for bit, NaNs and signs of zero included."""
    if isinstance(expected, list | tuple):
        assert isinstance(found, type(expected))
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_same_bits(left, right)
    else:
        assert isinstance(found, Tensor)
        assert isinstance(expected, Tensor)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert torch.equal(found.flatten().view(torch.uint8), expected.flatten().view(torch.uint8))


def balances(layers: int) -> list[list[int]]:
    """Return every way to divide layers over stages."""
    if layers == 0:
        return [[]]
    return [[first, *rest] for first in range(1, layers + 1) for rest in balances(layers - first)]


def assert_accounted(frames: pa.FrameCounts) -> None:
    """Assert that every frame offered is in one place."""
    places = frames.waiting + frames.in_flight + frames.unread + frames.delivered + frames.failed
    assert frames.offered == places + frames.dropped_total, frames
    assert min(frames.waiting, frames.in_flight, frames.unread, frames.delivered, frames.failed) >= 0, frames


def assert_all_ended(frames: pa.FrameCounts) -> None:
    """Assert that every frame offered was delivered, failed or dropped."""
    assert_accounted(frames)
    assert (frames.waiting, frames.in_flight, frames.unread) == (0, 0, 0), frames
