"""The binary format: one message to bytes and back; see ``docs/wire.md`` for every byte.

    length  magic  version  kind | sequence | captured_at | dtype  dimensions  clock  flags | shape … | data …
    u32     "pt"   u8       u8   | u64      | f64         | u8     u8          u8     u8    | u32 each| raw, row-major

A fixed struct and not a self-describing header such as MessagePack: all fields lie at natural alignment, so a C program
fills one struct and writes it, and needs no library. For one vector the header has 32 bytes.

The code of the format lives in `partime_async.client`, which devices copy; here it meets the library's limits and
errors.
"""

from __future__ import annotations

from partime_async.client import HEADER, MAX_DIMENSIONS, PREFIX_BYTES, Array, Clock, Kind, Message, MessageError, encode
from partime_async.client import decode as _decode
from partime_async.errors import FrameError
from partime_async.sockets.limits import Limits

__all__ = [
    "HEADER",
    "MAX_DIMENSIONS",
    "PREFIX_BYTES",
    "Array",
    "Clock",
    "Kind",
    "Message",
    "WireError",
    "decode",
    "encode",
]


class WireError(FrameError):
    """Bytes that are no message; their sender's fault.

    Attributes:
        cause: In one word, for counting.
        is_fatal: Whether the next message cannot be found any more.
    """

    def __init__(self, cause: str, text: str, *, is_fatal: bool = False) -> None:
        self.cause = cause
        self.is_fatal = is_fatal
        super().__init__(text)


def decode(buffer: bytes | bytearray | memoryview, limits: Limits | None = None) -> Message:
    """Return the one message that these bytes are.

    Nothing is copied if the data are aligned: the array then lives in `buffer`, and can be written if that can.

    Args:
        buffer: A whole message, with its length field.
        limits: How long it may be; None: the defaults.

    Raises:
        WireError: They are none, or too many; the sender's fault.
    """
    limits = limits or Limits()
    if len(buffer) > limits.message_bytes:
        raise too_long(len(buffer), limits)
    try:
        return _decode(buffer)
    except MessageError as error:
        raise WireError(error.cause, f"{error} See docs/wire.md for the format.") from None


def too_long(length: int, limits: Limits, *, is_fatal: bool = False) -> WireError:
    """Return the error about a message of this many bytes."""
    return WireError(
        "too_long",
        f"the message has {length} bytes, and {limits.message_bytes} are allowed. Send less, or raise message_bytes.",
        is_fatal=is_fatal,
    )
