"""How two peers may find each other: on this machine alone, over its networks, or through STUN and TURN servers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from partime_async.errors import ConfigurationError, MissingDependencyError

try:
    from aioice import Candidate, Connection
    from aioice.stun import TransactionError, TransactionFailed
    from aioice.turn import create_turn_endpoint
    from aiortc import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy
    from aiortc.rtcicetransport import RTCIceGatherer, parse_stun_turn_uri
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

_log = logging.getLogger(__name__)

LOOPBACK_ADDRESS = "127.0.0.1"

_SERVERS_S = 5.0
"""Seconds that STUN and TURN servers get to answer."""


class IceMode(StrEnum):
    """Which addresses a peer offers, and which of the other side it tries."""

    LOOPBACK = "loopback"
    """This machine only: no packet leaves it."""
    HOST = "host"
    """The machine's own addresses, the loopback one included; no server is asked."""
    SERVERS = "servers"
    """Those, and what STUN and TURN servers give."""


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server.

    Attributes:
        url: ``stun:HOST[:PORT]``, ``turn:HOST[:PORT][?transport=udp|tcp]`` or ``turns:HOST[:PORT]?transport=tcp``.
        username: For TURN.
        credential: For TURN; never shown.
    """

    url: str
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Ice:
    """How connections are made; make one with `loopback`, `host` or `servers`.

    No server is ever asked unless it is named here.

    Attributes:
        mode: Which addresses are used.
        stun_turn: The servers.
        is_relay_only: Whether only the TURN server's address is used.
    """

    mode: IceMode = IceMode.LOOPBACK
    stun_turn: tuple[IceServer, ...] = ()
    is_relay_only: bool = False

    @classmethod
    def loopback(cls) -> Ice:
        """Connect only within this machine: offer 127.0.0.1, and ignore every other address of the other side."""
        return cls(IceMode.LOOPBACK)

    @classmethod
    def host(cls) -> Ice:
        """Connect within this machine and its networks, without any server."""
        return cls(IceMode.HOST)

    @classmethod
    def servers(cls, servers: Sequence[IceServer | str], *, relay_only: bool = False) -> Ice:
        """Connect through firewalls: with a STUN server, a TURN server, or one of each.

        Args:
            servers: The servers; a STUN server may be given by its URL alone.
            relay_only: Use nothing but the TURN server's address, which hides this machine's.

        Raises:
            ConfigurationError: A URL that is none, more than one server of a kind (aiortc asks only the first), a TURN
                server without credentials, or `relay_only` without a TURN server; the caller's fault.
        """
        listed = tuple(IceServer(server) if isinstance(server, str) else server for server in servers)
        kinds = [_kind(server) for server in listed]
        for kind in ("stun", "turn"):
            if kinds.count(kind) > 1:
                raise ConfigurationError(f"{kinds.count(kind)} {kind.upper()} servers; one is asked. Name one of each.")
        if relay_only and "turn" not in kinds:
            raise ConfigurationError("relay_only needs a TURN server. Name one, or leave relay_only out.")
        return cls(IceMode.SERVERS, listed, relay_only)

    def for_browser(self) -> list[dict[str, str]]:
        """Return the ``iceServers`` of a browser's RTCPeerConnection; they include the credentials it needs."""
        described = []
        for server in self.stun_turn:
            entry = {"urls": server.url}
            if server.username is not None and server.credential is not None:
                entry |= {"username": server.username, "credential": server.credential}
            described.append(entry)
        return described

    def accepts(self, address: str) -> bool:
        """Tell whether an address of the other side is worth trying.

        Names that stand for an address (mDNS) are left out unless there are servers: to look one up would ask the whole
        network, and a browser that hides behind one reaches us, whose address it has, and is known from then on.
        """
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return self.mode is IceMode.SERVERS
        return self.mode is not IceMode.LOOPBACK or ip.is_loopback

    def configuration(self) -> RTCConfiguration:
        """Return what aiortc takes. The empty list matters: without one it asks a public server."""
        return RTCConfiguration(
            iceServers=[RTCIceServer(each.url, each.username, each.credential) for each in self.stun_turn],
            iceTransportPolicy=RTCIceTransportPolicy.RELAY if self.is_relay_only else RTCIceTransportPolicy.ALL,
        )

    def choose_addresses(self, gatherer: RTCIceGatherer) -> None:
        """Make a gatherer offer the addresses of this mode; aioice itself always leaves the loopback one out.

        Gathering then raises a `ConfigurationError` if nothing but the relay may be used, and there is none.

        Raises:
            ConfigurationError: This version of aioice works differently, so that "this machine only" cannot be kept.
        """
        connection = gatherer._connection
        gather = getattr(connection, "get_component_candidates", None)
        if gather is None:
            if self.mode is IceMode.LOOPBACK:
                raise ConfigurationError("this version of aioice cannot be kept on loopback. Install aioice 0.13.")
            return

        async def chosen(component: int, addresses: list[str], timeout: float = _SERVERS_S) -> list[Candidate]:
            near: list[Candidate] = []
            if not self.is_relay_only:
                near = await _without_servers(connection, gather(component, [LOOPBACK_ADDRESS], timeout))
            if self.mode is IceMode.LOOPBACK:
                return near
            began = time.monotonic()
            found: list[Candidate] = near + await gather(component, [] if self.is_relay_only else addresses, timeout)
            if connection.turn_server is not None and not any(each.type == "relay" for each in found):
                has_waited = time.monotonic() - began >= 0.9 * timeout  # loops round
                self._complain(f"no answer within {timeout:g} s" if has_waited else await _refusal(connection))
            return found

        connection.get_component_candidates = chosen  # type: ignore[method-assign]

    def _complain(self, why: str) -> None:
        """Tell that there is no relay: a warning, as long as there are other ways."""
        (url,) = (each.url for each in self.stun_turn if _kind(each) == "turn")
        words = f"the TURN server {url} gave no address: {why}. Check its address, and the user name and credential."
        if self.is_relay_only:
            raise ConfigurationError(words)
        _log.warning(words)


