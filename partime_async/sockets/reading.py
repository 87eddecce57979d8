"""From a message to a frame of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from partime_async.errors import ConfigurationError
from partime_async.frame import SourceFrame, Value
from partime_async.sockets.timing import Timing
from partime_async.sockets.wire import Clock, Message


@dataclass(frozen=True, slots=True)
class SocketFrame(SourceFrame):
    """A frame that came through a socket; `position_s` is the sender's own time.

    Attributes:
        sequence: The sender's number of it.
        clock: What `position_s` counts from.
        wants_reply: Whether the sender asks for its result.
        client: Number of the sender's connection.
        peer: Where the sender is; for MQTT, the topic.
        arrived_at: When it came, in seconds of `time.monotonic`.
    """

    sequence: int = 0
    clock: Clock = Clock.NONE
    wants_reply: bool = False
    client: int = 0
    peer: str = ""
    arrived_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """How messages become frames.

    Attributes:
        dtype: Of the values; None: as they were sent.
        timing: How the sender's time is translated.
        to_value: Makes the network's input of a message, instead of `dtype` and a batch dimension in front. It runs on
            the event loop for short messages, and in a thread for long ones.
    """

    dtype: torch.dtype | None = torch.float32
    timing: Timing = Timing.ESTIMATE
    to_value: Callable[[Message], Value] | None = None

    @classmethod
    def checked(cls, dtype: torch.dtype | None, timing: str, to_value: Callable[[Message], Value] | None) -> Reading:
        """Return the options.

        Raises:
            ConfigurationError: An unknown timing; the caller's fault.
        """
        try:
            return cls(dtype, Timing(timing), to_value)
        except ValueError:
            known = ", ".join(repr(known.value) for known in Timing)
            raise ConfigurationError(f"unknown timing {timing!r}. Use one of {known}.") from None

    def value(self, message: Message) -> Value:
        """Return the network's input in a frame's message."""
        return self.tensor(message) if self.to_value is None else self.to_value(message)

    def target(self, message: Message) -> Tensor:
        """Return what the network should say, with a batch dimension in front: whole numbers stay such, as int64."""
        if message.array.dtype.kind in "iu":
            return torch.from_numpy(message.array.astype(np.int64))[None]
        return self.tensor(message)

    def tensor(self, message: Message) -> Tensor:
        """Return a message's array with a batch dimension in front, in memory of its own."""
        array = message.array
        wanted = _NUMPY.get(self.dtype) if self.dtype is not None else None
        if wanted is not None and array.dtype != wanted:
            # numpy converts: torch would wake its intra-op threads, which belong to the stages.
            with np.errstate(invalid="ignore", over="ignore"):
                array = array.astype(wanted)
        elif not array.flags.writeable:
            array = array.copy()
        tensor = torch.from_numpy(array)[None]
        return tensor if self.dtype is None or wanted is not None else tensor.to(self.dtype)


_NUMPY: dict[torch.dtype, np.dtype[np.generic]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.int64: np.dtype(np.int64),
    torch.int32: np.dtype(np.int32),
    torch.uint8: np.dtype(np.uint8),
    torch.bool: np.dtype(np.bool_),
}
