"""Where one message ends and the next begins, without any input or output."""

from __future__ import annotations

from typing import Protocol

from partime_async.client import MAGIC
from partime_async.sockets.limits import Limits
from partime_async.sockets.wire import HEADER, PREFIX_BYTES, WireError, too_long

Chunk = bytes | bytearray | memoryview
"""What a transport hands over at once."""


class Framing(Protocol):
    """Cuts what arrives into messages; it keeps no more than one message and one chunk."""

    def receive(self, chunk: Chunk) -> None:
        """Take what has arrived."""

    def next_message(self) -> bytearray | None:
        """Return the next whole message, in memory of its own; None: it has not arrived yet.

        Raises:
            WireError: There is no telling where it ends (fatal), or it was too long and has been skipped.
        """

    @property
    def is_midway(self) -> bool:
        """Whether a message has begun and not ended."""


class LengthPrefixed:
    """Binary messages in a stream of bytes: the length comes first."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def receive(self, chunk: Chunk) -> None:
        """Take what has arrived."""
        self._buffer += chunk

    def next_message(self) -> bytearray | None:
        """Return the next whole message; a length that cannot be is refused before the message is kept."""
        buffer = self._buffer
        if len(buffer) < PREFIX_BYTES:
            return None
        length = int.from_bytes(buffer[:PREFIX_BYTES], "little") + PREFIX_BYTES
        begins = bytes(buffer[PREFIX_BYTES : PREFIX_BYTES + len(MAGIC)])
        # Rubbish is told apart from a long message first: "GET " read as a length is half a gigabyte.
        if not MAGIC.startswith(begins):
            raise WireError("magic", f"a message begins with {begins!r}, not {MAGIC!r}.", is_fatal=True)
        if length > self._limits.message_bytes:
            raise too_long(length, self._limits, is_fatal=True)
        if length < HEADER.size:
            raise WireError("length", f"a message of {length} bytes is shorter than its header.", is_fatal=True)
        if len(buffer) < length:
            return None
        if len(buffer) == length:  # the usual case of a large message: not copied
            self._buffer = bytearray()
            return buffer
        message = buffer[:length]
        del buffer[:length]
        return message

    @property
    def is_midway(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._buffer)


class Lines:
    """Text in a stream of bytes: a message is a line."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._searched = 0
        self._is_skipping = False

    def receive(self, chunk: Chunk) -> None:
        """Take what has arrived."""
        self._buffer += chunk

    def next_message(self) -> bytearray | None:
        """Return the next line that is not blank, without its end; one that is too long is skipped, to the next."""
        buffer, longest = self._buffer, self._limits.message_bytes
        while True:
            end = buffer.find(b"\n", self._searched)
            if end < 0:
                self._searched = len(buffer)
                if len(buffer) <= longest:
                    return None
                self._forget(len(buffer))
                if self._is_skipping:
                    return None
                self._is_skipping = True
                raise too_long(longest + 1, self._limits)
            line = buffer[:end]
            self._forget(end + 1)
            if self._is_skipping:
                self._is_skipping = False
            elif len(line) > longest:
                raise too_long(len(line), self._limits)
            elif line and not line.isspace():
                return line

    def _forget(self, count: int) -> None:
        del self._buffer[:count]
        self._searched = 0

    @property
    def is_midway(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._buffer) or self._is_skipping


class Whole:
    """Messages that the transport keeps apart: each chunk is one, or some lines of text.

    Args:
        limits: How long one may be.
        is_text: Whether a chunk may hold several lines; the end of the chunk ends the last one.
    """

    def __init__(self, limits: Limits, *, is_text: bool) -> None:
        self._limits = limits
        self._is_text = is_text
        self._messages: list[bytearray] = []
        self._error: WireError | None = None

    def receive(self, chunk: Chunk) -> None:
        """Take what has arrived."""
        if len(chunk) > self._limits.message_bytes:
            self._error = too_long(len(chunk), self._limits)
        elif self._is_text:
            self._messages = [line for line in bytearray(chunk).split(b"\n") if line and not line.isspace()][::-1]
        else:
            self._messages = [bytearray(chunk)]

    def next_message(self) -> bytearray | None:
        """Return the next message of the chunk."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._messages.pop() if self._messages else None

    @property
    def is_midway(self) -> bool:
        """Never: the transport keeps messages together."""
        return False
