"""Send frames from a device, and read what the network says to them. This one file is all that a device needs.

It asks for numpy and nothing else of this library: copy it next to your program, or import it from here::

    from client import Sender

    with Sender("tcp://192.168.1.20:9000") as sender:
        while True:
            sender.send(read_accelerometer())

or pipe lines of numbers through it: ``./read_sensor | python client.py udp://192.168.1.20:9000``. Encrypted, with the
certificate that has signed the server's: ``tcps://pipeline.local:9000?ca=ca.pem``.

The format is documented byte by byte in ``docs/wire.md``; a C program writes it with one struct.
"""

from __future__ import annotations

import json
import math
import random
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

HEADER = struct.Struct("<I2sBBQdBBBB")
"""length, magic, version, kind, sequence, captured_at, dtype, dimensions, clock, flags; the shape follows."""

PREFIX_BYTES = 4
"""Of the length, which counts what comes after itself."""

MAGIC, VERSION = b"pt", 1
MAX_DIMENSIONS = 8
MAX_DATAGRAM_BYTES = 65507
"""The most that IPv4 carries in one UDP datagram."""

WANTS_REPLY, HAS_MORE = 1, 2

DTYPES: tuple[str, ...] = ("", "f4", "f8", "f2", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "b1")
"""numpy's names by their number in a header; 0: nothing follows."""

_NUMBERS = {np.dtype(name): number for number, name in enumerate(DTYPES) if name}
_BY_NUMBER = {number: np.dtype(name).newbyteorder("<") for number, name in enumerate(DTYPES) if name}
_GOODBYES = 3
"""Datagrams get lost, and the last one says how many there were."""

_FAREWELL_S = 1.0
"""For the server to take leave of an encrypted connection."""


class Kind(IntEnum):
    """What a message is."""

    FRAME = 1
    """The network's input, without the batch dimension."""
    TARGET = 2
    """What the network should say to the frame of the same sequence; it comes before that frame, or late."""
    RESULT = 3
    """What the network said to the frame of the same sequence."""
    NOTE = 4
    """A JSON object in UTF-8, as bytes: errors and the like."""
    HELLO = 5
    """Nothing but a sign of life: it subscribes to a server that sends, and keeps a quiet client from being idle."""
    BYE = 6
    """The end; its sequence is the number of frames that were sent, so that a lost tail is noticed."""


class Clock(IntEnum):
    """What `captured_at` counts from."""

    NONE = 0
    """There is no time: the moment of arrival counts."""
    MONOTONIC = 1
    """The sender's own clock, which began somewhere and never jumps."""
    WALL = 2
    """Seconds since 1970, UTC."""


class MessageError(ValueError):
    """Bytes that are no message.

    Attributes:
        cause: In one word, for counting.
    """

    def __init__(self, cause: str, text: str) -> None:
        self.cause = cause
        super().__init__(text)


class UntrustedError(ConnectionError):
    """The certificate of whoever was connected to is not to be trusted; to try again would not help.

    Attributes:
        host: As it was called.
    """

    def __init__(self, host: str, error: ssl.SSLCertVerificationError) -> None:
        self.host = host
        remedy = _REMEDIES.get(error.verify_code, "Name the one that has signed it: ?ca=FILE, or in tls.")
        super().__init__(f"the certificate of {host} is not trusted: {error.verify_message.rstrip('.')}. {remedy}")


_NAME = "Connect by a name that is in it, or give the server one that has this name."
_TIME = "Let the server renew it, or set this machine's clock."
_REMEDIES = {9: _TIME, 10: _TIME, 62: _NAME, 64: _NAME}
"""By OpenSSL's X509_V_ERR_…, include/openssl/x509_vfy.h: not yet valid, expired, another host, another address."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        array: Its tensor; empty if the kind has none.
        sequence: Number of the frame it is, or is about; the sender counts from 0.
        captured_at: Seconds of the sender's `clock`, or None.
        kind: What it is.
        clock: What `captured_at` counts from.
        wants_reply: Whether the sender of a frame asks for its result.
        has_more: Whether another message with the same sequence follows: a further tensor of the same result.
    """

    array: Array
    sequence: int
    captured_at: float | None = None
    kind: Kind = Kind.FRAME
    clock: Clock = Clock.NONE
    wants_reply: bool = False
    has_more: bool = False

    @property
    def note(self) -> dict[str, object]:
        """What a `NOTE` says; empty if it is none, or is broken."""
        if self.kind is not Kind.NOTE:
            return {}
        with suppress(ValueError, RecursionError):
            told = json.loads(self.array.tobytes())
            if isinstance(told, dict):
                return told
        return {}


_NOTHING: Array = np.zeros(0, np.uint8)


