"""Who may come in: a token, the hosts this server goes by, and the pages that may speak to it."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from partime_async.errors import ConfigurationError, PartimeError

LEAST_TOKEN = 16
"""Characters: a shorter token can be guessed."""

_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


class AccessDenied(PartimeError):
    """A request was refused; the other side's fault.

    Attributes:
        status: HTTP status: 401 for a missing or wrong token, 403 for anything else.
        cause: One word for logs and metrics: ``token``, ``host``, ``origin`` or ``address``.
    """

    def __init__(self, status: int, cause: str, words: str) -> None:
        self.status = status
        self.cause = cause
        super().__init__(words)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come in.

    Without a token, only connections from this machine are served. In any case the `Host` that a request names must be
    one of this server's own, so that a page elsewhere cannot reach it by a name of its own (DNS rebinding), and an
    `Origin`, if a browser states one, must be this server's own or listed.

    Args:
        token: What a client from elsewhere must know, at least 16 characters; None: nobody from elsewhere comes in.
        hosts: Names this server goes by besides ``localhost``, its host name and plain addresses.
        origins: Pages elsewhere that may speak to it, such as ``https://lab.example``.

    Raises:
        ConfigurationError: The token is too short, or an origin is none; the caller's fault.
    """

    token: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = field(default=frozenset(), kw_only=True)
    origins: frozenset[str] = field(default=frozenset(), kw_only=True)

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < LEAST_TOKEN:
            raise ConfigurationError(
                f"the token has {len(self.token)} character(s), which can be guessed. "
                f"Use {LEAST_TOKEN} or more: python -c 'import secrets; print(secrets.token_urlsafe())'."
            )
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
                raise ConfigurationError(f"{origin!r} is no origin. Give scheme and host, such as https://lab.example.")

    @classmethod
    def local(cls) -> Self:
        """Return access for this machine alone."""
        return cls()

    @classmethod
    def from_file(cls, path: Path, *, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> Self:
        """Return access with the token in a file; white space around it does not count. Reads the file.

        Raises:
            ConfigurationError: The file cannot be read, or what is in it is too short; the caller's fault.
        """
        try:
            token = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the token file {path} cannot be read: {error}. Check its name.") from error
        return cls(token, hosts=frozenset(hosts), origins=frozenset(origins))

    @property
    def needs_token(self) -> bool:
        """Whether a token is asked for."""
        return self.token is not None

    def check_source(
        self, *, host: str | None, origin: str | None, site: str | None, remote: str | None, is_secure: bool = False
    ) -> None:
        """Refuse a request that comes from, or by way of, somewhere it should not.

        Args:
            host: Its ``Host`` header.
            origin: Its ``Origin`` header; None: no browser sent it, or it is a plain visit of the page.
            site: Its ``Sec-Fetch-Site`` header.
            remote: The address of the other side; None or empty: a local socket.
            is_secure: Whether it came by https. A page of the same name by plain http is then another one, which
                whoever is on the way could have made; a proxy in front that speaks https itself asks by http.

        Raises:
            AccessDenied: 403; the other side's fault.
        """
        if self.token is None and remote and not _is_loopback(remote):
            raise AccessDenied(403, "address", "only this machine is served. Start the server with a token.")
        if host is None or not self._is_own(_name(host)):
            raise AccessDenied(403, "host", "the server does not go by this host name. Add it to the server's hosts.")
        if origin is not None and origin.rstrip("/") not in self.origins and not _is_same(origin, host, is_secure):
            raise AccessDenied(403, "origin", "this page may not speak to the server. Add it to the server's origins.")
        if origin is None and site == "cross-site":
            raise AccessDenied(403, "origin", "another page may not load this. Open it directly.")

    def check_token(self, *offered: str | None) -> None:
        """Refuse a request that shows no right token; comparing takes the same time however much of it is right.

        Raises:
            AccessDenied: 401; the other side's fault.
        """
        if self.token is None:
            return
        wanted = self.token.encode()
        if not any(hmac.compare_digest(wanted, one.encode()) for one in offered if one is not None):
            raise AccessDenied(401, "token", "a token is needed. Send the one that the server was started with.")

    def _is_own(self, name: str) -> bool:
        # A page elsewhere can make any *name* mean this machine, but never an address.
        return (
            name in _LOOPBACK_NAMES
            or name in self.hosts
            or _is_address(name)
            or (self.token is not None and name == socket.gethostname().lower())
        )


def _is_same(origin: str, host: str, is_secure: bool) -> bool:
    parts = urlsplit(origin)
    return parts.netloc == host and (parts.scheme == "https" or not is_secure)


def bearer(headers: Mapping[str, str]) -> str | None:
    """Return the token in an ``Authorization: Bearer`` header."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None


def is_loopback_host(host: str) -> bool:
    """Whether a server bound to this host can be reached from this machine alone."""
    return host.lower() in _LOOPBACK_NAMES or _is_loopback(host)


def _name(host: str) -> str:
    """Return a Host header's name without the port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, _, _ = host.rpartition(":") if host.count(":") == 1 else (host, "", "")
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
