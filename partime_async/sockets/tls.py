"""Encryption (TLS): certificates out of files, and what can be wrong with them, in words."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from partime_async.errors import ConfigurationError
from partime_async.offload import in_thread
from partime_async.sockets.address import Address


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of an encrypted connection, PEM each; they are read on a thread, when it is opened.

    A server shows its certificate, and asks clients for none unless it has a `ca`. A client checks the server's
    certificate and the name in it, always, and shows one of its own if it has any. For everything else pass an
    `ssl.SSLContext` in place of this.

    Attributes:
        certificate: Of this side, with those of its issuers behind it; a server needs one.
        key: Its private key; None: it is in the certificate's file.
        ca: Certificates that the other side's must be signed by; for a client None means the system's.
        password: Of an encrypted key; never shown.
        password_file: File with that password, in place of it: white space around it does not count.
    """

    certificate: str | Path | None = None
    key: str | Path | None = None
    ca: str | Path | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | Path | None = None

    def context(self, *, is_server: bool) -> ssl.SSLContext:
        """Return what both sides of a connection agree by; reads the files.

        Raises:
            ConfigurationError: A file that is missing, unreadable or no certificate, a key that is not the
                certificate's, or a password that does not open it; the caller's fault.
        """
        if self.password is not None and self.password_file is not None:
            raise ConfigurationError(f"a password is given, and {self.password_file} as well. Use one of them.")
        try:
            if not is_server:
                context = ssl.create_default_context(cafile=None if self.ca is None else _found(self.ca))
            else:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                # A device that only sends would never read them, and a socket that is closed unread cuts off its tail.
                context.num_tickets = 0
                if self.ca is not None:
                    context.load_verify_locations(_found(self.ca))
                    context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as error:
            raise ConfigurationError(f"{self.ca} holds no certificate. Give a PEM file of certificates.") from error
        if self.certificate is not None:
            self._load_own(context, self.certificate)
        return context

    def _load_own(self, context: ssl.SSLContext, certificate: str | Path) -> None:
        key = certificate if self.key is None else self.key
        found = _found(certificate), _found(key)
        password = self.password if self.password_file is None else _password_in(Path(self.password_file))
        try:
            # A function: without any password OpenSSL would ask whoever sits at the terminal.
            context.load_cert_chain(*found, password=lambda: password or "")
        except (ssl.SSLError, ValueError) as error:
            raise ConfigurationError(_what_is_wrong(certificate, key, error, has_password=bool(password))) from None

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that are named."""
        return tuple(Path(each) for each in (self.certificate, self.key, self.ca, self.password_file) if each)


Credentials: TypeAlias = Tls | ssl.SSLContext


def credentials(address: Address, tls: Credentials | None, *, is_server: bool) -> Credentials | None:
    """Return what an address is encrypted with; None: it is not.

    Args:
        address: May name files.
        tls: What the caller gave.
        is_server: Whether this side listens.

    Raises:
        ConfigurationError: The two do not go together; the caller's fault.
    """
    named = Tls(address.certificate, address.key, address.ca, password_file=address.password_file)
    if not address.is_encrypted:
        if tls is not None:
            raise ConfigurationError(f"{address} is not encrypted, and tls is given. Write tcps, wss or mqtts.")
        return None
    if tls is not None and named != Tls():
        raise ConfigurationError(f"{address}: files are named in the address, and tls is given. Use one of them.")
    check_side(tls or named, is_server=is_server)
    return tls or named


def check_side(tls: Credentials, *, is_server: bool) -> None:
    """Refuse what cannot be shown by this side.

    Raises:
        ConfigurationError: A server without a certificate, or a context for the other side; the caller's fault.
    """
    if isinstance(tls, Tls):
        if is_server and tls.certificate is None:
            raise ConfigurationError(
                "who listens with TLS needs a certificate. Pass Tls(certificate, key), or ?cert=FILE&key=FILE in the "
                "address."
            )
        if tls.key is not None and tls.certificate is None:
            raise ConfigurationError(f"the key {tls.key} has no certificate. Name that file as well.")
        if tls.password_file is not None and tls.certificate is None:
            raise ConfigurationError(
                f"{tls.password_file} is to open a key, and there is no certificate. Name its files as well."
            )
        return
    wrong = ssl.PROTOCOL_TLS_CLIENT if is_server else ssl.PROTOCOL_TLS_SERVER
    if tls.protocol == wrong:
        purpose = "CLIENT_AUTH" if is_server else "SERVER_AUTH"
        raise ConfigurationError(
            f"the SSLContext is for {'clients' if is_server else 'servers'}. "
            f"Make it with ssl.create_default_context(ssl.Purpose.{purpose})."
        )


async def opened(tls: Credentials | None, *, is_server: bool) -> ssl.SSLContext | None:
    """Return the context of credentials; files are read on a thread.

    Raises:
        ConfigurationError: As `Tls.context`.

    Cancellation: waits for the files, then raises.
    """
    if isinstance(tls, Tls):
        return await in_thread(partial(tls.context, is_server=is_server), name="partime certificate")
    return tls


def _found(path: str | Path) -> str:
    """Return a file's name, if it can be read: OpenSSL does not say which of its files it is that it cannot read."""
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise ConfigurationError(
            f"the certificate or key {path} cannot be read: {error.strerror or error}. Check its name and its mode."
        ) from error
    return str(path)


def _password_in(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be read once, and then wait for ever
            raise ConfigurationError(f"the password file {path} is no regular file, and must be read again and again.")
        password = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(f"the password file {path} cannot be read: {why}. Check its name and mode.") from None
    if not password:
        raise ConfigurationError(f"the password file {path} is empty. Write the key's password into it.")
    return password


def _what_is_wrong(certificate: str | Path, key: str | Path, error: Exception, *, has_password: bool) -> str:
    shown, secret = Path(certificate).read_bytes(), Path(key).read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in shown:
        return f"{certificate} holds no certificate. Give a PEM file."
    if b"PRIVATE KEY-----" not in secret:
        return f"{key} holds no private key. Give a PEM file, or name the key's own file."
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key} is not that of the certificate in {certificate}. Give the two that belong together."
    if b"ENCRYPTED" in secret:
        told = "the password does not open it" if has_password else "there is no password"
        return (
            f"the key in {key} is encrypted, and {told}. Name the file that the password is in (password_file=FILE, "
            f"or --tls-password-file FILE), or decrypt the key: openssl pkey -in {key} -out plain.pem."
        )
    told = error.reason if isinstance(error, ssl.SSLError) and error.reason else "it is damaged"
    return f"the certificate in {certificate} or the key in {key} cannot be used: {told}. Make them anew."
