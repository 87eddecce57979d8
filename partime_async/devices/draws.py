"""The random numbers of one stage: from generators of its own, so that no other thread changes what it draws.

PyTorch has one default generator per device and process. Stages that draw from it (dropout, added noise) would get
their numbers in the order in which their threads come to it, and so would whoever else draws in the program. Here every
operation that draws, in a layer that does, gets the stage's generator instead; PyTorch's own are never touched.

Rejected: swapping the default generator's state around the stage's work, under a lock. Stages that draw would run one
at a time, and a thread of the program that draws meanwhile would still change the numbers of both.

Not reached: numbers that layers draw from `random` or NumPy, and fused operations of a GPU that take no generator, such
as attention with dropout.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from partime_async.devices.capture import trial_copy

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from partime_async.devices.base import Work
    from partime_async.frame import Value

Operation: TypeAlias = Callable[..., object]

_CPU = torch.device("cpu")


class Draws:
    """The random numbers of a stage, drawn from its own generators; used on the stage's device thread.

    With the same seed a stage draws the same numbers in every run, however many stages there are beside it and whatever
    else the program draws. The first stage starts with a copy of PyTorch's default generator for the CPU: a pipeline of
    one stage draws there what the module itself would draw. Every later stage starts with a seed taken from that copy.

    Args:
        module: The stage's layers.
        layers: The names of those that draw; see `drawing_layers`.
        stage: Its number, from 0.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], stage: int) -> None:
        self._layers = [module.get_submodule(name) for name in layers if name]
        self._is_whole = "" in layers
        self._stage = stage
        self._seed = 0
        self._mode = _Redirected(self._generator)
        self._generators: dict[torch.device, torch.Generator] = {}

    def seed(self, state: Tensor) -> None:
        """Start over.

        Args:
            state: Of PyTorch's default generator for the CPU, as `torch.random.get_rng_state` returns it.
        """
        own = torch.Generator()
        own.set_state(state)
        self._seed = int(torch.randint(2**62, (self._stage + 1,), generator=own)[-1])
        self._generators.clear()
        if self._stage == 0:
            self._generators[_CPU] = torch.Generator()
            self._generators[_CPU].set_state(state)

    def state(self) -> Mapping[torch.device, Tensor]:
        """Return where the numbers are now, for `again`."""
        return {device: generator.get_state() for device, generator in self._generators.items()}

    @contextmanager
    def own(self) -> Iterator[None]:
        """Let the stage's layers draw from the stage's generators."""
        with ExitStack() as stack:
            if self._is_whole:
                stack.enter_context(self._mode)
            else:
                for layer in self._layers:
                    stack.enter_context(_forwarding(layer, self._mode))
            yield

    @contextmanager
    def again(self, state: Mapping[torch.device, Tensor]) -> Iterator[None]:
        """Let the layers draw the numbers that came after `state` once more, and go on afterwards as if they had not.

        Args:
            state: What `state` returned.
        """
        generators, self._generators = self._generators, {}
        for device, value in state.items():
            self._generators[device] = torch.Generator(device)
            self._generators[device].set_state(value)
        try:
            with self.own():
                yield
        finally:
            self._generators = generators

    def work(self, work: Work) -> Work:
        """Return the work, with the stage's own numbers."""

        def drawing(value: Value) -> Value:
            with self.own():
                return work(value)

        return drawing

    def _generator(self, device: torch.device) -> torch.Generator:
        generator = self._generators.get(device)
        if generator is None:
            generator = self._generators[device] = torch.Generator(device)
            generator.manual_seed(self._seed)
        return generator


