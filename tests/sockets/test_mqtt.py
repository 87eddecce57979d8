"""MQTT, with a real broker in this process: topics are clients."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch

from partime_async.errors import SinkError, SourceError
from partime_async.sockets import Limits, SensorServer, SocketFrame, SocketSink, Tls, listen
from tests.certificates import Authority, Pair
from tests.sockets.peers import PATIENT, WIDTH, check, next_of, small, until, vector

pytest.importorskip("aiomqtt")
amqtt = pytest.importorskip("amqtt.broker")

CONFIG = {"plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}}


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Let the broker keep its complaints to itself."""
    for name in ("amqtt", "transitions", "mqtt"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@asynccontextmanager
async def broker(port: int, pair: Pair | None = None) -> AsyncIterator[None]:
    """Run a broker, with TLS if it has a certificate."""
    listener: dict[str, object] = {"type": "tcp", "bind": f"127.0.0.1:{port}"}
    if pair is not None:
        listener |= {"ssl": True, "certfile": str(pair.certificate), "keyfile": str(pair.key)}
    listeners = {"default": listener}
    found = amqtt.Broker({"listeners": listeners, **CONFIG})
    await found.start()
    try:
        yield
    finally:
        await found.shutdown()


@pytest.fixture
def port() -> int:
    """Return a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_mqtt_source_hears_what_sinks_publish(port: int) -> None:
    """Each topic is a client with numbers of its own; all formats go through; an end is told."""
    for form in ("binary", "json"):
        base = f"mqtt://127.0.0.1:{port}"
        async with broker(port), listen(f"{base}/sensors/+?format={form}") as source:
            async with (
                SocketSink(f"{base}/sensors/a?format={form}", limits=PATIENT) as first,
                SocketSink(f"{base}/sensors/b?format={form}&qos=1", limits=PATIENT) as second,
            ):
                got: dict[str, list[SocketFrame]] = {}
                for number in range(5):
                    await first.write(vector(number))
                    await second.write(vector(-number))
                for _ in range(10):
                    each = await anext(source)
                    got.setdefault(each.peer, []).append(each)
            await until(lambda: not source.statistics().connected)
            clients = source.statistics().clients
        assert sorted(got) == ["sensors/a", "sensors/b"]
        assert all([each.sequence for each in frames] == list(range(5)) for frames in got.values())
        for client in clients:
            check(client)
            assert (client.closed, client.sequence.missing) == ("bye", 0)


async def test_mqtt_server_sends_results_behind_the_topic(port: int) -> None:
    """Results are found at the frame's topic with /result behind it; the server does not take them for frames."""
    base = f"mqtt://127.0.0.1:{port}/lab"
    async with (
        broker(port),
        small() as pipeline,
        SensorServer(pipeline, f"{base}/#", replies="always") as server,
        listen(f"{base}/x/result") as results,
        SocketSink(f"{base}/x") as sink,
    ):
        await sink.write(vector(3), sequence=8)
        result = await anext(results)
        assert server.statistics().arrived == 1
    assert result.sequence == 8
    assert isinstance(result.value, torch.Tensor)
    assert result.value.flatten().tolist() == [6.0] * WIDTH


async def test_mqtt_source_comes_back_after_the_broker_was_away(port: int) -> None:
    """A broker that starts again is subscribed to again."""
    async with broker(port):
        source = listen(f"mqtt://127.0.0.1:{port}/a")
        await source.open()
    async with broker(port):
        async with SocketSink(f"mqtt://127.0.0.1:{port}/a") as sink:
            value = (await next_of(source, sink)).value
            assert isinstance(value, torch.Tensor)
            assert value.shape == (1, WIDTH)
        await source.aclose()


async def test_mqtt_without_a_broker_is_an_error_without_the_password(port: int) -> None:
    """What cannot be reached is named, its secret is not."""
    source = listen(f"mqtt://me:secret@127.0.0.1:{port}/a", limits=Limits(connect_s=1.0))
    with pytest.raises(SourceError, match=rf"cannot listen at mqtt://127\.0\.0\.1:{port}/a") as caught:
        await source.open()
    assert "secret" not in str(caught.value)
    await source.aclose()


async def test_mqtt_over_tls_checks_the_certificate_of_the_broker(port: int, authority: Authority) -> None:
    """Frames go through; a broker that is not trusted is refused at once, with the remedy."""
    base, trusting = f"mqtts://127.0.0.1:{port}/a", Tls(ca=authority.ca)
    async with broker(port, authority.issue("broker")):
        async with listen(f"{base}?ca={authority.ca}") as source, SocketSink(base, tls=trusting) as sink:
            await sink.write(vector(3), sequence=8)
            assert (await anext(source)).sequence == 8
        words = r"127\.0\.0\.1 is not trusted: .*Name the one that has signed it"
        stranger = listen(base)
        with pytest.raises(SourceError, match=words):
            await stranger.open()
        await stranger.aclose()
        untrusting = SocketSink(base)
        await untrusting.__aenter__()
        await until(lambda: untrusting._distrust is not None)
        with pytest.raises(SinkError, match=words):
            await untrusting.write(vector(1))
        with pytest.raises(SinkError, match=words):
            await untrusting.__aexit__(None, None, None)
