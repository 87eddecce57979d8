"""How a message is written: binary, JSON lines, or CSV; each can be read, and answered in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

import numpy as np

from partime_async.errors import ConfigurationError, MissingDependencyError
from partime_async.sockets import wire
from partime_async.sockets.limits import Limits
from partime_async.sockets.wire import Array, Clock, Kind, Message, WireError

try:
    import msgspec
except ImportError as error:
    raise MissingDependencyError("msgspec", "sockets") from error


class FormatName(StrEnum):
    """What `?format=` in a URL may say."""

    BINARY = "binary"
    JSON = "json"
    CSV = "csv"


class Format(Protocol):
    """One way to write messages; it may remember what a connection's first line said."""

    @property
    def is_text(self) -> bool:
        """Whether a message is a line."""

    @property
    def greeting(self) -> bytes:
        """What whoever sends results begins a connection with, so that they can be read."""

    def decode(self, raw: bytearray) -> Sequence[Message]:
        """Return what a whole message holds: a target and its frame may share one.

        Raises:
            WireError: It holds nothing that makes sense; the sender's fault.
        """

    def encode(self, message: Message) -> bytes:
        """Return a message as bytes, with the line's end if it is one."""


def make_format(name: str, limits: Limits) -> Format:
    """Return the format of this name, fresh for one connection.

    Raises:
        ConfigurationError: There is no such format; the caller's fault.
    """
    makers: Mapping[str, Callable[[Limits], Format]] = {"binary": Binary, "json": JsonLines, "csv": Csv}
    if name not in makers:
        raise ConfigurationError(f"there is no format {name!r}. Use one of {', '.join(makers)}.")
    return makers[name](limits)


def note(told: Mapping[str, object], sequence: int = 0) -> Message:
    """Return a note that says this, about the frame of this number."""
    return Message(np.frombuffer(msgspec.json.encode(told), np.uint8), sequence, kind=Kind.NOTE)


class Binary:
    """The format of `wire`."""

    is_text = False
    greeting = b""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def decode(self, raw: bytearray) -> Sequence[Message]:
        """Return the message."""
        return (wire.decode(raw, self._limits),)

    def encode(self, message: Message) -> bytes:
        """Return the message as bytes."""
        has_data = message.array.size > 0
        return wire.encode(
            message.array if has_data else None,
            sequence=message.sequence,
            captured_at=message.captured_at,
            kind=message.kind,
            clock=message.clock,
            wants_reply=message.wants_reply,
            has_more=message.has_more,
        )


class _Line(msgspec.Struct, forbid_unknown_fields=False):
    values: object = None
    sequence: int | None = None
    captured_at: float | None = None
    clock: str = "monotonic"
    target: object = None
    reply: bool = False
    kind: str = "frame"


_CLOCKS = {"monotonic": Clock.MONOTONIC, "wall": Clock.WALL, "none": Clock.NONE}


class JsonLines:
    """One JSON value a line: ``[1.0, 2.0]``, or an object with `values` and what else is known of the frame."""

    is_text = True
    greeting = b""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._read = msgspec.json.Decoder(_Line)
        self._read_any = msgspec.json.Decoder()
        self._next = 0

    def decode(self, raw: bytearray) -> Sequence[Message]:
        """Return the frame of a line, behind its target if it has one."""
        try:
            line = self._read.decode(raw) if raw.lstrip().startswith(b"{") else _Line(self._read_any.decode(raw))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise WireError("json", f"a line is no JSON that was expected: {error}.") from None
        if line.clock not in _CLOCKS or line.kind not in _JSON_KINDS:
            raise WireError("json", f"clock {line.clock[:20]!r} or kind {line.kind[:20]!r} mean nothing.")
        if not 0 <= (self._next if line.sequence is None else line.sequence) < 1 << 64:
            raise WireError("json", f"sequence is {line.sequence}. Count from 0.")
        return self._messages(line)

    def _messages(self, line: _Line) -> Sequence[Message]:
        kind = _JSON_KINDS[line.kind]
        sequence = self._next if line.sequence is None else line.sequence
        if kind in (Kind.HELLO, Kind.BYE):
            return (Message(np.zeros(0, np.uint8), sequence, kind=kind),)
        if kind is Kind.TARGET:
            return (Message(_target(line.target if line.values is None else line.values), sequence, kind=kind),)
        frame = Message(
            _array(line.values),
            sequence,
            line.captured_at,
            kind,
            Clock.NONE if line.captured_at is None else _CLOCKS[line.clock],
            line.reply,
        )
        self._next = sequence + 1
        if line.target is None:
            return (frame,)
        return (Message(_target(line.target), sequence, kind=Kind.TARGET), frame)

    def encode(self, message: Message) -> bytes:
        """Return the message as a line."""
        if message.kind is Kind.NOTE:
            return msgspec.json.encode(message.note) + b"\n"
        line: dict[str, object] = {"kind": message.kind.name.lower(), "sequence": message.sequence}
        if message.captured_at is not None:
            line |= {"captured_at": message.captured_at, "clock": message.clock.name.lower()}
        if message.array.size:
            line["values"] = message.array.tolist()
        if message.wants_reply:
            line["reply"] = True
        if message.has_more:
            line["more"] = True
        return msgspec.json.encode(line) + b"\n"


