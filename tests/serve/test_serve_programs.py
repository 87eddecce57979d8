"""Programs that visit over a WebSocket: results in order, rubbish, stalls and silence."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

import partime_async as pa
from partime_async.client import Kind, decode, encode
from partime_async.serve import Client, ClientLimits
from tests.serve.visitors import PATIENCE_S, WIDTH, Mirror, Rig, learner, model_service, network, serving


async def test_stream_of_frames_gets_the_modules_own_results_in_order() -> None:
    """Numbers and times of the client come back with each result."""
    frames = torch.randn(40, WIDTH)
    async with serving(model_service()) as rig, rig.stream("?client=bench") as stream:
        assert stream.hello["type"] == "hello"
        assert stream.hello["takes"] == [{"shape": [WIDTH], "dtype": "float32"}]

        async def send() -> None:
            for number, frame in enumerate(frames):
                await stream.socket.send_bytes(encode(frame.numpy(), sequence=3 * number, captured_at=float(number)))

        sending = asyncio.create_task(send())
        results = [await stream.result() for _ in frames]
        await sending
    assert [result.sequence for result in results] == [3 * number for number in range(40)]
    assert [result.captured_at for result in results] == [float(number) for number in range(40)]
    assert {result.kind for result in results} == {Kind.RESULT}
    with torch.inference_mode():
        wanted = [network()(frame[None])[0].numpy() for frame in frames]
    assert all(np.array_equal(result.array, each) for result, each in zip(results, wanted, strict=True))


async def test_stream_of_json_frames_is_answered_in_json() -> None:
    """Values in text get their results as text, a list as well as an object."""
    async with serving(model_service()) as rig, rig.stream() as stream:
        await stream.socket.send_json([1.0, 2.0, 3.0, 4.0])
        await stream.socket.send_json({"values": [1.0, 2.0, 3.0, 4.0], "sequence": 7})
        first, second = await stream.words("result"), await stream.words("result")
    assert (first["sequence"], second["sequence"]) == (0, 7)
    with torch.inference_mode():
        wanted = network()(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))[0]
    assert torch.allclose(torch.tensor(first["values"]), wanted)
    assert first["values"] == second["values"]


async def test_clients_targets_teach_the_one_network() -> None:
    """Frames with targets of two programs train the same weights, as an ordinary loop over all of them would."""
    frames, goals = torch.randn(8, WIDTH), torch.randn(8, 3)
    service = model_service(learner=learner())
    async with serving(service) as rig, rig.stream() as one, rig.stream() as two:
        for number, (frame, goal) in enumerate(zip(frames, goals, strict=True)):
            stream = one if number % 2 == 0 else two
            await stream.send(frame, number, target=goal)
            await stream.result()
        trained = await service.pipelines()["model"].state_dict()
        metrics = await rig.text("metrics")
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for frame, goal in zip(frames, goals, strict=True):
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.mse_loss(module(frame[None]), goal[None]))
        optimizer.step()
    assert all(torch.equal(trained[name], value) for name, value in module.state_dict().items())
    assert 'partime_learning_steps_total{pipeline="model",service="main",stage="0"} 8.0' in metrics


async def test_clients_standing_target_holds_until_it_is_taken_back() -> None:
    """A command states what the frames from then on should give; without one, frames teach nothing."""
    service = model_service(learner=learner())
    async with serving(service) as rig, rig.stream() as stream:

        async def taught(sequence: int) -> int:
            await stream.send(torch.ones(WIDTH), sequence)
            await stream.result()
            seen = service.pipelines()["model"].statistics().learning
            assert seen is not None
            assert seen.labels is not None
            return seen.labels.taken

        assert await taught(0) == 0
        for command, count in [({"values": [1.0, 0.0, 0.0]}, 1), ({}, 1)]:
            await stream.socket.send_json({"type": "target", **command})
            await stream.socket.send_json({"type": "ping", "at": count})
            await stream.words("pong")
            assert await taught(count) == count
        await stream.socket.send_json({"type": "target", "label": "cat"})
        assert "class's number" in str((await stream.words("error"))["error"])


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"rubbish",
        os.urandom(64),
        encode(np.zeros(WIDTH + 1, np.float32), sequence=0),
        encode(np.zeros(WIDTH, np.int64), sequence=0),
        encode(None, sequence=0),
        encode(np.zeros(WIDTH, np.float32), sequence=0, kind=Kind.RESULT),
        "rubbish",
        "7",
        '{"type": "fly"}',
        "[" * 100_000,
        '{"values": [[1], [1, 2]]}',
        '{"type": "target", "values": {"a": 1}}',
        "x" * 300_000,
    ],
    ids=lambda sent: repr(sent)[:24],
)
async def test_stream_message_that_is_rubbish_costs_that_message_alone(rubbish: bytes | str) -> None:
    """The client is told, and its next frame is served."""
    async with serving(model_service(learner=learner())) as rig, rig.stream() as stream:
        await (stream.socket.send_str(rubbish) if isinstance(rubbish, str) else stream.socket.send_bytes(rubbish))
        assert (await stream.words("error"))["error"]
        await stream.send(torch.zeros(WIDTH), 1)
        assert (await stream.result()).sequence == 1


async def test_stream_of_nothing_but_rubbish_is_cut_off() -> None:
    """After so many in a row; others are served on."""
    limits = ClientLimits(bad_messages=5)
    async with serving(model_service(), limits=limits) as rig, rig.stream() as good, rig.stream() as bad:
        for _ in range(5):
            await bad.socket.send_bytes(b"rubbish")
        assert await bad.close_code() == 1003
        await good.send(torch.zeros(WIDTH), 1)
        assert (await good.result()).sequence == 1
        await rig.until(lambda: len(rig.roster.clients) == 1)
        assert 'cause="rubbish"' in await rig.text("metrics")


async def test_stream_message_that_is_too_large_is_refused_before_it_is_kept() -> None:
    """The connection ends with the code that says so, and is not taken for one that was lost."""
    limits, service = ClientLimits(message_bytes=4096), Mirror()
    async with serving(service, limits=limits) as rig, rig.stream() as stream:
        await stream.socket.send_bytes(encode(np.zeros(4096, np.float32), sequence=0))
        assert await stream.close_code() == 1009
        await rig.empty()
    assert str(service.seen[0].closed).startswith("rubbish: Message size")


async def test_program_is_held_back_while_the_service_takes_nothing() -> None:
    """Nothing is lost: what was sent meanwhile is answered, in order, once frames are taken again."""
    service = Mirror()
    frame, count = np.zeros(200_000, np.float32), 60
    async with serving(service) as rig, rig.stream() as stream:
        service.lets_in.clear()

        async def send() -> None:
            for number in range(count):
                await stream.socket.send_bytes(encode(frame, sequence=number))

        sending = asyncio.create_task(send())
        # 48 MB do not fit into the sockets' buffers, so the sender has to wait.
        _, waiting = await asyncio.wait({sending}, timeout=0.5)
        assert waiting
        service.lets_in.set()
        numbers = [(await stream.result()).sequence for _ in range(count)]
        await sending
    assert numbers == list(range(count))


async def test_program_that_does_not_read_loses_results_and_then_its_connection() -> None:
    """The oldest results go first, and the other client does not notice."""
    service = Mirror()
    limits = ClientLimits(results_waiting=4, slow_s=0.2)
    async with serving(service, limits=limits) as rig, rig.stream() as good, rig.stream() as slow:
        await rig.until(lambda: len(service.seen) == 2)
        client = service.seen[1]
        frame = encode(np.zeros(200_000, np.float32), sequence=0)

        async def flood() -> None:
            while True:
                await slow.socket.send_bytes(frame)

        flooding = asyncio.create_task(flood())
        await rig.until(lambda: client.closed is not None)
        flooding.cancel()
        await asyncio.wait({flooding})
        assert client.closed is not None
        assert client.closed.startswith("slow")
        assert client.statistics()["unsent"] > 0
        await good.send(torch.zeros(WIDTH), 5)
        assert (await good.result()).sequence == 5
        await rig.until(lambda: len(rig.roster.clients) == 1)


async def test_commands_that_nobody_takes_are_counted_and_let_go() -> None:
    """A flood of them fills no memory, and frames go on."""

    class Deaf(Mirror):
        async def _commands(self, client: Client) -> None:
            return

    service = Deaf()
    async with serving(service) as rig, rig.stream() as stream:
        for _ in range(100):
            await stream.socket.send_json({"type": "shout"})
        await stream.send(torch.zeros(2), 0)
        assert (await stream.result()).sequence == 0
        assert service.seen[0].unheard == 36
        assert repr(service.seen[0]).endswith("websocket, for main>")


async def test_program_says_goodbye_in_the_binary_format() -> None:
    """As a device does that knows no other words; a greeting is a sign of life, and a note a command."""
    service = Mirror()
    async with serving(service) as rig, rig.stream() as stream:
        await stream.socket.send_bytes(encode(None, sequence=0, kind=Kind.HELLO))
        note = np.frombuffer(b'{"type": "note"}', np.uint8)
        await stream.socket.send_bytes(encode(note, sequence=0, kind=Kind.NOTE))
        assert (await stream.words("echo"))["said"] == {"type": "note"}
        await stream.socket.ping(b"still there?")
        await stream.socket.send_bytes(encode(None, sequence=0, kind=Kind.BYE))
        assert await stream.close_code() == 1000
        await rig.empty()
        assert service.seen[0].closed == "bye"


async def test_program_that_neither_reads_nor_sends_loses_its_connection() -> None:
    """One that went to sleep in the middle, with results waiting for it, cannot stay for ever."""
    service = Mirror()
    limits = ClientLimits(slow_s=0.3, silence_s=2.0)
    async with serving(service, limits=limits) as rig, rig.stream() as stream:
        frame = encode(np.zeros(1_000_000, np.float32), sequence=0)
        for _ in range(4):
            await stream.socket.send_bytes(frame)
        await rig.empty()
        assert str(service.seen[0].closed).startswith("slow")


async def test_program_that_answers_nothing_is_given_up() -> None:
    """One that holds its connection and is dead loses its place after the silence allowed."""
    service = Mirror()
    async with serving(service, limits=ClientLimits(silence_s=0.3)) as rig:
        _, writer = await bare_program(rig)
        await rig.until(lambda: bool(service.seen))
        await rig.empty()
        assert str(service.seen[0].closed).startswith("silent")
        writer.close()


async def bare_program(rig: Rig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a WebSocket that nobody looks after."""
    url = urlsplit(rig.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /api/stream HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how many bytes of a message have come")
async def test_program_whose_line_is_slow_is_not_silent() -> None:
    """One message may take longer than the silence that is allowed, which begins when no more of it comes."""
    service = Mirror()
    async with serving(service, limits=ClientLimits(silence_s=1.0)) as rig:
        _, writer = await bare_program(rig)
        await rig.until(lambda: bool(service.seen))
        message = encode(np.zeros(WIDTH, np.float32), sequence=5)
        header = bytes([0x82, 0x80 | len(message), 0, 0, 0, 0])  # masked with zeros
        for byte in header + message[:-1]:
            writer.write(bytes([byte]))
            await asyncio.sleep(3.0 / len(message))
        assert service.seen[0].closed is None
        writer.write(message[-1:])
        await rig.until(lambda: service.seen[0].statistics()["frames"] == 1)
        writer.write(header + message[:9])
        await rig.empty()
        assert str(service.seen[0].closed).startswith("silent")
        writer.close()


async def test_program_that_lives_and_sends_nothing_is_given_up_later() -> None:
    """Its pongs are signs of life, but a place is for those who use it."""
    service = Mirror()
    limits = ClientLimits(silence_s=0.4, idle_s=1.0)
    async with serving(service, limits=limits) as rig, rig.stream() as stream:
        assert await stream.close_code() == 1008
        await rig.empty()
        assert str(service.seen[0].closed).startswith("idle")


async def test_program_whose_time_is_up_has_to_leave() -> None:
    """It is told why."""
    async with serving(Mirror(), limits=ClientLimits(duration_s=0.2)) as rig, rig.stream() as stream:
        assert (await stream.words("bye"))["reason"] == "time"
        assert await stream.close_code() == 1008


async def test_program_that_wants_no_results_gets_none() -> None:
    """A sensor that never reads is no slow reader."""
    service = Mirror()
    async with serving(service) as rig, rig.stream("?results=no") as stream:
        await stream.send(torch.zeros(WIDTH), 0)
        await stream.socket.send_json({"type": "hi"})
        assert (await stream.words("echo"))["said"] == {"type": "hi"}
        await rig.until(lambda: service.seen[0].statistics()["frames"] == 1)
        assert service.seen[0].statistics()["sent"] == 2


async def test_program_whose_service_fails_hears_why() -> None:
    """The error goes to this client; the server and its other clients go on."""
    service = Mirror()
    async with serving(service) as rig, rig.stream() as good:
        service.failure = ValueError("no more of this")
        async with rig.stream() as bad:
            assert (await bad.words("error"))["error"] == "ValueError: no more of this"
            assert await bad.close_code() == 1011
        await good.send(torch.zeros(WIDTH), 1)
        assert (await good.result()).sequence == 1


async def test_frame_that_fails_in_the_network_is_told_with_its_number() -> None:
    """A target that does not fit fails its frame, and the frames behind it are served."""
    async with serving(model_service(learner=learner())) as rig, rig.stream() as stream:
        await stream.send(torch.zeros(WIDTH), 4, target=torch.zeros(2, 2, 2))
        failed = await stream.words("failed")
        assert failed["sequence"] == 4
        assert "stage 0" in str(failed["error"])
        await stream.send(torch.zeros(WIDTH), 5)
        assert (await stream.result()).sequence == 5


async def test_results_of_several_tensors_come_as_several_messages() -> None:
    """All but the last say that more of the same result follows."""

    class Two(Mirror):
        async def serve(self, client: object) -> None:
            from partime_async.serve import Client

            assert isinstance(client, Client)
            async for frame in client.frames():
                assert isinstance(frame.value, torch.Tensor)
                client.send((frame.value, -frame.value), answers=frame)

    async with serving(Two()) as rig, rig.stream() as stream:
        await stream.send(torch.ones(2), 0)
        first = decode(bytearray(await stream.socket.receive_bytes(timeout=PATIENCE_S)))
        second = decode(bytearray(await stream.socket.receive_bytes(timeout=PATIENCE_S)))
    assert (first.has_more, second.has_more) == (True, False)
    assert second.array.tolist() == [-1.0, -1.0]


async def test_telemetry_says_how_the_frames_fare() -> None:
    """Now and then, as JSON, with the loss of this client's own frames if they teach."""
    async with serving(model_service(learner=learner())) as rig, rig.stream() as stream:
        await stream.send(torch.zeros(WIDTH), 0)
        told = await stream.words("telemetry")
        assert (told["offered"], told["delivered"], told["failed"]) == (1, 1, 0)
        assert "loss" not in told
        await stream.send(torch.zeros(WIDTH), 1, target=torch.ones(3))
        told = await stream.words("telemetry")
        assert isinstance(told["loss"], float)


async def test_self_supervised_service_teaches_from_frames_alone() -> None:
    """Each program's next frame is the target of the one before."""
    example = torch.zeros(1, WIDTH)
    module = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH))
    from partime_async.serve import ModelService

    service = ModelService(
        pa.Pipeline(module, example, stages=1, learner=learner(), close_timeout_s=2.0), example, teach=pa.targets.ahead
    )
    async with serving(service) as rig, rig.stream() as stream:
        for number in range(5):
            await stream.send(torch.full((WIDTH,), float(number)), number)
        assert [(await stream.result()).sequence for _ in range(4)] == [0, 1, 2, 3]
        seen = service.pipelines()["model"].statistics().learning
        assert seen is not None
        assert seen.loss.count == 4
