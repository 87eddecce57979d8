"""Every client is a feed of one pipeline: results, targets, limits, and accounts that add up."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import socket
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import aiohttp
import numpy as np
import pytest
import torch
from torch import nn

import partime_async as pa
from partime_async.errors import ConfigurationError, PipelineNotRunning, SourceError
from partime_async.frame import Result, SourceFrame
from partime_async.sockets import Limits, SensorServer, SocketFrame, wire
from tests.sockets.peers import (
    WIDTH,
    all_left,
    check,
    frame,
    goodbye,
    port_of,
    read_message,
    serving,
    slow,
    small,
    until,
    vector,
)

URLS = ["tcp://127.0.0.1:0", "unix://{tmp}/frames.sock", "udp://127.0.0.1:0", "ws://127.0.0.1:0/frames"]


class Device:
    """A client that knows nothing of the library but the bytes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Device:
        scheme = self._url.partition(":")[0]
        if scheme == "ws":
            session = await self._stack.enter_async_context(aiohttp.ClientSession())
            self._socket = await self._stack.enter_async_context(session.ws_connect(self._url))
        elif scheme == "udp":
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.setblocking(False)
            self._udp.connect(("127.0.0.1", port_of(self._url)))
            self._stack.callback(self._udp.close)
        else:
            path = self._url.partition("://")[2]
            opened = (
                asyncio.open_unix_connection(path)
                if scheme == "unix"
                else asyncio.open_connection("127.0.0.1", port_of(self._url))
            )
            self._reader, self._writer = await opened
            self._stack.callback(self._writer.close)
        self.scheme = scheme
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def send(self, data: bytes) -> None:
        """Send one message."""
        if self.scheme == "ws":
            await self._socket.send_bytes(data)
        elif self.scheme == "udp":
            await asyncio.get_running_loop().sock_sendall(self._udp, data)
        else:
            self._writer.write(data)
            await self._writer.drain()

    async def receive(self) -> wire.Message:
        """Return the next message."""
        async with asyncio.timeout(20.0):
            if self.scheme == "ws":
                return wire.decode(await self._socket.receive_bytes())
            if self.scheme == "udp":
                return wire.decode(await asyncio.get_running_loop().sock_recv(self._udp, 65536))
            return await read_message(self._reader)


@pytest.fixture(params=URLS, ids=["tcp", "unix", "udp", "ws"])
def url(request: pytest.FixtureRequest, tmp_path: object) -> str:
    """Return where to listen, for every transport."""
    return str(request.param).format(tmp=tmp_path)


async def test_server_answers_those_who_ask_and_counts_everything(url: str) -> None:
    """Frames become results in order, the answers go to who asked, and the accounts add up, on every transport."""
    async with serving(url) as server, Device(server.url) as device:
        for number in range(10):
            await device.send(frame(number, wants_reply=number % 3 == 0))
        answers = [await device.receive() for _ in range(4)]
        await device.send(goodbye(10))
        [client] = await all_left(server, 1)
    assert [answer.sequence for answer in answers] == [0, 3, 6, 9]
    assert [answer.array.tolist() for answer in answers] == [[2.0 * n] * WIDTH for n in (0, 3, 6, 9)]
    assert all(answer.kind is wire.Kind.RESULT and answer.clock is wire.Clock.MONOTONIC for answer in answers)
    check(client)
    assert (client.frames, client.replies, client.closed, client.sequence.missing) == (10, 4, "bye", 0)
    assert client.feed is not None
    assert client.feed.frames.delivered == 10
    assert server.statistics().kernel_drops == (0 if url.startswith("udp") and os.uname().sysname == "Linux" else None)


@pytest.mark.parametrize("form", ["json", "csv"])
async def test_server_speaks_text_to_devices_that_do(form: str) -> None:
    """A shell script with nothing but echo sends lines and reads lines."""
    async with serving(f"tcp://127.0.0.1:0?format={form}", replies="always") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server.url))
        writer.write(b"[1, 2, 3, 4]\n" if form == "json" else b"1,2,3,4\n")
        answer = await reader.readline()
        writer.write(b"nonsense\n")
        error = await reader.readline()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        [client] = await all_left(server, 1)
    wanted = {"json": b'{"kind":"result","sequence":0,"values":[2.0,4.0,6.0,8.0]}\n', "csv": b"0,2,4,6,8\n"}
    assert answer == wanted[form]
    assert b"error" in error
    check(client)
    assert (client.frames, dict(client.malformed), client.closed) == (1, {form: 1}, "end")