def drawing_layers(module: nn.Module, example: Value) -> tuple[str, ...]:
    """Return the names of the layers that draw random numbers themselves: the outermost of them, "" for the module.

    Runs the example through a copy: what it does not draw now, in a branch not taken, is not seen.

    Args:
        module: A stage's layers.
        example: A value as it will come, on any device; never changed.
    """
    held = next(itertools.chain(module.parameters(), module.buffers()), None)
    trial = trial_copy(module)
    running: list[str] = []
    found: set[str] = set()
    spare: dict[torch.device, torch.Generator] = {}

    def note(device: torch.device) -> torch.Generator:
        found.add(running[-1])
        return spare.setdefault(device, torch.Generator(device))

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    for name, layer in trial.named_modules():
        if not isinstance(layer, torch.jit.ScriptModule):  # which takes no hooks: its draws count as its owner's
            layer.register_forward_pre_hook(enter(name))
            layer.register_forward_hook(leave, always_call=True)
    tensors = (example,) if isinstance(example, Tensor) else example
    given = [tensor.to(tensor.device if held is None else held.device, copy=True) for tensor in tensors]
    with torch.no_grad(), _Redirected(note):
        trial(given[0] if isinstance(example, Tensor) else tuple(given))
    return tuple(sorted(name for name in found if not any(_is_inside(name, other) for other in found)))


def _is_inside(name: str, other: str) -> bool:
    return name != other and (not other or name.startswith(f"{other}."))


@contextmanager
def _forwarding(layer: nn.Module, mode: TorchDispatchMode) -> Iterator[None]:
    """Let a layer run its forward under the mode: the other layers need not pay for it, some 10 us an operation."""
    forward = layer.forward

    def guarded(*args: object, **kwargs: object) -> object:
        with mode:
            return forward(*args, **kwargs)

    before = vars(layer).get("forward")
    vars(layer)["forward"] = guarded
    try:
        yield
    finally:
        if before is None:
            del vars(layer)["forward"]
        else:
            vars(layer)["forward"] = before


class _Redirected(TorchDispatchMode):
    """Gives every operation that draws the generator that `generator_of` names for its device; on this thread only."""

    def __init__(self, generator_of: Callable[[torch.device], torch.Generator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator_of = generator_of

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the first operation imports all of the compiler, two seconds, for a network that is not compiled.
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if func is torch.ops.aten.native_dropout.default:
            return self._dropped_out(*cast("tuple[Tensor, float, bool]", args))
        if func._can_decompose() and not _takes_generator(func):
            with self:  # seen whole in inference mode only; its parts come back here
                return func.decompose(*args, **kwargs)
        seeded = _seeded_twin(func)
        if seeded is None:
            return func(*args, **kwargs)
        return seeded(*args, **kwargs, generator=self._generator_of(_device_of(args, kwargs)))

    def _dropped_out(self, value: Tensor, share: float, is_training: bool | None) -> tuple[Tensor, Tensor]:
        """Do what a GPU does in one operation, which takes no generator."""
        if is_training is False:
            return value.clone(), torch.ones_like(value, dtype=torch.bool)
        mask = torch.empty_like(value, dtype=torch.bool)
        mask.bernoulli_(1.0 - share, generator=self._generator_of(value.device))
        return value * mask * (0.0 if share == 1.0 else 1.0 / (1.0 - share)), mask


def _device_of(args: Sequence[object], kwargs: Mapping[str, object]) -> torch.device:
    asked = kwargs.get("device")
    if asked is not None:
        return torch.device(cast("str | torch.device", asked))
    tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    return next((tensor.device for tensor in tensors), _CPU)


def _takes_generator(func: OpOverload) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


@functools.cache
def _seeded_twin(func: OpOverload) -> Operation | None:
    """Return the form of an operation that takes a generator; None if there is none."""
    if _takes_generator(func):
        return func
    wanted = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    packet = func.overloadpacket
    for name in packet.overloads():
        other: OpOverload = getattr(packet, name)
        found = [(argument.name, str(argument.type)) for argument in other._schema.arguments]
        if [item for item in found if item[0] != "generator"] == wanted and len(found) == len(wanted) + 1:
            return other
    return None
