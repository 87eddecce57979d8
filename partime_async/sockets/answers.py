"""What goes out for a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from partime_async.frame import Value
from partime_async.sockets.formats import note
from partime_async.sockets.wire import Clock, Kind, Message

Answer: TypeAlias = Value | npt.NDArray[np.generic] | Mapping[str, object]
"""Tensors, an array, or a JSON object."""


def without_batch(output: Value) -> Value:
    """Take off a result's batch dimension of one, which the format goes without and every receiver puts in front."""
    if not isinstance(output, Tensor):
        return tuple(map(_alone, output))
    return _alone(output)


def _alone(tensor: Tensor) -> Tensor:
    return tensor[0] if tensor.ndim and tensor.shape[0] == 1 else tensor


def answer_messages(answer: Answer, sequence: int, captured_at: float | None, clock: Clock) -> list[Message]:
    """Return the messages that carry an answer: one, or one for each tensor of a tuple.

    Args:
        answer: What to send.
        sequence: Number of the frame that it is about.
        captured_at: When that was captured, or None.
        clock: What `captured_at` counts from.
    """
    if isinstance(answer, Mapping):
        return [note(answer, sequence)]
    parts = answer if isinstance(answer, tuple) else (answer,)
    return [
        Message(
            part.detach().cpu().numpy() if isinstance(part, Tensor) else part,
            sequence,
            captured_at,
            Kind.RESULT,
            Clock.NONE if captured_at is None else clock,
            has_more=number < len(parts),
        )
        for number, part in enumerate(parts, start=1)
    ]
