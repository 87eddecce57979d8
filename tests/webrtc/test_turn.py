"""Peers whose only way is a relay, by a real TURN server; and what is said when there is none."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiortc.rtcicetransport import RTCIceGatherer

import partime_async as pa
from partime_async.webrtc import Ice, IceServer, Peer, PictureTrack, ice, webrtc_frames
from tests.webrtc.calls import PATIENCE_S, connect, number_of, picture
from tests.webrtc.relays import SECRET, USER, free_port, needs_coturn, relaying


def kinds(sdp: str) -> set[str]:
    """Return which kinds of addresses a description names."""
    return {line.split(" typ ")[1].split()[0] for line in sdp.splitlines() if line.startswith("a=candidate:")}


@asynccontextmanager
async def called(caller_ice: Ice, answerer_ice: Ice) -> AsyncIterator[tuple[Peer, Peer]]:
    """Make two peers that may use these ways; the first has a channel."""
    async with Peer(ice=caller_ice) as caller, Peer(ice=answerer_ice) as answerer:
        caller.open_channel("control")
        yield caller, answerer


@needs_coturn
@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("is_both", [False, True], ids=["one-side", "both-sides"])
async def test_peers_whose_only_way_is_a_relay_exchange_frames_both_ways(
    tmp_path: Path, transport: str, is_both: bool
) -> None:
    """Behind strict firewalls: no other address is offered, the pair in use is the relay's, and pictures go through."""
    async with relaying(tmp_path) as relay:
        relayed = Ice.servers([relay.turn(transport=transport)], relay_only=True)
        other = relayed if is_both else Ice.loopback()
        there, back = PictureTrack(frame_rate=1000.0), PictureTrack(frame_rate=1000.0)
        async with called(relayed, other) as (caller, answerer):
            caller.send_video(there)
            answerer.send_video(back)
            offer = await caller.offer()
            assert kinds(offer.sdp) == {"relay"}
            answer = await answerer.answer(offer)
            assert kinds(answer.sdp) == ({"relay"} if is_both else {"host"})
            await caller.accept(answer)
            async with asyncio.timeout(PATIENCE_S):
                await caller.connected()
                await answerer.connected()
            for track, receiver, number in ((there, answerer, 4711), (back, caller, 1147)):
                video = await receiver.video
                track.show(picture(number))
                async with webrtc_frames(video) as frames:
                    assert number_of((await anext(frames)).image) == number
            [transport_of] = {each.transport.transport for each in caller._connection.getReceivers()}
            [pair] = transport_of._connection._nominated.values()
            assert pair.local_candidate.type == "relay"
            began = time.monotonic()
        assert time.monotonic() - began < PATIENCE_S  # closing tells the relay, and does not wait for it


@needs_coturn
async def test_peers_with_a_relay_among_other_ways_take_the_nearer_one(tmp_path: Path) -> None:
    """A relay is the last resort: it is offered, and not used where there is another way."""
    async with relaying(tmp_path) as relay, called(Ice.servers([relay.turn()]), Ice.loopback()) as (caller, answerer):
        offer = await caller.offer()
        assert kinds(offer.sdp) >= {"host", "relay"}
        await caller.accept(await answerer.answer(offer))
        async with asyncio.timeout(PATIENCE_S):
            await caller.connected()
        assert caller._connection.sctp is not None
        [pair] = caller._connection.sctp.transport.transport._connection._nominated.values()
        assert pair.local_candidate.type == "host"


@needs_coturn
@pytest.mark.parametrize("who", [(USER, "wrong"), ("nobody", SECRET)], ids=["credential", "user"])
async def test_relay_with_wrong_credentials_is_an_error_at_once_and_without_them(
    tmp_path: Path, who: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """The offer fails with what the server said; nothing that is logged, at any level, has the secret in it."""
    caplog.set_level(logging.DEBUG)
    user, credential = who
    async with relaying(tmp_path) as relay:
        server = relay.turn(user=user, credential=credential)
        began = time.monotonic()
        async with called(Ice.servers([server], relay_only=True), Ice.loopback()) as (caller, _):
            with pytest.raises(pa.ConfigurationError, match=r"turn:127.* gave no address: 401 Unauthorized\. Check"):
                await caller.offer()
        assert time.monotonic() - began < PATIENCE_S
        async with called(Ice.servers([server]), Ice.loopback()) as (caller, answerer):
            await connect(caller, answerer)  # there is another way
    warned = [each.getMessage() for each in caplog.records if each.name == "partime_async.webrtc.ice"]
    assert len(warned) == 1
    assert "401 Unauthorized" in warned[0]
    assert credential not in f"{caplog.text} {server!r}"


@needs_coturn
async def test_relay_that_works_has_its_credentials_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither ours, nor those of the libraries below."""
    caplog.set_level(logging.DEBUG)
    async with relaying(tmp_path) as relay:
        relayed = Ice.servers([relay.turn()], relay_only=True)
        async with called(relayed, Ice.loopback()) as (caller, answerer):
            await connect(caller, answerer)
            shown = f"{relayed!r} {caller!r} {caller.statistics()!r}"
    assert SECRET not in caplog.text + shown


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_relay_that_cannot_be_reached_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    """Nobody answers at its address: the error says so, closing does not hang, and other ways go on."""
    monkeypatch.setattr(ice, "_SERVERS_S", 0.5)
    server = IceServer(f"turn:127.0.0.1:{free_port()}?transport={transport}", USER, SECRET)
    words = r"no answer within 0\.5 s" if transport == "udp" else "Connect call failed|refused"
    began = time.monotonic()
    async with called(Ice.servers([server], relay_only=True), Ice.loopback()) as (caller, _):
        with pytest.raises(pa.ConfigurationError, match=words) as caught:
            await caller.offer()
        assert SECRET not in str(caught.value)
    async with called(Ice.servers([server]), Ice.loopback()) as (caller, answerer):
        await connect(caller, answerer)
    assert time.monotonic() - began < PATIENCE_S


async def test_relay_that_takes_connections_and_says_nothing_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server of something else at that port holds nobody up."""
    monkeypatch.setattr(ice, "_SERVERS_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        server = IceServer(f"turn:127.0.0.1:{mute.getsockname()[1]}?transport=tcp", USER, SECRET)
        async with called(Ice.servers([server], relay_only=True), Ice.loopback()) as (caller, _):
            with pytest.raises(pa.ConfigurationError, match=r"no answer within 0\.3 s"):
                await caller.offer()


def own_addresses() -> list[str]:
    """Return this machine's addresses in its networks."""
    from aioice.ice import get_host_addresses

    return get_host_addresses(use_ipv4=True, use_ipv6=False)


@needs_coturn
@pytest.mark.skipif(not own_addresses(), reason="this machine is in no network, and nobody asks from 127.0.0.1")
async def test_stun_server_tells_the_address_it_sees(tmp_path: Path) -> None:
    """It gives the machine's address as seen from outside, and costs no time that is not its own."""
    async with relaying(tmp_path) as relay:
        asking = Ice.servers([relay.stun])
        gatherer = RTCIceGatherer(asking.configuration().iceServers)
        asking.choose_addresses(gatherer)
        began = time.monotonic()
        await gatherer.gather()
        took_s = time.monotonic() - began
        found = gatherer.getLocalCandidates()
        await gatherer._connection.close()
    assert {"host", "srflx"} == {each.type for each in found}
    assert {each.ip for each in found if each.type == "srflx"} <= set(own_addresses())
    assert "127.0.0.1" in {each.ip for each in found if each.type == "host"}
    assert took_s < 4.0  # as long as an address that no server can be asked from would have taken