def encode(
    array: npt.ArrayLike | None,
    *,
    sequence: int,
    captured_at: float | None = None,
    kind: Kind = Kind.FRAME,
    clock: Clock = Clock.MONOTONIC,
    wants_reply: bool = False,
    has_more: bool = False,
) -> bytes:
    """Return a message as bytes.

    Args:
        array: A tensor without the batch dimension, at most 8 dimensions; lists become float32, and a whole number,
            such as the label of a class, int64; None: there is none.
        sequence: Number of the frame, from 0.
        captured_at: When it was captured, in seconds of `clock`; None: unknown.
        kind: What it is.
        clock: What `captured_at` counts from.
        wants_reply: Ask for the result.
        has_more: Another message with the same sequence follows.

    Raises:
        ValueError: The caller's array, or sequence, has no form in this format.
    """
    if array is None:
        values, number = _NOTHING, 0
        shape: tuple[int, ...] = ()
    else:
        plain = np.int64 if isinstance(array, int) else np.float32
        found = array if isinstance(array, np.ndarray | np.generic) else np.asarray(array, plain)
        values, shape = np.ascontiguousarray(found), found.shape
        number = _NUMBERS.get(values.dtype.newbyteorder("="), 0)
        if not number or len(shape) > MAX_DIMENSIONS:
            raise ValueError(
                f"an array of {values.dtype} with {len(shape)} dimension(s) cannot be sent. "
                f"Send at most {MAX_DIMENSIONS} dimensions of float, integer or bool."
            )
        values = values.astype(_BY_NUMBER[number], copy=False)
    if not 0 <= sequence < 1 << 64:
        raise ValueError(f"sequence is {sequence}. Count from 0; it has 64 bits.")
    has_time = captured_at is not None
    sizes = struct.pack(f"<{len(shape)}I", *shape)
    header = HEADER.pack(
        HEADER.size - PREFIX_BYTES + len(sizes) + values.nbytes,
        MAGIC,
        VERSION,
        kind,
        sequence,
        captured_at if captured_at is not None else math.nan,
        number,
        len(shape),
        clock if has_time else Clock.NONE,
        WANTS_REPLY * wants_reply | HAS_MORE * has_more,
    )
    return b"".join((header, sizes, values.tobytes()))


def decode(buffer: bytes | bytearray | memoryview) -> Message:
    """Return the one message that these bytes are.

    Nothing is copied if the data are aligned: the array then lives in `buffer`, and can be written if that can.

    Raises:
        MessageError: They are none; the sender's fault.
    """
    if len(buffer) < HEADER.size:
        raise MessageError("cut_off", f"{len(buffer)} bytes are no message: the header alone has {HEADER.size}.")
    length, magic, version, kind, sequence, captured_at, number, dimensions, clock, flags = HEADER.unpack_from(buffer)
    if magic != MAGIC or version != VERSION:
        raise MessageError("magic", f"it begins with {magic!r} and version {version}, not {MAGIC!r} and {VERSION}.")
    if length != len(buffer) - PREFIX_BYTES:
        raise MessageError("length", f"its length field says {length}, and {len(buffer) - PREFIX_BYTES} bytes follow.")
    if kind not in _KINDS or clock not in _CLOCKS or flags > (WANTS_REPLY | HAS_MORE):
        raise MessageError("header", f"kind {kind}, clock {clock} or flags {flags} mean nothing.")
    is_timed = clock != Clock.NONE and math.isfinite(captured_at)
    return Message(
        _array(buffer, number, dimensions),
        sequence,
        captured_at if is_timed else None,
        _KINDS[kind],
        _CLOCKS[clock] if is_timed else Clock.NONE,
        bool(flags & WANTS_REPLY),
        bool(flags & HAS_MORE),
    )


_KINDS = {int(kind): kind for kind in Kind}
_CLOCKS = {int(clock): clock for clock in Clock}


def _array(buffer: bytes | bytearray | memoryview, number: int, dimensions: int) -> Array:
    begin = HEADER.size + 4 * dimensions
    if number == 0:
        if dimensions or len(buffer) != begin:
            raise MessageError("dtype", "it has data without a dtype.")
        return _NOTHING
    if number not in _BY_NUMBER:
        raise MessageError("dtype", f"dtype {number} is none of 1 to {len(DTYPES) - 1}.")
    if dimensions > MAX_DIMENSIONS or len(buffer) < begin:
        raise MessageError("shape", f"{dimensions} dimensions do not fit; at most {MAX_DIMENSIONS} are allowed.")
    shape: tuple[int, ...] = struct.unpack_from(f"<{dimensions}I", buffer, HEADER.size)
    dtype = _BY_NUMBER[number]
    # Python's integers do not overflow, so a shape of 2**32 x 2**32 is refused as well.
    if 0 in shape or math.prod(shape) * dtype.itemsize != len(buffer) - begin:
        raise MessageError("shape", f"shape {shape} of {dtype} does not fit {len(buffer) - begin} bytes of data.")
    array = np.frombuffer(buffer, dtype, offset=begin).reshape(shape)
    return array if array.flags.aligned and dtype.isnative else array.astype(dtype.newbyteorder("="))


