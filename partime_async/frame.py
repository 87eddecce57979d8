"""What enters and leaves: values between layers, frames as sources deliver them, and the result a caller gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from partime_async.errors import ConfigurationError, FrameError, StageError

if TYPE_CHECKING:
    import numpy as np

Value: TypeAlias = Tensor | tuple[Tensor, ...]
"""What a layer takes and gives: one tensor or a flat tuple of tensors."""


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """A frame as a source delivers it, with what the source knows about it.

    Attributes:
        value: The network's input, with the batch dimension.
        captured_at: When it was captured, in seconds of `time.monotonic`; None: when it arrives.
        position_s: The medium's own time stamp in seconds, or None.
        image: The picture it was made from, uint8 ``(height, width, 3)``, for sinks; or None.
        target: What the network should have said, or None.
    """

    value: Value
    captured_at: float | None = None
    position_s: float | None = None
    image: np.ndarray | None = None
    target: Value | None = None


@dataclass(frozen=True, slots=True)
class StageTiming:
    """When one stage worked on one frame, in clock seconds."""

    started_at: float
    finished_at: float


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one frame.

    Attributes:
        index: The frame's number in the order of admission, over all feeds of the pipeline, from 0.
        sequence: The frame's number among those offered to its feed, from 0: gaps are dropped frames.
        captured_at: When the frame was captured, in clock seconds.
        latency_s: Seconds from capture to this result.
        timings: When each stage worked on it; empty for stages that a failed frame did not reach.
        weight_versions: For each stage, how often its weights had changed when it worked on the frame.
        loss: The loss of this frame; None without a learner or a target.
        error: Why the frame failed; None if it did not.
        context: What the caller gave to `put` along with the frame.
        value: What `output` returns; None for a failed frame.
    """

    index: int
    sequence: int
    captured_at: float
    latency_s: float
    timings: tuple[StageTiming, ...]
    weight_versions: tuple[int, ...]
    loss: float | None
    error: StageError | None
    context: object
    value: Value | None = field(repr=False)

    @property
    def output(self) -> Value:
        """The network's output for this frame, in host memory.

        Raises:
            StageError: The frame failed; `error` says where and why.
        """
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # the error keeps this frame: a cycle would hold its tensors until it is found
        assert self.value is not None
        return self.value


class FrameSpec:
    """The shapes and dtypes a pipeline was built for; every frame is held against it once, where it enters.

    Args:
        example: A frame as it will come, with the batch dimension.

    Raises:
        ConfigurationError: `example` is neither a tensor nor a tuple of tensors.
    """

    __slots__ = ("example", "is_tuple", "parts")

    def __init__(self, example: Value) -> None:
        self.is_tuple = not isinstance(example, Tensor)
        tensors = (example,) if isinstance(example, Tensor) else example
        if not isinstance(tensors, tuple) or not tensors or not all(isinstance(part, Tensor) for part in tensors):
            raise ConfigurationError(
                f"the example is {_kind(example)}. Pass a tensor, or a tuple of tensors, with the batch dimension."
            )
        self.example = example
        self.parts: tuple[tuple[torch.Size, torch.dtype], ...] = tuple((part.shape, part.dtype) for part in tensors)

    def check(self, value: Value) -> None:
        """Refuse a value that is not like the example.

        Raises:
            FrameError: It differs in kind, number, shape or dtype; the message says what was expected.
        """
        if isinstance(value, Tensor):
            if not self.is_tuple and (value.shape, value.dtype) == self.parts[0]:
                return
        elif self.is_tuple and isinstance(value, tuple) and len(value) == len(self.parts):
            for tensor, part in zip(value, self.parts, strict=True):
                if not isinstance(tensor, Tensor) or (tensor.shape, tensor.dtype) != part:
                    break
            else:
                return
        raise FrameError(f"got {_kind(value)}, expected {self}. Convert or resize the frame before put().")

    def unpack(self, item: object) -> tuple[Value, Value | None]:
        """Tell a frame from a pair of frame and target, by what the pipeline takes.

        A pipeline that takes a tensor reads a pair as (frame, target); one that takes a tuple reads a pair whose first
        part is a tuple as (frame, target), and any other tuple as a frame.
        """
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], tuple) == self.is_tuple:
            return item
        return item, None  # type: ignore[return-value]  # check() decides

    def __str__(self) -> str:
        described = ", ".join(_described(shape, dtype) for shape, dtype in self.parts)
        return f"a tuple ({described})" if self.is_tuple else f"a tensor {described}"


def check_target(target: object) -> None:
    """Refuse a target that is no value: which shape it has is between the network and the loss.

    Raises:
        FrameError: The caller's target is neither a tensor nor a flat tuple of tensors.
    """
    parts = target if isinstance(target, tuple) else (target,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise FrameError(
            f"the target is {_kind(target)}. Pass a tensor, or a tuple of tensors; a label is torch.tensor([label])."
        )


def _described(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{tuple(shape)} of {str(dtype).removeprefix('torch.')}"


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {_described(value.shape, value.dtype)}"
    if isinstance(value, tuple):
        return "a tuple (" + ", ".join(_kind(part) for part in value) + ")"
    hint = " (torch.from_numpy makes a tensor of it)" if type(value).__module__ == "numpy" else ""
    return f"a {type(value).__module__}.{type(value).__qualname__}{hint}"
