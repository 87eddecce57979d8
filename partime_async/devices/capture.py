"""Record a module as one call that runs without the interpreter: the CPU twin of a CUDA graph.

Two threads of eager operators fight for the interpreter lock, once per operator; a recorded call takes it once per
frame (16 layers of 256: 2.8 times the frames of an eager two-thread pipeline). A recording is used only if it gives
the very bits that eager execution gives; a module that branches on data or keeps state in Python attributes runs
eagerly.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from partime_async.frame import Value

_REPLAYS = 3  # the executor specialises after two calls: the third runs what all later ones run


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Leave the module's buffers and parameters, and the CPU's random state, as they were on entry."""
    saved = [(tensor, tensor.detach().clone()) for tensor in (*module.parameters(), *module.buffers())]
    random_state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(random_state)
        with torch.no_grad():
            for tensor, value in saved:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def trial_copy(module: nn.Module, *, shares_parameters: bool = False) -> nn.Module:
    """Return a copy to run before frames flow: its state, in buffers or in Python, is its own.

    Args:
        module: What to copy.
        shares_parameters: Have the parameters only once: for a device whose memory two sets may not fit.
    """
    memo: dict[int, object] = {id(each): each for each in module.parameters()} if shares_parameters else {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                # As `torch.nn.utils.weight_norm` leaves one behind; `deepcopy` refuses those.
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def capture(module: nn.Module, example: Value) -> Callable[[Value], Value] | None:
    """Return a recorded call of the module, sharing its parameters, or None where a recording could differ.

    Call it on the thread that will run it, with gradients off. The module ends as it began.

    Args:
        module: On the CPU.
        example: A value as it will come; later ones have its shapes and dtypes.
    """
    if not _is_recordable(module, example):
        return None
    with unchanged(module):
        recorded = traced(module, (example,))
        if recorded is not None:
            for _ in range(_REPLAYS):
                recorded(example)
    return recorded


def traced(function: Callable[..., object], examples: tuple[Value, ...]) -> Callable[..., Value] | None:
    """Return a trace of a function or module, or None if it cannot be traced, or if values decide what it does.

    Args:
        function: What to trace; called once.
        examples: Its arguments.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.export does not run without the interpreter
        tracer_warning = torch.jit.TracerWarning  # type: ignore[attr-defined]
        # A value of the example would be baked in; PyTorch's own functions look at shapes only, which stay.
        warnings.simplefilter("error", tracer_warning)
        warnings.filterwarnings("ignore", category=tracer_warning, module=r"torch\.nn\.functional")
        try:
            trace: Callable[..., Value] = torch.jit.trace(function, examples, check_trace=False)  # type: ignore[no-untyped-call]
        except Exception:
            # Whatever cannot be traced runs eagerly; if it cannot run at all, the warm-up says so.
            return None
    return trace


def _is_recordable(module: nn.Module, example: Value) -> bool:
    """Compare eager and recorded calls, bit for bit, over several different inputs in a row."""
    changed = perturbed(example)
    inputs = [example, changed, example, changed]
    random_state = torch.random.get_rng_state()
    try:
        eager, other = trial_copy(module), trial_copy(module)
        with unchanged(other):
            recorded = traced(other, (_copied(example),))
        if recorded is None:
            return False
        torch.random.set_rng_state(random_state)
        expected = [_copied(eager(_copied(value))) for value in inputs]
        torch.random.set_rng_state(random_state)
        found = [_copied(recorded(_copied(value))) for value in inputs]
        buffers = zip(eager.buffers(), other.buffers(), strict=True)
        return (
            all(map(_is_same, expected, found))
            and all(equal_bits(left, right) for left, right in buffers)
            and not keeps_python_state(module, eager)
        )
    except Exception:
        # Also attributes that cannot be compared, such as lists of tensors.
        return False
    finally:
        torch.random.set_rng_state(random_state)


def keeps_python_state(before: nn.Module, after: nn.Module) -> bool:
    """Tell whether calls changed anything that is neither parameter nor buffer: a recording would not."""
    return not _is_alike(before, after, set())


def _is_alike(left: object, right: object, seen: set[tuple[int, int]]) -> bool:
    """Compare an object with what became of its copy, all the way down; `seen` ends cycles."""
    if left is right or (id(left), id(right)) in seen:
        return True
    if type(left) is not type(right):
        return False
    seen.add((id(left), id(right)))
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    if isinstance(left, nn.Module) and isinstance(right, nn.Module):
        return _is_alike(_attributes(left), _attributes(right), seen)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_alike(left[key], right[key], seen) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(_is_alike(*pair, seen) for pair in zip(left, right, strict=True))
    if type(left).__eq__ is object.__eq__ and hasattr(left, "__dict__"):
        return _is_alike(vars(left), vars(right), seen)
    return bool(left == right)


def _attributes(module: nn.Module) -> dict[str, object]:
    """Return what a module holds, its parameters and buffers left out: a recording shares or changes these."""
    return {name: value for name, value in vars(module).items() if name not in ("_parameters", "_buffers")}


def _copied(value: Value) -> Value:
    return value.clone() if isinstance(value, Tensor) else tuple(tensor.clone() for tensor in value)


def perturbed(value: Value) -> Value:
    """Return another value like this one."""
    if not isinstance(value, Tensor):
        return tuple(_changed(tensor) for tensor in value)
    return _changed(value)


def _changed(tensor: Tensor) -> Tensor:
    # Fixed arithmetic, not random numbers: nothing here may move the random state.
    return tensor * 0.75 - 0.125 if tensor.is_floating_point() else tensor.clone()


def _is_same(left: Value, right: Value) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return isinstance(left, Tensor) and isinstance(right, Tensor) and equal_bits(left, right)
    return len(left) == len(right) and all(map(equal_bits, left, right))


def equal_bits(left: Tensor, right: Tensor) -> bool:
    """Tell whether two tensors have the same shape, dtype and bits."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    # As bytes: a NaN equals itself, and 0.0 is not -0.0.
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))
