"""Beginning and end of the server, and the limits that all clients share."""

from __future__ import annotations

import asyncio
import json
import logging

import aiohttp
import pytest
import torch
from torch import nn

import partime_async as pa
from partime_async.errors import ConfigurationError
from partime_async.serve import Client, ClientLimits, ModelService, Server, make_app
from partime_async.serve.limits import Rate
from partime_async.serve.log import JsonFormatter, event
from tests.serve.visitors import TOKEN, WIDTH, Mirror, model_service, serving


class Clinging(Mirror):
    """A service that goes on after its client has left."""

    was_cancelled = False

    async def serve(self, client: Client) -> None:
        """Wait for ever; note a cancellation."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


def test_rate_lets_a_burst_pass_and_then_so_many_a_second() -> None:
    """Each key has its own allowance, which fills up again with time."""
    now = 0.0
    rate = Rate(2.0, burst=3, now=lambda: now)
    assert [rate.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rate.take("b") == 0.0
    now = 0.5
    assert [rate.take("a"), rate.take("a")] == [0.0, 0.5]
    now = 100.0
    assert [rate.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_rate_of_endless_addresses_takes_bounded_memory() -> None:
    """The address that was not heard of for longest is forgotten."""
    rate = Rate(1.0, burst=1, now=lambda: 0.0)
    for number in range(10_000):
        rate.take(str(number))
    assert len(rate._buckets) <= 4096


@pytest.mark.parametrize("limit", ["clients", "offer_bytes", "silence_s", "leave_s"])
def test_limit_that_lets_nobody_in_is_refused(limit: str) -> None:
    """Nothing below or at 0, and no NaN."""
    for value in (0, -1, float("nan")):
        with pytest.raises(ConfigurationError, match=limit):
            ClientLimits(**{limit: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [(), ("two words",), ("",), ("a/b",), ("ünïcode", "\n")])
def test_services_without_a_name_are_refused(names: tuple[str, ...]) -> None:
    """A name is part of addresses and labels."""
    with pytest.raises(ConfigurationError):
        make_app({name: Mirror() for name in names})


async def test_clients_beyond_the_limit_are_refused_until_one_leaves() -> None:
    """Programs and cameras share the places."""
    async with serving(Mirror(), limits=ClientLimits(clients=2)) as rig:
        async with rig.call(), rig.stream():
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with rig.stream():
                    pass
            assert refused.value.status == 503
            with pytest.raises(AssertionError, match="2 clients are here"):
                async with rig.call():
                    pass
        await rig.empty()
        async with rig.stream():
            pass
        await rig.empty()


async def test_address_that_comes_too_often_has_to_wait() -> None:
    """It is told for how long."""
    async with serving(Mirror(), limits=ClientLimits(joins_per_minute=8)) as rig:
        for _ in range(2):
            async with rig.stream():
                pass
        async with rig.web.get(f"{rig.url}api/stream") as response:
            assert response.status == 429
            assert 1 <= int(response.headers["Retry-After"]) <= 8
        await rig.empty()


async def test_health_follows_the_server_from_ready_to_stopped() -> None:
    """Draining refuses newcomers, and says so."""
    service = Mirror()
    app = make_app({"main": service}, page=None)
    from partime_async.serve.app import ROSTER

    async with Server(app, port=0) as server, aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ready", "clients": 0})
        app[ROSTER].close()
        async with session.get(f"{server.url}healthz") as response:
            assert (response.status, (await response.json())["status"]) in ((503, "draining"), (503, "stopped"))
        async with session.get(f"{server.url}api/stream") as response:
            assert response.status == 503
    assert not service.is_entered


async def test_health_tells_the_error_that_stopped_the_pipeline() -> None:
    """The client hears it, too, and so does whoever runs the server, in the end."""

    class Explosive(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            if value.max() > 5.0:
                raise ValueError("boom")
            return value

    example = torch.zeros(1, WIDTH)
    pipeline = pa.Pipeline(nn.Sequential(Explosive()), example, stages=1, on_error="stop", close_timeout_s=2.0)

    async def visit() -> None:
        async with serving(ModelService(pipeline, example)) as rig, rig.stream() as stream:
            await stream.socket.send_json([9.0] * WIDTH)
            assert "boom" in str((await stream.words("error"))["error"])
            health = json.loads(await rig.text("healthz", status=503))
            assert health["status"] == "stopped"
            assert "boom" in health["error"]

    with pytest.raises(pa.StageError, match="boom"):
        await visit()


async def test_server_that_stops_sends_its_clients_away_and_leaves_nothing() -> None:
    """With cameras and programs at work; each hears why, and the services were left in the end."""
    service, model = Mirror(), model_service()
    async with (
        serving({"main": service, "model": model}) as rig,
        rig.call() as caller,
        caller.filming(),
        rig.stream() as stream,
        rig.stream("?service=model"),
    ):
        await rig.until(lambda: len(service.here) == 2)
        rig.roster.close()
        assert (await stream.words("bye"))["reason"] == "stopped"
        assert await stream.close_code() == 1001
        assert (await caller.said())["reason"] == "stopped"
        await rig.empty()
    assert not service.is_entered
    assert not service.here


async def test_server_stops_although_a_service_does_not_let_go() -> None:
    """A service that goes on after its client has left is cancelled after the time allowed."""
    service = Clinging()
    async with serving(service, limits=ClientLimits(leave_s=0.1)) as rig:
        async with rig.stream():
            pass
        await rig.empty()
    assert service.was_cancelled


async def test_service_that_is_done_ends_the_visit() -> None:
    """A client is not kept for nothing."""

    class Short(Mirror):
        async def serve(self, client: Client) -> None:
            client.reply({"type": "echo", "said": {}})

    async with serving(Short()) as rig, rig.stream() as stream:
        await stream.words("echo")
        assert (await stream.words("bye"))["reason"] == "served"
        assert await stream.close_code() == 1000


async def test_service_that_cannot_be_entered_stops_the_start() -> None:
    """Those entered before are left, and the error is raised as it came."""

    class Missing(Mirror):
        async def __aenter__(self) -> Missing:
            raise FileNotFoundError("no weights")

    first = Mirror()
    with pytest.raises(FileNotFoundError, match="no weights"):
        async with Server(make_app({"first": first, "second": Missing()}, page=None), port=0):
            pass
    assert not first.is_entered


async def test_start_that_is_cancelled_leaves_what_was_entered() -> None:
    """Also in the middle of a service that takes its time."""

    class Slow(Mirror):
        was_cancelled = False

        async def __aenter__(self) -> Slow:
            is_entering.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
            return self

    is_entering = asyncio.Event()
    first, second = Mirror(), Slow()
    server = Server(make_app({"first": first, "second": second}, page=None), port=0)
    starting = asyncio.create_task(server.__aenter__())
    await is_entering.wait()
    assert first.is_entered
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert second.was_cancelled
    assert not first.is_entered


async def test_end_that_is_cancelled_sends_everybody_away_at_once() -> None:
    """Services that cling are cancelled, and the cancellation goes on."""
    service = Clinging()
    async with serving(service, limits=ClientLimits(leave_s=60.0)) as rig, rig.stream():
        await rig.until(lambda: len(rig.roster.clients) == 1)
        ending = asyncio.create_task(rig.roster.stop())
        await asyncio.sleep(0.01)
        ending.cancel()
        await asyncio.wait({ending})
        assert ending.cancelled()
        assert service.was_cancelled


async def test_server_on_a_port_that_is_taken_says_so() -> None:
    """The services are left again."""
    service = Mirror()
    async with serving(Mirror()) as rig:
        port = int(rig.url.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(ConfigurationError, match="cannot be listened on"):
            async with Server(make_app({"main": service}, page=None), port=port):
                pass
    assert not service.is_entered


async def test_events_are_logged_without_anything_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Joining and leaving, with the counts; neither the visit's own secret nor what the client calls itself."""
    caplog.set_level(logging.INFO, "partime_async.serve")
    async with serving(Mirror()) as rig:
        async with rig.stream("?client=my-own-name") as stream:
            secret = str(stream.hello["id"])
        await rig.empty()
    for words in ("server.ready", "client.joined", "client.left", "server.stopped"):
        assert words in caplog.text
    assert secret not in caplog.text
    assert "my-own-name" not in caplog.text


def test_log_line_from_outside_stays_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """What a client sends cannot forge a line of the log, in either format."""
    caplog.set_level(logging.INFO, "partime_async.serve")
    event("client.left", why='rubbish: "\n12:00:00 server.ready', token=None)
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["why"].startswith("rubbish")
    assert "token" not in line
    assert TOKEN not in line