_JSON_KINDS = {kind.name.lower(): kind for kind in (Kind.FRAME, Kind.TARGET, Kind.RESULT, Kind.HELLO, Kind.BYE)}


def _numbers(values: object) -> Array:
    if values is None:
        raise WireError("values", 'there are no values. Send {"values": [1, 2, 3]}.')
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError("values", f"the values are no tensor: {error}.") from None
    if array.dtype.kind not in "fiub" or not array.size or array.ndim > wire.MAX_DIMENSIONS:
        kind = {"U": "text", "O": "not all numbers"}.get(array.dtype.kind, f"numbers of shape {array.shape}")
        raise WireError("values", f"the values are {kind}. Send lists of numbers.")
    return array


def _array(values: object) -> Array:
    """Return numbers, in lists of equal length, as float32; what is too large for that is infinite."""
    with np.errstate(over="ignore"):
        return np.atleast_1d(_numbers(values).astype(np.float32, copy=False))


def _target(values: object) -> Array:
    """Return numbers as float32, but whole ones as they are: labels of classes."""
    array = _numbers(values)
    if array.dtype.kind in "iu":
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


class Csv:
    """Numbers in lines, separated by comma, semicolon or tab.

    A first line that is no numbers names the columns: `sequence` and `captured_at` (or `time`) are taken as such, and
    all others are values. Lines that begin with # are comments, but for ``# columns: …``, which names the columns, and
    ``# hello`` and ``# bye 123``, which mean what the messages of these names do.
    """

    is_text = True
    greeting = b"# columns: sequence, values\n"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._is_first = True
        self._sequence_column: int | None = None
        self._time_column: int | None = None
        self._next = 0

    def decode(self, raw: bytearray) -> Sequence[Message]:
        """Return the frame of a line; none of a comment or of the names."""
        if raw.lstrip().startswith(b"#"):
            return self._comment(raw.lstrip()[1:].decode(errors="replace").strip())
        try:
            fields = raw.decode().replace(";", ",").replace("\t", ",").split(",")
        except UnicodeDecodeError as error:
            raise WireError("csv", f"a line is no text: {error}.") from None
        is_first, self._is_first = self._is_first, False
        try:
            numbers = [float(field) for field in fields]
        except ValueError as error:
            if is_first and self._named(fields):
                return ()
            raise WireError("csv", f"a line is no numbers: {error!s:.80}.") from None
        return (self._message(numbers),)

    def _comment(self, text: str) -> Sequence[Message]:
        word, _, rest = text.partition(" ")
        if word == "columns:":
            self._named(rest.split(","))
            self._is_first = False
        elif word == "hello":
            return (Message(np.zeros(0, np.uint8), 0, kind=Kind.HELLO),)
        elif word == "bye":
            sent = int(rest) if rest.isdecimal() and len(rest) < 16 else self._next
            return (Message(np.zeros(0, np.uint8), sent, kind=Kind.BYE),)
        return ()

    def _named(self, fields: Sequence[str]) -> bool:
        names = [field.strip().strip('"').lower() for field in fields]
        if not all(name.replace("_", "").replace(" ", "").isalnum() for name in names):
            return False
        for column, name in enumerate(names):
            if name in ("sequence", "seq"):
                self._sequence_column = column
            elif name in ("captured_at", "time", "timestamp", "t"):
                self._time_column = column
        return True

    def _message(self, numbers: Sequence[float]) -> Message:
        special = {self._sequence_column: 0.0, self._time_column: math.nan}
        values = []
        for column, number in enumerate(numbers):
            if column in special:
                special[column] = number
            else:
                values.append(number)
        if not values:
            raise WireError("csv", "a line has no values. Send at least one number.")
        sequence, captured_at = self._next, special.get(self._time_column, math.nan)
        if self._sequence_column is not None:
            told = special[self._sequence_column]
            if not (told >= 0 and told.is_integer() and told < 1 << 53):
                raise WireError("csv", f"sequence is {told}. Count from 0.")
            sequence = int(told)
        self._next = sequence + 1
        is_timed = self._time_column is not None and math.isfinite(captured_at)
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64).astype(np.float32)
        if not is_timed:
            return Message(array, sequence)
        # Nothing here says which clock it is; the offset is estimated for either.
        return Message(array, sequence, captured_at, clock=Clock.MONOTONIC)

    def encode(self, message: Message) -> bytes:
        """Return the message as a line: its sequence, then its values; what is no frame or result is a comment."""
        if message.kind is Kind.NOTE:
            return b"# " + msgspec.json.encode(message.note) + b"\n"
        if message.kind not in (Kind.FRAME, Kind.RESULT):
            return f"# {message.kind.name.lower()} {message.sequence}\n".encode()
        return ",".join([str(message.sequence), *(f"{value:.9g}" for value in message.array.ravel())]).encode() + b"\n"
