"""Where to listen or connect: ``tcp://host:port?format=json``, or encrypted ``tcps://host:port?ca=ca.pem``."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, quote, unquote, urlsplit

from partime_async.errors import ConfigurationError
from partime_async.sockets.formats import FormatName

_ENCRYPTED = {"tcps": "tcp", "wss": "ws", "mqtts": "mqtt"}
"""Schemes of TLS, and what they carry."""

SCHEMES = ("tcp", "tcps", "udp", "unix", "ws", "wss", "mqtt", "mqtts")
_DEFAULT_PORTS = {"ws": 80, "wss": 443, "mqtt": 1883, "mqtts": 8883}
_OPTIONS = {
    "format": SCHEMES,
    "connect": ("tcp", "tcps", "udp", "unix", "ws", "wss"),
    "qos": ("mqtt", "mqtts"),
    "cert": tuple(_ENCRYPTED),
    "key": tuple(_ENCRYPTED),
    "ca": tuple(_ENCRYPTED),
    "password_file": tuple(_ENCRYPTED),
}
_FILES = ("cert", "key", "ca", "password_file")
_EXAMPLES = {
    "tcp": "tcp://127.0.0.1:9000",
    "tcps": "tcps://0.0.0.0:9000?cert=cert.pem&key=key.pem",
    "udp": "udp://127.0.0.1:9000",
    "unix": "unix:///tmp/frames.sock",
    "ws": "ws://127.0.0.1:9000/frames",
    "wss": "wss://0.0.0.0:9000/frames?cert=cert.pem&key=key.pem",
    "mqtt": "mqtt://127.0.0.1/sensors/+",
    "mqtts": "mqtts://broker/sensors/+?ca=ca.pem",
}


def without_secret(url: str) -> str:
    """Return a URL as it may be shown: without what stands before the @, or as an option that there is not."""
    return re.sub(r"([?&]password=)[^&]*", r"\1…", re.sub(r"//[^/]*@", "//…@", url))


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a connection.

    Attributes:
        scheme: ``tcp``, ``udp``, ``unix``, ``ws`` or ``mqtt``, or of TLS ``tcps``, ``wss`` or ``mqtts``.
        host: Name or number; empty for ``unix``.
        port: 0, to listen, lets the system choose.
        path: Of the socket's file, of the WebSocket, or the MQTT topic.
        format: How messages are written.
        is_dialled: Whether the URL asks to connect (``?connect``) and not to listen.
        qos: Of MQTT.
        username: Of MQTT.
        password: Of MQTT; never shown.
        certificate: File with this side's certificate, for TLS.
        key: File with its key.
        ca: File with the certificates that the other side's must be signed by.
        password_file: File with the password of an encrypted key.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    format: FormatName = FormatName.BINARY
    is_dialled: bool = False
    qos: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    certificate: str | None = None
    key: str | None = None
    ca: str | None = None
    password_file: str | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Return the address a URL names.

        Raises:
            ConfigurationError: It names none, or one that this system does not have; the caller's fault.
        """
        parts = urlsplit(url, allow_fragments=False)  # # is a wildcard of MQTT
        scheme = parts.scheme
        if scheme not in SCHEMES:
            known = ", ".join(_EXAMPLES.values())
            raise ConfigurationError(f"{without_secret(url)!r} is no address. Give one such as {known}.")
        told = without_secret(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{told!r}: {error}. Give one such as {_EXAMPLES[scheme]}.") from None
        options = cls._options(told, scheme, parts.query)
        if scheme == "unix":
            return cls._unix(told, unquote(parts.netloc + parts.path), options)
        port = _DEFAULT_PORTS.get(scheme) if port is None else port
        if not parts.hostname or port is None:
            raise ConfigurationError(f"{told!r} lacks a host or a port. Give one such as {_EXAMPLES[scheme]}.")
        carried = _ENCRYPTED.get(scheme, scheme)
        path = unquote(parts.path).lstrip("/") if carried == "mqtt" else (parts.path or "/")
        if carried == "mqtt" and not path:
            raise ConfigurationError(f"{told!r} lacks a topic. Give one such as {_EXAMPLES[scheme]}.")
        if carried in ("tcp", "udp") and path != "/":
            raise ConfigurationError(f"{told!r} has a path, which {scheme} has not. Give {_EXAMPLES[scheme]}.")
        return cls(
            scheme,
            parts.hostname,
            port,
            path,
            FormatName(options.get("format", "binary")),
            "connect" in options,
            int(options.get("qos", "0")),
            None if parts.username is None else unquote(parts.username),
            None if parts.password is None else unquote(parts.password),
            *map(options.get, _FILES),
        )

    @classmethod
    def _unix(cls, told: str, path: str, options: dict[str, str]) -> Address:
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigurationError(f"{told!r}: this system has no UNIX sockets. Use tcp://127.0.0.1:port.")
        if not path:
            raise ConfigurationError(f"{told!r} lacks a path. Give one such as {_EXAMPLES['unix']}.")
        name = FormatName(options.get("format", "binary"))
        return cls("unix", path=path, format=name, is_dialled="connect" in options)

    @staticmethod
    def _options(told: str, scheme: str, query: str) -> dict[str, str]:
        options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
        for name in options:
            if scheme not in _OPTIONS.get(name, ()):
                known = ", ".join(known for known, schemes in _OPTIONS.items() if scheme in schemes)
                raise ConfigurationError(f"{told!r} has the unknown option {name!r}. Use {known}.")
        if options.get("format", "binary") not in tuple(FormatName):
            raise ConfigurationError(f"{told!r}: there is no such format. Use {', '.join(FormatName)}.")
        if options.get("qos", "0") not in ("0", "1", "2"):
            raise ConfigurationError(f"{told!r}: qos is 0, 1 or 2.")
        if any(not options.get(name, "?") for name in _FILES):
            written = ", ".join(f"{name}=FILE" for name in _FILES)
            raise ConfigurationError(f"{told!r} names no file. Write {written}.")
        return options

    @property
    def transport(self) -> str:
        """What carries the messages, encrypted or not: ``tcp``, ``udp``, ``unix``, ``ws`` or ``mqtt``."""
        return _ENCRYPTED.get(self.scheme, self.scheme)

    @property
    def is_encrypted(self) -> bool:
        """Whether they are carried by TLS."""
        return self.scheme in _ENCRYPTED

    @property
    def is_datagram(self) -> bool:
        """Whether messages may get lost and nothing can be pushed back."""
        return self.scheme == "udp"

    def at(self, port: int) -> Address:
        """Return the address with the port that the system chose."""
        return replace(self, port=port)

    def __str__(self) -> str:
        """Return the URL as the other side may use it: without any secret, and without this side's files."""
        query = "" if self.format is FormatName.BINARY else f"?format={self.format}"
        if self.scheme == "unix":
            return f"unix://{quote(self.path)}{query}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        path = f"/{self.path}" if self.transport == "mqtt" else ("" if self.path == "/" else self.path)
        return f"{self.scheme}://{host}:{self.port}{path}{query}"
