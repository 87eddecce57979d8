"""The step of plain SGD, bit for bit, in one call that runs without the interpreter.

Each call from Python gives the interpreter away and has to get it back, from the other stages' threads. And the new
weights are written where the gradients are, which nobody wants any more: no copy of the old ones is made for the graphs
that still want them, and a large network's step, which waits for memory, moves 3 numbers a weight instead of 4.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer, optimizer

_COMPILING = threading.Lock()


def prepare() -> None:
    """Compile what the steps call, before frames flow; from any thread."""
    for function in (_step_over, _norm):
        _compiled(function)


def plain_rate(made: Optimizer) -> float | None:
    """Return the learning rate, if the optimiser's next step subtracts so much of the gradients, and nothing else."""
    if type(made) is not torch.optim.SGD or _is_watched(made):
        return None
    first = made.param_groups[0]["lr"]
    for group in made.param_groups:
        is_plain = not any(
            group[name] for name in ("momentum", "weight_decay", "maximize", "differentiable", "fused", "nesterov")
        )
        if not is_plain or group["lr"] != first:
            return None
    return first if isinstance(first, float) else None


def is_simple(tensors: Sequence[Tensor]) -> bool:
    """Whether these are dense tensors of one type in host memory."""
    kinds = {(tensor.dtype, tensor.layout, tensor.device.type) for tensor in tensors}
    return len(kinds) == 1 and next(iter(kinds))[1:] == (torch.strided, "cpu")


def are_alike(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    """Whether each gradient's memory is laid out as its parameter's."""
    return all(
        gradient.dtype == parameter.dtype and gradient.stride() == parameter.stride()
        for gradient, parameter in zip(gradients, parameters, strict=True)
    )


def are_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether each of these has memory of its own."""
    return len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


def norm(gradients: Sequence[Tensor]) -> float:
    """Return the 2-norm of the gradients."""
    return _run(_norm, list(gradients))


def step_over(weights: Sequence[Tensor], gradients: Sequence[Tensor], rate: float) -> None:
    """Write the next weights over the gradients."""
    with torch.no_grad():
        _run(_step_over, list(weights), list(gradients), rate)


def _is_watched(made: Optimizer) -> bool:
    """Whether somebody is called at its steps, or calls something else; a scheduler only counts them."""
    own = vars(made).get("step")
    hooks = (
        *(made._optimizer_step_pre_hooks, made._optimizer_step_post_hooks),
        *(optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks),
    )
    return any(hooks) or (own is not None and not hasattr(own, "_wrapped_by_lr_sched"))


def _run(function: Callable[..., float], *args: object) -> float:
    # The setting is this thread's: nothing is to be fused, or waited for.
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        return _compiled(function)(*args)
    finally:
        torch._C._set_graph_executor_optimize(before)


@functools.cache
def _compiled(function: Callable[..., float]) -> Callable[..., float]:
    with _COMPILING, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.export does not run without the interpreter
        compiled: Callable[..., float] = torch.jit.script(function)
    return compiled


def _step_over(weights: list[Tensor], gradients: list[Tensor], rate: float) -> float:
    for number in range(len(weights)):
        torch.add(weights[number], gradients[number], alpha=-rate, out=gradients[number])
    return 0.0


def _norm(gradients: list[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms)))
