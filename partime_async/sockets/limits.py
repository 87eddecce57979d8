"""What one sender may ask of a receiver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from partime_async.client import HEADER
from partime_async.errors import ConfigurationError


class OnBad(StrEnum):
    """What a message that cannot be read costs."""

    DROP_MESSAGE = "drop_message"
    """That message, which is counted. A byte stream that is out of step, where no next message can be found, ends."""
    DROP_CLIENT = "drop_client"
    """Its sender's connection."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what senders may cost; every timeout of the package is here.

    Attributes:
        message_bytes: Of one message, header and all. Refused by its length field, before anything is kept.
        rate_hz: Messages/s of one client, over a second's burst; None: any. Faster ones are held back, where the
            transport can; datagrams are dropped.
        clients: At the same time; further ones are told so and turned away.
        idle_s: A client that is silent for this long is closed; None: it may be.
        probe_s: A TCP or WebSocket connection that is silent for this long is asked whether it is still there, which
            its program does not notice; without an answer it has broken.
        message_s: A message that was begun must be complete within this time.
        unsent_bytes: Results that may wait for a client that does not read them.
        stalled_s: A client that reads nothing for this long, while results wait, is closed.
        waiting_bytes: Datagrams that may wait for one client's turn.
        connect_s: For one try to connect, with its TLS handshake.
        handshake_s: For the TLS handshake of whoever connects.
        close_s: For one connection to close in order; then it is cut.
        bad_messages: A client that sent so many is closed, whatever `on_bad` says.
        on_bad: What a message that cannot be read costs.

    Raises:
        ConfigurationError: A bound that nothing could keep; the caller's fault.
    """

    message_bytes: int = 1 << 20
    rate_hz: float | None = None
    clients: int = 100
    idle_s: float | None = 60.0
    probe_s: float = 10.0
    message_s: float = 10.0
    unsent_bytes: int = 1 << 20
    stalled_s: float = 10.0
    waiting_bytes: int = 1 << 20
    connect_s: float = 5.0
    handshake_s: float = 5.0
    close_s: float = 1.0
    bad_messages: int = 1000
    on_bad: OnBad | str = OnBad.DROP_MESSAGE

    def __post_init__(self) -> None:
        for name in (
            "clients",
            "probe_s",
            "message_s",
            "unsent_bytes",
            "stalled_s",
            "waiting_bytes",
            "connect_s",
            "handshake_s",
            "close_s",
        ):
            _check(name, getattr(self, name), 0)
        _check("message_bytes", self.message_bytes, HEADER.size - 1)
        _check("bad_messages", self.bad_messages, 0)
        for name in ("rate_hz", "idle_s"):
            if (value := getattr(self, name)) is not None:
                _check(name, value, 0)
        if self.on_bad not in tuple(OnBad):
            known = ", ".join(repr(known.value) for known in OnBad)
            raise ConfigurationError(f"on_bad is {self.on_bad!r}. Use one of {known}.")


def _check(name: str, value: float, above: float) -> None:
    if not value > above:
        raise ConfigurationError(f"{name} is {value!r}. Pass more than {above:g}.")
