"""Which addresses a connection uses: this machine's alone by default, servers only where they are named."""

from __future__ import annotations

import pytest
from aiortc import RTCIceTransportPolicy
from aiortc.rtcicetransport import RTCIceGatherer

import partime_async as pa
from partime_async.webrtc import Ice, IceMode, IceServer

TURN = IceServer("turn:turn.example:3478?transport=tcp", "user", "s3cret")


async def gathered(ice: Ice) -> set[str]:
    """Return the addresses that a connection would offer."""
    gatherer = RTCIceGatherer(ice.configuration().iceServers)
    ice.choose_addresses(gatherer)
    await gatherer.gather()
    found = {candidate.ip for candidate in gatherer.getLocalCandidates()}
    await gatherer._connection.close()
    return found


async def test_ice_on_loopback_offers_this_machine_alone() -> None:
    """The default offers 127.0.0.1 and nothing else, and asks no server."""
    assert await gathered(Ice.loopback()) == {"127.0.0.1"}
    assert Ice() == Ice.loopback()
    assert Ice().configuration().iceServers == []


async def test_ice_of_the_host_offers_the_loopback_address_too() -> None:
    """A browser on this machine is reached even without a network."""
    assert "127.0.0.1" in await gathered(Ice.host())


@pytest.mark.parametrize(
    ("ice", "address", "is_accepted"),
    [
        (Ice.loopback(), "127.0.0.1", True),
        (Ice.loopback(), "::1", True),
        (Ice.loopback(), "192.0.2.7", False),
        (Ice.loopback(), "4e9b.local", False),
        (Ice.host(), "192.0.2.7", True),
        (Ice.host(), "4e9b.local", False),
        (Ice.servers(["stun:stun.example"]), "4e9b.local", True),
    ],
)
def test_ice_accepts_the_addresses_of_its_mode(ice: Ice, address: str, is_accepted: bool) -> None:
    """On loopback foreign addresses are not tried; names are looked up only where there are servers."""
    assert ice.accepts(address) is is_accepted


def test_ice_with_servers_configures_both_sides_and_shows_no_secret() -> None:
    """Aiortc and the browser get the credentials; no text of ours has them."""
    ice = Ice.servers(["stun:stun.example", TURN], relay_only=True)
    assert ice.mode is IceMode.SERVERS
    stun, turn = ice.configuration().iceServers or []
    assert (stun.urls, turn.urls, turn.username, turn.credential) == ("stun:stun.example", TURN.url, "user", "s3cret")
    assert ice.configuration().iceTransportPolicy is RTCIceTransportPolicy.RELAY
    assert ice.for_browser() == [
        {"urls": "stun:stun.example"},
        {"urls": TURN.url, "username": "user", "credential": "s3cret"},
    ]
    assert "s3cret" not in f"{ice!r} {ice} {TURN!r}"


@pytest.mark.parametrize(
    ("servers", "relay_only", "told"),
    [
        (["http://stun.example"], False, "no STUN or TURN server"),
        (["stuns:stun.example"], False, "over TLS"),
        (["turn:turn.example"], False, "no credentials"),
        (["stun:a.example", "stun:b.example"], False, "2 STUN servers"),
        (["stun:a.example"], True, "needs a TURN server"),
    ],
)
def test_ice_refuses_servers_that_cannot_be(servers: list[str], relay_only: bool, told: str) -> None:
    """What aiortc would ignore in silence is the caller's error."""
    with pytest.raises(pa.ConfigurationError, match=told):
        Ice.servers(servers, relay_only=relay_only)