async def _without_servers(connection: Connection, gathering: Awaitable[list[Candidate]]) -> list[Candidate]:
    """Gather addresses without asking any server: from the loopback address none answers, which takes all the time."""
    asked = connection.stun_server, connection.turn_server
    connection.stun_server = connection.turn_server = None
    try:
        return await gathering
    finally:
        connection.stun_server, connection.turn_server = asked


async def _refusal(connection: Connection) -> str:
    """Ask a TURN server once more, and return why it gives no address; aioice keeps that to itself."""
    assert connection.turn_server is not None
    try:
        async with asyncio.timeout(_SERVERS_S):
            relay, _ = await create_turn_endpoint(
                asyncio.DatagramProtocol,
                connection.turn_server,
                connection.turn_username,
                connection.turn_password,
                ssl=connection.turn_ssl,
                transport=connection.turn_transport,
            )
    except TransactionFailed as error:
        code, reason = error.response.attributes.get("ERROR-CODE", (0, "it refused"))
        return f"{code} {reason}"
    except TimeoutError:
        return f"no answer within {_SERVERS_S:g} s"
    except (OSError, TransactionError) as error:
        return str(error) or type(error).__name__
    relay.close()
    return "it did not at first"


def _kind(server: IceServer) -> str:
    try:
        parsed = parse_stun_turn_uri(server.url)
    except ValueError as error:
        raise ConfigurationError(
            f"{server.url!r} is no STUN or TURN server: {error}. Write stun:HOST or turn:HOST:PORT."
        ) from error
    kind = str(parsed["scheme"])
    if kind == "stuns":
        raise ConfigurationError(f"{server.url}: STUN over TLS is not supported. Write stun: instead of stuns:.")
    if kind.startswith("turn") and (server.username is None or server.credential is None):
        raise ConfigurationError(f"{server.url} has no credentials. Pass IceServer(url, username, credential).")
    return kind[:4]
