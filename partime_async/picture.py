"""Pictures, and what networks take of them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Image: TypeAlias = npt.NDArray[np.uint8]
"""A picture for people: uint8, ``(height, width, 3)``, RGB."""


def to_value(image: Image) -> Tensor:
    """Make a picture into what a network takes.

    numpy and not torch does the arithmetic: torch would start a pool of intra-op threads in the thread of a source,
    which takes the cores from the stages.

    Args:
        image: uint8, ``(height, width, 3)``.

    Returns:
        float32 in [0, 1], ``(1, 3, height, width)``, contiguous, with memory of its own.
    """
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    return torch.from_numpy(np.divide(planes, np.float32(255.0)))[None]