async def test_server_with_early_and_late_targets_learns_from_both() -> None:
    """A target that comes before its frame goes with it; one that comes after finds it again."""
    learner = pa.Learner(nn.functional.mse_loss, partial(torch.optim.SGD, lr=0.01), label_delay=8)
    pipeline = small(learner=learner)
    async with serving(pipeline=pipeline) as server:
        async with Device(server.url) as device:
            await device.send(wire.encode(vector(1), sequence=0, kind=wire.Kind.TARGET))
            await device.send(frame(0, wants_reply=True))
            await device.receive()
            await device.send(frame(1, wants_reply=True))
            await device.receive()
            await device.send(wire.encode(vector(1), sequence=1, kind=wire.Kind.TARGET))
            for number in range(2, 12):
                await device.send(frame(number, wants_reply=True))
                await device.receive()
            await device.send(goodbye(12))
            [client] = await all_left(server, 1)
        statistics = pipeline.statistics()
    check(client)
    assert client.targets == 2
    assert statistics.learning is not None
    labels = statistics.learning.labels
    assert labels is not None
    assert (labels.taken, labels.refused) == (2, 0)


async def test_server_prepares_frames_and_responds_as_told() -> None:
    """A forecaster's targets are made of the stream itself, and what goes back is the caller's choice."""
    learner = pa.Learner(nn.functional.mse_loss, partial(torch.optim.SGD, lr=0.01))
    seen: list[int] = []

    def respond(result: Result) -> dict[str, object]:
        assert isinstance(result.context, SocketFrame)
        seen.append(result.context.sequence)
        return {"loss": result.loss, "client": result.context.client}

    prepare = partial(pa.targets.ahead, steps=2)
    async with serving(pipeline=small(learner=learner), prepare=prepare, respond=respond) as server:
        async with Device(server.url) as device:
            for number in range(5):
                await device.send(frame(number, wants_reply=True))
            await device.send(goodbye(5))
            notes = [(await device.receive()).note for _ in range(5)]
        await all_left(server, 1)
    assert seen == [0, 1, 2, 3, 4]
    assert [note["loss"] is None for note in notes] == [False, False, False, True, True]
    assert {note["client"] for note in notes} == {0}


async def test_server_gives_each_of_a_hundred_clients_its_own_feed() -> None:
    """All are served, results go to their own senders, and nothing of TCP is lost."""
    pipeline = small()
    async with serving(pipeline=pipeline) as server:

        async def talk(number: int) -> None:
            async with Device(server.url) as device:
                for count in range(5):
                    await device.send(wire.encode(vector(1000 * number + count), sequence=count, wants_reply=True))
                for count in range(5):
                    answer = await device.receive()
                    assert answer.array[0] == 2 * (1000 * number + count)
                await device.send(goodbye(5))

        await asyncio.gather(*map(talk, range(100)))
        clients = await all_left(server, 100)
        offered = pipeline.statistics().frames.offered
    for client in clients:
        check(client)
        assert (client.frames, client.replies, client.closed) == (5, 5, "bye")
    assert offered == 500


async def test_server_that_is_full_turns_others_away_with_a_word() -> None:
    """The limit on clients is told to who comes next, who is counted; when one leaves there is room again."""
    async with serving(limits=Limits(clients=1)) as server:
        async with Device(server.url) as first:
            await first.send(frame(0, wants_reply=True))
            await first.receive()
            async with Device(server.url) as second:
                assert "Come later" in str((await second.receive()).note["error"])
            assert server.statistics().refused == 1
        await all_left(server, 1)
        async with Device(server.url) as third:
            await third.send(frame(0, wants_reply=True))
            await third.receive()


