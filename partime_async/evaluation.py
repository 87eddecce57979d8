"""Private copies of the network, and a place to run them: off the hot path, while the stream goes on."""

from __future__ import annotations

import copy
import inspect
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from partime_async.errors import ConfigurationError
from partime_async.offload import in_thread

T = TypeVar("T")

_NICENESS = 19
"""What is evaluated gets the time that nobody else wants."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The values of a module, or of a part of one, at one moment, on the CPU.

    Attributes:
        state: Its `state_dict`.
        rest: What else its layers compute with: buffers that are in no `state_dict`.
    """

    state: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]


def rest_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the buffers that the module's `state_dict` leaves out, on the CPU."""
    kept = module.state_dict().keys()
    return {
        name: buffer.detach().to("cpu", copy=True)
        for name, buffer in module.named_buffers(remove_duplicate=False)
        if name not in kept
    }


class Original:
    """The structure of a module, to make copies from while its layers run elsewhere.

    It has no weights of its own: it refers to those of the module, and a copy gets others in their place.

    Args:
        module: Copied now; what becomes of it later does not matter.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module, {id(weight): weight for weight in module.parameters()})

    def copy(self, contents: Contents) -> nn.Module:
        """Return a module with these values, which must belong to nobody else; on the CPU, in the original's mode."""
        # A weight that stands in several places is one in the copy, too. Those of a class of its own are copied by it.
        memo: dict[int, object] = {
            id(weight): nn.Parameter(contents.state[name], requires_grad=weight.requires_grad)
            for name, weight in self._module.named_parameters()
            if type(weight) is nn.Parameter
        }
        module = copy.deepcopy(self._module, memo).to("cpu")
        module.load_state_dict(dict(contents.state))
        for name, value in contents.rest.items():
            path, _, leaf = name.rpartition(".")
            with suppress(AttributeError):  # a constant that the traced network has, and its original has not
                owner = module.get_submodule(path)
                if isinstance(getattr(owner, leaf), Tensor):
                    setattr(owner, leaf, value)
        return module


async def evaluated(function: Callable[[nn.Module], T], make: Callable[[], nn.Module], *, threads: int) -> T:
    """Return what `function` returns for a module, called without gradients on a thread of its own.

    Args:
        function: See `Pipeline.evaluate`.
        make: Returns the module; called on that thread.
        threads: Intra-op threads there.

    Raises:
        ConfigurationError: A coroutine function, or no thread at all.

    Cancellation: waits for the function to end, then raises.
    """
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"evaluate() runs its function on a thread, and {function.__name__} is a coroutine function. "
            "Pass a plain one."
        )
    if not isinstance(threads, int) or threads < 1:
        raise ConfigurationError(f"threads is {threads!r}. Pass 1 or more.")

    def run() -> T:
        # Thread-local; reading it back is what pins it.
        torch.set_num_threads(threads)
        torch.get_num_threads()
        if sys.platform == "linux":  # elsewhere, niceness belongs to the process
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        with torch.no_grad():
            return function(make())

    return await in_thread(run, name="partime evaluation")
