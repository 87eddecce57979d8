"""Connections that have ended are freed at once, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from partime_async.errors import SourceError
from partime_async.webrtc import Description, Peer, PictureTrack
from partime_async.webrtc.closing import ice_transports
from tests.webrtc.calls import PATIENCE_S, Call, calling, until

Watched: TypeAlias = dict[str, "weakref.ref[object]"]


@pytest.fixture(autouse=True)
def _without_collector() -> Iterator[None]:
    """Let garbage in cycles lie, so that it can be seen."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def watched(peer: Peer) -> Watched:
    """Return weak references to a peer, and to what it is made of."""
    connection = peer._connection
    parts: dict[str, object] = {"peer": peer, "connection": connection}
    for transceiver in connection.getTransceivers():
        parts |= {
            "sender": transceiver.sender,
            "receiver": transceiver.receiver,
            "dtls": transceiver.receiver.transport,
        }
        parts["tls"] = transceiver.receiver.transport._ssl
    if connection.sctp is not None:
        parts |= {"sctp": connection.sctp, "dtls": connection.sctp.transport}
    for transport in ice_transports(connection):
        parts |= {"transport": transport, "ice": transport._connection}
    return {name: weakref.ref(part) for name, part in parts.items() if part is not None}


async def freed(parts: Watched) -> None:
    """Wait until nothing of it is left; tasks that have just ended are let go by the loop's next turns."""
    try:
        await until(lambda: not [name for name, part in parts.items() if part() is not None])
    except TimeoutError:
        pytest.fail(f"still there: {[name for name, part in parts.items() if part() is not None]}")


async def called(end: Callable[[Call], Peer]) -> Watched:
    """Let two peers talk, and end it; return what is to be gone, of both."""
    async with calling(ends_pictures=True) as call:
        await call.show(1)
        assert call.control.send("hello")
        parts = {f"caller's {name}": part for name, part in watched(call.caller).items()}
        parts |= {f"answerer's {name}": part for name, part in watched(call.answerer).items()}
        await end(call).close()
    return parts


@pytest.mark.parametrize("end", [lambda call: call.caller, lambda call: call.answerer], ids=["caller", "answerer"])
async def test_peers_that_talked_are_freed_when_they_end(end: Callable[[Call], Peer]) -> None:
    """Whichever side ends it, nothing of either waits for the collector."""
    await freed(await called(end))


async def offered(sdp: Callable[[str], str]) -> Watched:
    """Let a peer answer an offer that nobody stands behind; return what is to be gone."""
    async with Peer() as caller, Peer() as answerer:
        caller.send_video(PictureTrack())
        caller.open_channel("control")
        offer = await caller.offer()
        try:
            await answerer.answer(Description(sdp(offer.sdp), offer.type))
        except SourceError:
            assert sdp(offer.sdp) != offer.sdp
        return watched(answerer)


@pytest.mark.parametrize(
    "sdp",
    [lambda sdp: sdp, lambda sdp: sdp.replace("a=rtcp-mux\r\n", ""), lambda sdp: sdp[: len(sdp) // 2]],
    ids=["sound", "refused", "broken off"],
)
async def test_peer_that_never_connected_is_freed(sdp: Callable[[str], str]) -> None:
    """An offer that is never followed up, or that does not fit, leaves nothing either."""
    await freed(await offered(sdp))


async def cut_short(state: str) -> None:
    """Close two peers at the moment that a transport gets into this state."""
    async with Peer() as caller, Peer() as answerer:
        caller.send_video(PictureTrack())
        caller.open_channel("control")
        await caller.accept(await answerer.answer(await caller.offer()))
        begun = asyncio.Event()
        sctp = caller._connection.sctp
        assert sctp is not None
        transport = sctp.transport
        transport.on("statechange", lambda: begun.set() if transport.state == state else None)
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()
        await asyncio.gather(caller.close(), answerer.close())
        assert sctp._association_state.name == "CLOSED"


@pytest.mark.parametrize("state", ["connecting", "connected"])
async def test_peer_closed_during_its_handshake_raises_nowhere(state: str) -> None:
    """A task of aiortc's own, which nobody awaits, has nothing to stumble over, and starts nothing any more."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    await cut_short(state)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    gc.collect()
    assert not complaints
