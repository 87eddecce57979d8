"""Visits of every sort leave no object behind, and none that only the garbage collector would find."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Iterator

import aiohttp
import pytest
from aiohttp import web
from aiortc import RTCPeerConnection, RTCRtpReceiver, RTCSctpTransport
from aiortc.rtcdtlstransport import RTCCertificate, RTCDtlsTransport
from OpenSSL import SSL

from benchmarks.guests import SORTS, WIDTH, Crowd
from partime_async.serve import ClientLimits
from partime_async.serve.session import Session
from partime_async.serve.traces import forget_cancellation, forget_frames
from partime_async.serve.webrtc_client import WebRTCClient
from partime_async.serve.websocket_client import WebSocketClient
from partime_async.webrtc import Peer
from tests.serve.visitors import Mirror, Rig, model_service, serving

WARM_UP, VISITS = 2, 3
LIMITS = ClientLimits(joins_per_minute=1e6, silence_s=0.5, connect_s=0.5, slow_s=0.5, leave_s=0.5)

KEPT: frozenset[type] = frozenset(
    {
        *(WebRTCClient, WebSocketClient, Session, Peer, web.WebSocketResponse, web.Request),
        *(RTCPeerConnection, RTCRtpReceiver, RTCSctpTransport, RTCDtlsTransport, RTCCertificate),
        *(SSL.Connection, SSL.Context),
    }
)
"""What belongs to one visit, and has much hanging on it."""


@pytest.fixture
def _without_collector() -> Iterator[None]:
    """Let garbage in cycles lie, so that it can be seen."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def living() -> Counter[str]:
    """Count the objects of `KEPT`, those in cycles that nobody refers to included."""
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in KEPT)


async def gone(rig: Rig, before: Counter[str]) -> None:
    """Wait until nobody is here, and as many objects live as before."""
    await rig.empty()
    try:
        await rig.until(lambda: not living() - before)
    except TimeoutError:
        pytest.fail(f"these are left: {living() - before}")


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("sort", SORTS)
async def test_visits_leave_no_object_behind(sort: str) -> None:
    """What belongs to a visit is freed when it has ended, by itself, whoever came and however it went."""
    async with serving(model_service(width=WIDTH), limits=LIMITS) as rig:
        crowd = Crowd(rig.web, rig.url, seed=1, longest_s=0.8)
        for _ in range(WARM_UP):
            await crowd.visit(sort)
        await rig.empty()
        gc.collect()  # what is made once may hang together as it likes
        before = living()
        for _ in range(VISITS):
            await crowd.visit(sort)
        await gone(rig, before)


@pytest.mark.usefixtures("_without_collector")
async def test_frames_that_nobody_read_go_with_their_client() -> None:
    """A client that breaks off with the server's hands full leaves none of what it sent."""
    mirror = Mirror()
    async with serving(mirror, limits=LIMITS) as rig:
        mirror.lets_in.clear()
        before = living()
        async with rig.web.ws_connect(f"{rig.url}api/stream") as socket:
            for _ in range(20):
                await socket.send_str('{"values": [1.0, 2.0, 3.0, 4.0]}')
            await rig.until(lambda: bool(mirror.here))
            transport = socket.get_extra_info("socket")
            assert transport is not None
            socket._response.close()  # no goodbye
        mirror.lets_in.set()
        mirror.seen.clear()
        await gone(rig, before)


@pytest.mark.usefixtures("_without_collector")
async def test_cancellation_that_went_through_a_timeout_goes_with_its_task() -> None:
    """A task that was cancelled, and its frames that know it, are freed when nobody refers to the task."""

    async def wait() -> None:
        async with asyncio.timeout(60.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    forget_cancellation(task)
    known = weakref.ref(task)
    del task
    await asyncio.sleep(0)
    assert known() is None


def test_error_without_frames_keeps_what_it_says_and_what_was_behind_it() -> None:
    """Only tracebacks go, along the whole chain, also where it bites its tail."""

    def fail() -> None:
        try:
            int("first")
        except ValueError as first:
            raise aiohttp.ClientError("second") from first

    with pytest.raises(aiohttp.ClientError) as caught:
        fail()
    error = caught.value
    cause = error.__cause__
    assert cause is not None
    cause.__context__ = error
    forget_frames(error)
    assert (error.__traceback__, cause.__traceback__) == (None, None)
    assert str(error) == "second"
    assert "first" in str(cause)
    forget_frames(None)