class Sender:
    """A connection to a listening pipeline, with blocking calls: for devices and scripts.

    A connection that breaks is made anew by the next `send`, waiting 0.1 s, then 0.2 s … up to `retry_max_s`, each
    time a random part less, so that a hundred devices do not come back in the same moment.

    Args:
        url: ``tcp://host:port``, with TLS ``tcps://host:port``, ``udp://host:port`` or ``unix:///path``. The server's
            certificate is checked against the system's, or against ``?ca=FILE``; ``?cert=FILE&key=FILE`` is shown to
            a server that asks for one.
        patience_s: How long `send` tries to connect; None: for ever.
        retry_max_s: The longest wait between two tries.
        timeout_s: For one try to connect.
        tls: Instead of files in the `url`.

    Raises:
        ValueError: The caller's `url` is none of these, or a file in it holds no certificate.
        OSError: A file that it names cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float | None = None,
        retry_max_s: float = 10.0,
        timeout_s: float = 5.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("tcp", "tcps", "udp", "unix"):
            raise ValueError(
                f"{url!r} cannot be connected to. Give tcp://host:port, tcps://host:port, udp://host:port or "
                "unix:///path."
            )
        if parts.scheme != "unix" and (parts.hostname is None or parts.port is None):
            raise ValueError(f"{url!r} lacks a host or a port. Give {parts.scheme}://host:port.")
        self.sequence = 0
        self._url = parts
        self._tls = _tls(parts, tls)
        self._patience_s = patience_s
        self._retry_max_s = retry_max_s
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._received = bytearray()

    def send(
        self,
        values: npt.ArrayLike,
        *,
        captured_at: float | None = None,
        target: npt.ArrayLike | None = None,
        wants_reply: bool = False,
    ) -> int:
        """Send one frame; over TCP and UNIX sockets it waits while the other side does not keep up.

        Args:
            values: The frame without the batch dimension; lists become float32.
            captured_at: Seconds of `time.monotonic`; now, if None.
            target: What the network should say to it, for a pipeline that learns: an array, or the number of a class.
            wants_reply: Ask for the result; read it with `receive`.

        Returns:
            The frame's number.

        Raises:
            ConnectionError: It could not be connected within `patience_s`.
            UntrustedError: The server's certificate is not trusted.
            ValueError: The frame has no form in this format, or is too long for a datagram.
        """
        sequence, at = self.sequence, time.monotonic() if captured_at is None else captured_at
        messages = [encode(values, sequence=sequence, captured_at=at, wants_reply=wants_reply)]
        if target is not None:
            messages.insert(0, encode(target, sequence=sequence, kind=Kind.TARGET))
        if self._is_datagram and max(map(len, messages)) > MAX_DATAGRAM_BYTES:
            raise ValueError(f"a datagram carries {MAX_DATAGRAM_BYTES} bytes. Send larger frames over tcp.")
        while True:
            connection = self._connected()
            try:
                for message in messages:
                    connection.sendall(message)
                break
            except OSError:
                if self._is_datagram:  # nobody listens at the moment: a datagram is lost, and that is all
                    break
                self._drop()
        self.sequence += 1
        return sequence

    def hello(self) -> None:
        """Give a sign of life: it subscribes to a server that sends, and keeps a quiet connection open."""
        self._connected().sendall(encode(None, sequence=self.sequence, kind=Kind.HELLO))

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message of the other side, usually a `RESULT`; None after `timeout_s` seconds.

        Raises:
            ConnectionError: The other side has closed the connection.
            MessageError: It sent what is no message.
        """
        connection, end = self._connected(), None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._is_datagram:
                if (data := _read(connection, end)) is None:
                    return None
                return decode(data)
            length = int.from_bytes(self._received[:PREFIX_BYTES], "little") + PREFIX_BYTES
            if len(self._received) >= max(length, HEADER.size):
                raw, self._received = self._received[:length], self._received[length:]
                return decode(raw)
            if (data := _read(connection, end)) is None:
                return None
            if not data:
                self._drop()
                raise ConnectionResetError("the other side has closed the connection. Send, and it is opened again.")
            self._received += data

    def close(self) -> None:
        """Say how many frames there were, and close; further calls do nothing."""
        if self._socket is not None:
            goodbye = encode(None, sequence=self.sequence, kind=Kind.BYE)
            with suppress(OSError):
                for _ in range(_GOODBYES if self._is_datagram else 1):
                    self._socket.sendall(goodbye)
                if isinstance(self._socket, ssl.SSLSocket):
                    # Takes what the server has said by itself: closed with that unread, the last frames could be lost.
                    self._socket.settimeout(_FAREWELL_S)
                    self._socket.unwrap().close()
            self._drop()

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _told(self) -> str:
        url = self._url
        return f"{url.scheme}://{url.netloc}{url.path}"  # geturl() leaves out the slashes of unix:///path

    @property
    def _is_datagram(self) -> bool:
        return self._url.scheme == "udp"

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._received.clear()

    def _connected(self) -> socket.socket:
        wait_s, began = 0.1, time.monotonic()
        while self._socket is None:
            try:
                self._socket = self._connect()
            except ssl.SSLCertVerificationError as error:
                raise UntrustedError(self._url.hostname or "", error) from error
            except OSError as error:
                if self._patience_s is not None and time.monotonic() - began + wait_s > self._patience_s:
                    raise ConnectionError(
                        f"{self._told} could not be reached within {self._patience_s:g} s: {error}. "
                        "Check that the pipeline listens there."
                    ) from error
                time.sleep(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, self._retry_max_s)
        return self._socket

    def _connect(self) -> socket.socket:
        if self._url.scheme == "unix":
            if not hasattr(socket, "AF_UNIX"):
                raise ValueError("this system has no UNIX sockets. Use tcp://127.0.0.1:port.")
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                found.connect(unquote(self._url.netloc + self._url.path))
            except BaseException:
                found.close()
                raise
            return found
        host, port = self._url.hostname or "", self._url.port or 0
        if self._url.scheme in ("tcp", "tcps"):
            found = socket.create_connection((host, port), self._timeout_s)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                found = _wrapped(found, self._tls, host)
            found.settimeout(None)
            return found
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        found = socket.socket(family, kind, protocol)
        found.connect(address)
        return found


