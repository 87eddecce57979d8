"""Cameras that visit over WebRTC: video back, commands, telemetry, and every way to leave."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import torch
from torch import nn

import partime_async as pa
from partime_async.errors import ConfigurationError
from partime_async.serve import Client, ClientLimits, ModelService
from partime_async.webrtc import CloseReason, Peer, PictureTrack
from tests.serve.visitors import PATIENCE_S, Mirror, Rig, serving


def picture_service(**options: object) -> ModelService:
    """Return a service that gives pictures back as they are, darker by half."""

    class Half(nn.Module):
        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            return 0.5 * picture

    example = torch.zeros(1, 3, 32, 48)
    pipeline = pa.Pipeline(nn.Sequential(nn.Identity(), Half()), example, stages=2, close_timeout_s=2.0)
    return ModelService(pipeline, example, **options)  # type: ignore[arg-type]


async def offered(rig: Rig, *, status: int, **changes: object) -> str:
    """Make a real offer with changes, and return the error that it gets."""
    async with Peer() as peer:
        peer.send_video(PictureTrack())
        offer = await peer.offer()
        said = {"sdp": offer.sdp, "type": offer.type, **changes}
        async with rig.web.post(f"{rig.url}api/offer", json=said) as response:
            assert response.status == status, await response.text()
            return str((await response.json()).get("error"))


async def test_camera_sees_what_the_network_makes_of_it() -> None:
    """Pictures are resized to what the network takes, and its output comes back as a video."""
    async with serving(picture_service()) as rig, rig.call() as caller:
        async with caller.filming(grey=200) as video, asyncio.timeout(PATIENCE_S):
            async for frame in video:
                assert frame.image is not None
                assert frame.image.shape == (32, 48, 3)
                if abs(float(frame.image.mean()) - 100.0) < 8.0:  # the first may still be unsharp
                    break
        metrics = await rig.text("metrics")
    assert 'partime_latency_seconds_count{kind="webrtc",service="main"}' in metrics


async def test_camera_commands_are_answered_and_told_of() -> None:
    """The reliable channel has answers, the other one telemetry."""
    async with serving(picture_service()) as rig, rig.call() as caller:
        caller.control.send_json({"type": "ping", "at": 3})
        assert await caller.said() == {"type": "pong", "at": 3}
        caller.control.send_json({"type": "reset"})
        caller.control.send_json({"type": "fly"})
        assert "no command 'fly'" in str((await caller.said())["error"])
        caller.control.send("rubbish")
        assert "no JSON" in str((await caller.said())["error"])
        caller.control.send_json([1])
        assert "no command" in str((await caller.said())["error"])
        assert (await caller.told())["type"] == "telemetry"


async def test_camera_that_sends_nothing_but_rubbish_is_cut_off() -> None:
    """It is told before."""
    service = Mirror()
    async with serving(service, limits=ClientLimits(bad_messages=3)) as rig, rig.call() as caller:
        for _ in range(3):
            caller.control.send("rubbish")
        for _ in range(3):
            assert (await caller.said())["type"] == "error"
        assert str((await caller.said())["reason"]).startswith("rubbish")
        await rig.empty()


async def test_camera_that_says_goodbye_is_gone_at_once() -> None:
    """A closing page's beacon frees the place; nobody else can say it, and saying it twice is no error."""
    service = Mirror()
    async with serving(service) as rig, rig.call() as caller:
        mine = f'{{"id": "{caller.id}"}}'
        for body, status in (('{"id": "1"}', 204), ('{"id": 1}', 400), ("{}", 400)):
            async with rig.web.post(f"{rig.url}api/bye", data=body) as response:
                assert response.status == status
            assert rig.roster.clients
        for _ in range(2):
            async with rig.web.post(f"{rig.url}api/bye", data=mine) as response:
                assert response.status == 204
            assert not rig.roster.clients
        assert service.seen[0].closed == "bye"
        assert await caller.peer.closed() is CloseReason.LEFT


async def test_camera_that_closes_its_connection_is_gone() -> None:
    """Without a beacon, the end of the connection does."""
    service = Mirror()
    async with serving(service) as rig:
        async with rig.call():
            await rig.until(lambda: bool(service.seen))
        await rig.empty()
        assert service.seen[0].closed == "bye"


async def test_camera_that_falls_silent_is_given_up() -> None:
    """A client whose packets end, without a word, loses its place after the silence allowed."""
    service = Mirror()
    async with serving(service, limits=ClientLimits(silence_s=0.8)) as rig, rig.call() as caller:
        await rig.until(lambda: bool(service.seen))
        for transport in _datagrams(caller.peer):
            transport.abort()
        await rig.empty()
        assert service.seen[0].closed == "silent"


