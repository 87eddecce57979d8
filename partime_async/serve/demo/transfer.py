"""Weights to and from a browser over its control channel, in pieces that it asks for, so that nothing piles up.

A file of weights carries a note: what people would miss if they found the weights alone again, as names of classes. It
stands in the header that safetensors leaves to programs, so that any reader of the format reads the weights.

Source: the format, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Mapping

from partime_async.errors import ConfigurationError
from partime_async.serve.demo.engine import LARGEST_WEIGHTS

PIECE_BYTES = 12 * 1024
"""Of a file in one message; a data channel takes messages of some 64 KB anywhere."""

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_METADATA = "__metadata__"
_NOTE = "partime_demo"


def with_note(data: bytes, noted: Mapping[str, object]) -> bytes:
    """Return the contents of a safetensors file with a note in its header.

    Args:
        data: Of a sound file.
        noted: Replaces a note that was there.
    """
    header, tensors = _header(data)
    metadata = header.get(_METADATA)
    header[_METADATA] = {**(metadata if isinstance(metadata, dict) else {}), _NOTE: json.dumps(noted)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text + tensors


def note_of(data: bytes) -> Mapping[str, object]:
    """Return the note in a file; empty: there is none, or it is no such file."""
    try:
        header, _ = _header(data)
        metadata = header[_METADATA]
        noted = json.loads(metadata[_NOTE]) if isinstance(metadata, dict) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _header(data: bytes) -> tuple[dict[str, object], bytes]:
    if len(data) < _LENGTH.size:
        raise ValueError("it is shorter than the length of its header")
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    header = json.loads(data[_LENGTH.size : end])
    if not isinstance(header, dict):
        raise TypeError("its header is no object")
    return header, data[end:]


class Transfer:
    """The file that one browser fetches, and the one that it sends; one of each at a time."""

    def __init__(self) -> None:
        self._outgoing = b""
        self._incoming = bytearray()

    def offer(self, data: bytes) -> None:
        """Keep a file for the browser to fetch."""
        self._outgoing = data

    def piece(self, offset: int) -> dict[str, object]:
        """Return the piece of the offered file that begins at a byte; after the last one the file is let go.

        Raises:
            ConfigurationError: The file has no such byte; the browser's fault.
        """
        total = len(self._outgoing)
        if not 0 <= offset < total:
            raise ConfigurationError(f"there is no byte {offset} of {total}. Ask from 0 on.")
        part = self._outgoing[offset : offset + PIECE_BYTES]
        if offset + len(part) == total:
            self._outgoing = b""
        return {
            "type": "weights",
            "offset": offset,
            "total": total,
            "data": base64.b64encode(part).decode("ascii"),
        }

    def take(self, offset: int, total: int, data: str) -> bytes | None:
        """Take a piece in.

        Returns:
            The whole file, with its last piece; None: more is to come.

        Raises:
            ConfigurationError: It does not follow the one before, is none, or the file is too large; the browser's
                fault. What came before is let go.
        """
        if offset == 0:
            self._incoming.clear()
        try:
            part = self._checked(offset, total, data)
        except ConfigurationError:
            self._incoming.clear()
            raise
        self._incoming += part
        if len(self._incoming) < total:
            return None
        whole = bytes(self._incoming)
        self._incoming.clear()
        return whole

    @property
    def received(self) -> int:
        """Bytes that came so far."""
        return len(self._incoming)

    def _checked(self, offset: int, total: int, data: str) -> bytes:
        if not 0 < total <= LARGEST_WEIGHTS:
            raise ConfigurationError(f"the file has {total} bytes. Send one of at most {LARGEST_WEIGHTS}.")
        if offset != len(self._incoming):
            raise ConfigurationError(f"a piece at byte {offset} came after {len(self._incoming)}. Send it again.")
        try:
            part = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ConfigurationError(f"a piece is no base64: {error}. Send the file again.") from None
        if not part or offset + len(part) > total:
            raise ConfigurationError(f"a piece of {len(part)} bytes at {offset} of {total}. Send the file again.")
        return part