def _tls(url: SplitResult, tls: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """Return what to encrypt with; None: nothing is."""
    named = dict(parse_qsl(url.query, keep_blank_values=True))
    if unknown := sorted(set(named) - ({"ca", "cert", "key"} if url.scheme == "tcps" else set())):
        raise ValueError(f"the address has the unknown option {unknown[0]!r}. Only tcps has options: ca, cert and key.")
    if url.scheme != "tcps":
        if tls is not None:
            raise ValueError(f"{url.scheme} is not encrypted. Give tcps://host:port, or leave out tls.")
        return None
    if tls is not None:
        return tls
    try:
        tls = ssl.create_default_context(cafile=named.get("ca"))
        if "cert" in named:
            # A function: without a password OpenSSL would ask whoever sits at the terminal.
            tls.load_cert_chain(named["cert"], named.get("key"), password=lambda: "")
    except ssl.SSLError as error:
        told = ", ".join(f"{name}={path}" for name, path in named.items())
        raise ValueError(
            f"{told} cannot be used: {error.reason}. Give PEM files, and a key that is not encrypted."
        ) from error
    return tls


def _wrapped(found: socket.socket, tls: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    try:
        return tls.wrap_socket(found, server_hostname=host)
    except BaseException:
        found.close()
        raise


def _read(connection: socket.socket, end: float | None) -> bytes | None:
    """Return what comes next, or None when the time is up."""
    connection.settimeout(None if end is None else max(end - time.monotonic(), 1e-3))
    try:
        return connection.recv(1 << 16)
    except TimeoutError:
        return None
    except ssl.SSLEOFError:  # it ended without taking leave
        return b""
    finally:
        connection.settimeout(None)


def send_lines(sender: Sender, lines: Iterable[str]) -> int:
    """Send every line of numbers, separated by commas or white space, as a frame; return how many lines were none.

    A sensor's program may begin with a heading, and its line may be garbled now and then: that costs no other line.
    """
    skipped = 0
    for line in lines:
        try:
            numbers = [float(number) for number in line.replace(",", " ").split()]
        except ValueError:
            skipped += 1
        else:
            if numbers:
                sender.send(numbers)
    return skipped


def main(arguments: Sequence[str]) -> int:
    """Send the lines of standard input to the URL given; return 2 if that cannot be, in words."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python client.py URL < lines of numbers\n")
        return 2
    try:
        with Sender(arguments[0]) as sender:
            skipped = send_lines(sender, sys.stdin)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    told = f", {skipped} lines skipped that are no numbers" if skipped else ""
    sys.stderr.write(f"{sender.sequence} frames sent{told}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