def _datagrams(peer: Peer) -> list[asyncio.DatagramTransport]:
    """Return the sockets under a connection: what a killed process takes with it."""
    from partime_async.webrtc.closing import ice_transports

    found = []
    for transport in ice_transports(peer._connection):
        found += [protocol.transport for protocol in transport._connection._protocols]
    return found


@pytest.mark.parametrize("receiver", [{}, {"receiver": "aiortc"}], ids=["browser", "aiortc"])
async def test_camera_that_never_connects_loses_its_place(receiver: dict[str, str]) -> None:
    """An offer alone holds a place for so long and no longer."""
    service = Mirror()
    async with serving(service, limits=ClientLimits(connect_s=0.4)) as rig:
        await offered(rig, status=200, **receiver)
        await rig.empty()
        await rig.until(lambda: not service.here)
        assert service.seen[0].closed == "unconnected"


async def test_offers_that_cannot_be_read_are_refused() -> None:
    """Rubbish, the wrong kind, an unknown service, too much: each with its status, and nobody joined."""
    async with serving(Mirror(), limits=ClientLimits(offer_bytes=8192)) as rig:
        await offered(rig, status=400, sdp="rubbish")
        await offered(rig, status=400, sdp=7)
        await offered(rig, status=400, type="answer")
        assert "Send 'aiortc'" in await offered(rig, status=400, receiver="mine")
        assert "There are: main" in await offered(rig, status=404, service="other")
        await offered(rig, status=413, padding="x" * 20_000)
        for body in ("", "rubbish", "[1]", "[" * 5000):
            async with rig.web.post(f"{rig.url}api/offer", data=body) as response:
                assert response.status == 400
        assert not rig.roster.clients
        assert 'partime_refused_total{cause="offer"} 4.0' in await rig.text("metrics")


async def test_camera_whose_service_gives_up_at_once_hears_why() -> None:
    """Before there is even a channel to say it."""
    service = Mirror()
    service.failure = ValueError("not today")
    async with serving(service, limits=ClientLimits(leave_s=4.0)) as rig, rig.call() as caller:
        assert await caller.said() == {"type": "error", "error": "ValueError: not today"}
        assert str((await caller.said())["reason"]).startswith("failed")
        await rig.empty()


async def test_camera_chooses_among_services() -> None:
    """By name; without one it gets the first."""
    first, second = Mirror(), Mirror()
    async with serving({"first": first, "second": second}) as rig:
        async with rig.call(service="second", key="tab-7"):
            await rig.until(lambda: bool(second.seen))
        async with rig.call():
            await rig.until(lambda: bool(first.seen))
        await rig.empty()
    assert second.seen[0].key == "tab-7"
    assert first.seen[0].key is None


async def test_three_cameras_share_the_network_and_one_that_stalls_harms_nobody() -> None:
    """A client that is served nothing, and reads nothing, costs the others no frame."""
    async with serving(picture_service()) as rig, rig.call(), rig.call() as one, rig.call() as two:
        async with one.filming(100) as first, two.filming(200) as second, asyncio.timeout(PATIENCE_S):
            for wanted, video in [(50.0, first), (100.0, second)] * 3:
                async for frame in video:
                    assert frame.image is not None
                    if abs(float(frame.image.mean()) - wanted) < 8.0:
                        break
        assert len(rig.roster.clients) == 3


async def test_camera_is_served_pictures_and_not_tensors() -> None:
    """A service that mixes the two up hears of it; so does one that shows a program pictures."""

    class Wrong(Mirror):
        async def serve(self, client: Client) -> None:
            self.seen.append(client)
            async for frame in client.frames():
                client.show(torch.zeros(2, 2, 3, dtype=torch.uint8).numpy())
                client.send(frame.value, answers=frame)

    service = Wrong()
    async with serving(service) as rig:
        async with rig.call() as caller, caller.filming():
            assert "ConfigurationError" in str((await caller.said())["error"])
        async with rig.stream() as stream:
            await stream.send(torch.zeros(2), 0)
            assert ConfigurationError.__name__ in str((await stream.words("error"))["error"])
        await rig.empty()


async def test_camera_that_learns_the_next_frame_teaches_the_network() -> None:
    """Self-supervised: nothing but pictures is needed."""
    example = torch.zeros(1, 3, 16, 16)
    learner = pa.Learner(nn.functional.mse_loss, partial(torch.optim.SGD, lr=0.01))
    pipeline = pa.Pipeline(nn.Sequential(nn.Conv2d(3, 3, 1)), example, stages=1, learner=learner, close_timeout_s=2.0)
    service = ModelService(pipeline, example, teach=pa.targets.ahead)

    def updates() -> int:
        learning = pipeline.statistics().stages[0].learning
        return 0 if learning is None else learning.updates

    async with serving(service) as rig, rig.call() as caller, caller.filming():
        await rig.until(lambda: updates() >= 3)
