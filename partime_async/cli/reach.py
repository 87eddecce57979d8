"""Where a server is to be reached, and by whom, as the command line says it; all of it may block."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from partime_async.errors import ConfigurationError
from partime_async.serve import DEFAULT_PORT, Access
from partime_async.serve.access import is_loopback_host
from partime_async.sockets import Tls
from partime_async.webrtc import Ice, IceServer


@dataclass(frozen=True, slots=True)
class Reach:
    """What a command was told.

    Attributes:
        host: Address or name to listen on.
        port: 0: any that is free.
        token_file: What clients must know; made if it does not exist.
        hosts: Names that the server goes by.
        origins: Pages elsewhere that may use it.
        way: Of WebRTC: ``loopback``, ``host`` or a file; None: as `host` is.
        tls_cert: The certificate's file; None: no https.
        tls_key: Its key's file; None: it is in the same.
        tls_password_file: The file with the key's password; None: it has none.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token_file: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    way: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_password_file: str | None = None

    def access(self) -> Access:
        """Return who may come in; makes the token's file if there is none.

        Raises:
            ConfigurationError: The file cannot be read or made; the user's fault.
        """
        if self.token_file is None:
            return Access(hosts=frozenset(self.hosts), origins=frozenset(self.origins))
        path = Path(self.token_file)
        if not path.exists():
            try:
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_urlsafe() + "\n")
            except OSError as error:
                raise ConfigurationError(
                    f"the token file {path} cannot be made: {error}. Choose another place."
                ) from error
        return Access.from_file(path, hosts=self.hosts, origins=self.origins)

    def tls(self) -> Tls | None:
        """Return the files of https, after a look at them; None: there is none.

        Raises:
            ConfigurationError: They cannot be used; the user's fault.
        """
        if self.tls_cert is None:
            for option, given in (("--tls-key", self.tls_key), ("--tls-password-file", self.tls_password_file)):
                if given is not None:
                    raise ConfigurationError(f"{option} needs a certificate. Give --tls-cert as well.")
            return None
        tls = Tls(self.tls_cert, self.tls_key, password_file=self.tls_password_file)
        tls.context(is_server=True)
        return tls

    def ice(self) -> Ice:
        """Return how WebRTC finds its way: a word, or a file with servers, since credentials are no business of `ps`.

        Raises:
            ConfigurationError: It is neither; the user's fault.
        """
        asked = self.way or ("loopback" if is_loopback_host(self.host) else "host")
        if asked == "loopback":
            return Ice.loopback()
        if asked == "host":
            return Ice.host()
        try:
            listed = json.loads(Path(asked).read_text())
            is_relay_only = isinstance(listed, dict) and bool(listed.get("relay_only", False))
            listed = listed["servers"] if isinstance(listed, dict) else listed
            servers = [IceServer(**each) if isinstance(each, dict) else str(each) for each in listed]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"--ice is {asked!r}: {error}. Give loopback, host, or a JSON file such as "
                '[{"url": "turn:host:3478", "username": "...", "credential": "..."}], or '
                '{"servers": [...], "relay_only": true}.'
            ) from error
        return Ice.servers(servers, relay_only=is_relay_only)

    def told(self, url: str) -> str:
        """Return a server's address for people; the token itself is not told: what is printed tends to be kept."""
        return url if self.token_file is None else f"{url}?token=$(cat {self.token_file})"