@pytest.mark.parametrize(("scheme", "rate_hz"), [("tcp", 50.0), ("udp", 2.0)])
async def test_server_with_a_rate_holds_tcp_back_and_drops_datagrams(scheme: str, rate_hz: float) -> None:
    """A sender that is too fast waits where it can be made to, and loses messages, counted, where not."""
    limits = Limits(rate_hz=rate_hz)
    async with serving(f"{scheme}://127.0.0.1:0", limits=limits) as server, Device(server.url) as device:
        for number in range(60):
            await device.send(frame(number))
        await device.send(goodbye(60))
        await until(lambda: sum(client.messages for client in server.statistics().clients) >= 61)
        [client] = server.statistics().clients
    check(client)
    if scheme == "tcp":
        assert client.frames == 60
    else:
        assert client.dropped["rate"] >= 20
        assert client.messages == 61


async def test_server_under_latest_keeps_the_newest_of_a_client_that_is_too_fast() -> None:
    """A live feed reads on and drops, and says so."""
    async with serving(pipeline=slow(5), overflow="latest") as server, Device(server.url) as device:
        await device.send(b"".join(map(frame, range(200))) + goodbye(200))
        [client] = await all_left(server, 1)
    check(client)
    assert client.feed is not None
    assert client.feed.frames.dropped["overflow"] > 100


async def test_server_under_block_pushes_back_on_the_sender() -> None:
    """While the pipeline is busy nothing is dropped: the sender's writes do not go through."""
    limits = Limits(message_bytes=1 << 17)
    async with serving(pipeline=slow(20, 1 << 14), limits=limits) as server:
        with socket.create_connection(("127.0.0.1", port_of(server.url))) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
            found.setblocking(False)
            message = wire.encode(np.zeros(1 << 14, np.float32), sequence=0)
            sent = stuck = 0
            while stuck < 20 and sent < 500 * len(message):
                try:
                    sent += found.send(message[sent % len(message) :])
                    stuck = 0
                except BlockingIOError:
                    stuck += 1
                await asyncio.sleep(0.001)
            assert stuck == 20
        [client] = await all_left(server, 1)
    check(client)
    assert client.feed is not None
    assert not client.feed.frames.dropped_total


async def test_server_shows_out_who_reads_no_results_and_serves_the_others() -> None:
    """A client that asks and never reads fills its own buffers, and is cut; another's answers come all the while."""
    limits = Limits(unsent_bytes=1 << 14, stalled_s=0.3, message_bytes=1 << 17)
    pipeline = pa.Pipeline(nn.Sequential(nn.Identity()), torch.zeros(1, 1 << 13), stages=1)
    async with serving(pipeline=pipeline, limits=limits) as server:
        values = np.zeros(1 << 13, np.float32)
        async with Device(server.url) as rude, Device(server.url) as polite:

            async def flood() -> None:
                number = 0
                while True:
                    await rude.send(wire.encode(values, sequence=number, wants_reply=True))
                    number += 1

            flooding = asyncio.create_task(flood())
            for number in range(20):
                await polite.send(wire.encode(values, sequence=number, wants_reply=True))
                assert (await polite.receive()).sequence == number
            await until(lambda: server.statistics().connected == 1)
            flooding.cancel()
            await asyncio.wait([flooding])
            rudest, politest = server.statistics().clients
    assert (rudest.closed, politest.closed) == ("stalled", None)
    assert rudest.unsent > 0
    check(rudest)


async def test_server_refuses_frames_that_do_not_fit_and_goes_on() -> None:
    """A frame of another shape costs that frame: the client is told, and its next one is served."""
    async with serving() as server, Device(server.url) as device:
        await device.send(wire.encode(np.zeros(WIDTH + 1, np.float32), sequence=0))
        assert "expected a tensor (1, 4)" in str((await device.receive()).note["error"])
        await device.send(frame(1, wants_reply=True))
        assert (await device.receive()).sequence == 1
        await device.send(goodbye(2))
        [client] = await all_left(server, 1)
    check(client)
    assert client.feed is not None
    assert dict(client.feed.frames.dropped) == {"invalid": 1}


