"""Modules and examples that cannot work, each refused with the reason and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from partime_async.errors import PartitionError
from partime_async.partition.layers import chain
from tests.partition.nets import (
    FRAME,
    Branching,
    Dictionary,
    Extra,
    Frozen,
    Noisy,
    Remembering,
    TwoEnds,
    Uncopied,
    hooked,
)

if TYPE_CHECKING:
    from partime_async.frame import Value


@pytest.mark.parametrize(
    ("module", "example", "told"),
    [
        (nn.Sequential(), FRAME, "Sequential has no layers. Give it at least one"),
        (nn.Sequential(nn.Sequential()), FRAME, "has no layers"),
        (nn.ModuleList([nn.Linear(4, 4)]), FRAME, "ModuleList has no forward. Give an nn.Sequential"),
        (len, FRAME, "the network is a builtin_function_or_method. Give an nn.Module"),
        (nn.Linear(4, 4), [FRAME], "the example is a list. Give a tensor or a flat tuple"),
        (nn.Linear(4, 4), (), r"the example is \(\)"),
        (nn.Sequential(nn.LazyLinear(4)), FRAME, "lazy parameters .* Run it once"),
        (hooked(), FRAME, "has hooks"),
        (Uncopied(), FRAME, "cannot be copied: .* Keep locks"),
        (Branching(), FRAME, r"control flow \(.*nets.py:\d+: return x if x.sum\(\) > 0 else -x\). Write it as"),
        (Remembering(), FRAME, "forward keeps state in the attribute 'memory'"),
        (Frozen(), FRAME, "no_grad, inference_mode or autocast is entered"),
        (Noisy(), FRAME, "computes something else .* its numbers are others"),
        (Extra(), FRAME, "'_extra_state'.* belong to no layer"),
        (Dictionary(), FRAME, "Dictionary returns a dict. Let it return a tensor"),
        (nn.Sequential(nn.LSTM(4, 4)), FRAME, r"returns \(float32 \(1, 4\), \(.*\)\)"),
        (TwoEnds(), torch.ones(1, 3, 4, 4), "missing 1 required positional argument: 'bias'"),
    ],
)
def test_chain_of_what_cannot_be_cut_raises_and_says_why(module: nn.Module, example: Value, told: str) -> None:
    """Each module or example that cannot work is refused with the reason and what to do."""
    with pytest.raises(PartitionError, match=told):
        chain(module, example)


def test_chain_given_an_example_of_another_shape_names_the_layer_and_its_input() -> None:
    """The error names the layer that failed, the shape it got and the cause, which is chained."""
    module = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(5, 2))
    with pytest.raises(
        PartitionError, match=r"layer '1' raised on the example, its input being float32 \(1, 6\)"
    ) as info:
        chain(module, FRAME)
    assert isinstance(info.value.__cause__, RuntimeError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_chain_of_torchscript_raises() -> None:
    """A module in TorchScript cannot be taken apart, and the error says what to give instead."""
    with pytest.raises(PartitionError, match=r"is TorchScript.* Give the module it was made from"):
        chain(torch.jit.script(nn.Sequential(nn.Linear(4, 4))), FRAME)