async def test_server_tells_of_a_frame_that_failed() -> None:
    """A stage that raises costs that frame; who asked for it is told why."""

    class Picky(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            if float(value.sum()) < 0:
                raise ArithmeticError("negative")
            return value

    pipeline = pa.Pipeline(nn.Sequential(Picky()), torch.zeros(1, WIDTH), stages=1, capture=False)
    async with serving(pipeline=pipeline) as server, Device(server.url) as device:
        await device.send(frame(-1 + 2, wants_reply=True))
        await device.receive()
        await device.send(wire.encode(vector(-1), sequence=2, wants_reply=True))
        answer = await device.receive()
        assert (answer.sequence, "negative" in str(answer.note["error"])) == (2, True)


async def test_server_left_with_clients_inside_leaves_nothing(url: str) -> None:
    """Leaving ends everybody's service at once, whoever is in the middle of what."""
    async with small() as pipeline:
        async with AsyncExitStack() as devices:
            async with SensorServer(pipeline, url) as server:
                for number in range(5):
                    device = await devices.enter_async_context(Device(server.url))
                    await device.send(frame(0))
                    if number % 2 and device.scheme in ("tcp", "unix"):
                        await device.send(frame(1)[:10])
                await until(lambda: server.statistics().connected == 5)
            assert server.statistics().connected == 0
            for client in server.statistics().clients:
                check(client)
        await until(lambda: pipeline.statistics().frames.in_flight == 0)


async def test_server_whose_respond_raises_ends_that_client_only(caplog: pytest.LogCaptureFixture) -> None:
    """A mistake in the caller's function is logged with its traceback; the other clients go on."""

    def respond(result: Result) -> torch.Tensor:
        assert isinstance(result.context, SocketFrame)
        if result.context.client == 0:
            raise KeyError("a mistake")
        assert isinstance(result.output, torch.Tensor)
        return result.output

    async with serving(respond=respond) as server:
        async with Device(server.url) as first:
            await first.send(frame(0, wants_reply=True))
            await all_left(server, 1)
        async with Device(server.url) as second:
            await second.send(frame(0, wants_reply=True))
            await second.receive()
        assert server.statistics().clients[0].closed == "failed"
    assert "a mistake" in caplog.text
    caplog.clear()


async def test_server_whose_prepare_loses_the_sender_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """Frames made anew do not tell whose they are; the error names dataclasses.replace."""

    async def prepare(frames: AsyncIterable[SourceFrame]) -> AsyncIterator[SourceFrame]:
        async for each in frames:
            assert isinstance(dataclasses.replace(each), SocketFrame)
            yield SourceFrame(each.value)

    async with serving(prepare=prepare) as server, Device(server.url) as device:
        await device.send(frame(0))
        [client] = await all_left(server, 1)
    assert client.closed == "pipeline: ConfigurationError"
    gc.collect()
    caplog.clear()


async def test_server_with_options_that_cannot_be_is_refused() -> None:
    """Mistakes are told before anybody is let in."""
    async with small() as pipeline:
        with pytest.raises(ConfigurationError, match="replies is 'sometimes'"):
            SensorServer(pipeline, "tcp://127.0.0.1:0", replies="sometimes")
        with pytest.raises(ConfigurationError, match="unknown overflow policy"):
            SensorServer(pipeline, "tcp://127.0.0.1:0", overflow="some")
        with pytest.raises(ConfigurationError, match="unknown timing"):
            SensorServer(pipeline, "tcp://127.0.0.1:0", timing="lunar")
        with pytest.raises(ConfigurationError, match="cannot listen at"):
            SensorServer(pipeline, "tcp://127.0.0.1:1?connect")
        async with SensorServer(pipeline, "tcp://127.0.0.1:0") as server:
            with pytest.raises(PipelineNotRunning, match="entered before"):
                await server.__aenter__()
            with pytest.raises(SourceError, match="cannot listen at"):
                async with SensorServer(pipeline, server.url):
                    pass
    with pytest.raises(PipelineNotRunning):
        async with SensorServer(pipeline, "tcp://127.0.0.1:0"):
            pass
