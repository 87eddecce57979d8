"""`listen` and `connect`: one stream of frames over every transport, in both directions."""

from __future__ import annotations

import asyncio
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import partime_async as pa
from partime_async.errors import ConfigurationError, SourceError
from partime_async.sockets import (
    Backoff,
    Limits,
    SocketSink,
    connect,
    listen,
    wire,
)
from tests.sockets.peers import (
    PATIENT,
    WIDTH,
    Source,
    check,
    collected,
    frame,
    goodbye,
    network,
    port_of,
    until,
    until_pushed_back,
    vector,
)

TRANSPORTS = ["tcp://127.0.0.1:0", "unix://{tmp}/a.sock", "udp://127.0.0.1:0", "ws://127.0.0.1:0/frames"]
QUICK = Backoff(first_s=0.01, longest_s=0.05)


@pytest.fixture(params=TRANSPORTS, ids=["tcp", "unix", "udp", "ws"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return where to listen, for every transport."""
    return str(request.param).format(tmp=tmp_path)


@pytest.mark.parametrize("form", ["binary", "json", "csv"])
@pytest.mark.parametrize("is_listening", [True, False], ids=["listen", "connect"])
async def test_source_over_any_transport_gives_what_a_sink_sends(url: str, form: str, is_listening: bool) -> None:
    """Both ways round, in every format: all frames, in order, with numbers and times, and an end."""
    source: Source
    url = f"{url}?format={form}"
    if is_listening:
        source = listen(url, is_endless=False)
        sink = SocketSink((await source.open()).url, limits=PATIENT)
    else:
        sink = SocketSink(url, listen=True, limits=PATIENT)
    async with sink:
        if not is_listening:
            source = connect(sink.url)
        reading = asyncio.create_task(collected(source))
        await until(lambda: sink.statistics().connected == 1)
        for number in range(20):
            await sink.write(torch.full((WIDTH,), float(number)), captured_at=time.monotonic())
    frames = await reading
    await source.aclose()
    assert [each.sequence for each in frames] == list(range(20))
    assert [each.value.tolist() for each in frames if isinstance(each.value, torch.Tensor)] == [
        [[float(number)] * WIDTH] for number in range(20)
    ]
    [client] = source.statistics().clients
    check(client)
    assert (client.closed, client.frames, client.sequence.missing) == ("bye", 20, 0)
    assert all(each.captured_at is not None and each.captured_at <= each.arrived_at for each in frames)
    statistics = sink.statistics()
    assert (statistics.written, statistics.sent, statistics.dropped, statistics.waiting) == (20, 20, 0, 0)


async def test_source_through_a_pipeline_gives_results() -> None:
    """A source is an asynchronous iterable as any other."""
    source = listen("tcp://127.0.0.1:0", is_endless=False)
    await source.open()

    async def send() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(source.url))
        writer.write(b"".join(map(frame, range(30))) + goodbye(30))
        writer.close()

    async with pa.Pipeline(network(), torch.zeros(1, WIDTH), stages=1) as pipeline:
        sending = asyncio.create_task(send())
        results = [result async for result in pipeline.stream(source)]
        await sending
    assert [int(result.output[0, 0]) for result in results if isinstance(result.output, torch.Tensor)] == [
        2 * number for number in range(30)
    ]


async def test_source_that_nobody_reads_pushes_back_and_loses_nothing() -> None:
    """While nobody takes frames the sender's writes get stuck; when they are taken again, all of them come."""
    source = listen("tcp://127.0.0.1:0", capacity=2, is_endless=False)
    await source.open()
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(source.url))
    sent = await until_pushed_back(writer)
    writer.write_eof()
    frames = await collected(source)
    assert [each.sequence for each in frames] == list(range(sent))
    writer.close()


async def test_source_listening_takes_one_device_after_the_other() -> None:
    """A second device is turned away while the first is here, and welcome when it has left."""
    async with listen("tcp://127.0.0.1:0") as source:
        for number in range(2):
            _, writer = await asyncio.open_connection("127.0.0.1", port_of(source.url))
            writer.write(frame(number))
            assert (await anext(source)).client == number
            reader, other = await asyncio.open_connection("127.0.0.1", port_of(source.url))
            assert b"Come later" in await reader.read()
            other.close()
            writer.close()
            await until(lambda: not source.statistics().connected)
        assert source.statistics().refused == 2


async def test_source_of_unix_has_a_private_file_and_takes_over_a_stale_one(tmp_path: Path) -> None:
    """Only its user may connect; what a dead program left is replaced, what is alive or no socket is not touched."""
    path = tmp_path / "frames.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    async with listen(f"unix://{path}") as source:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(SourceError, match="another program listens"):
            await listen(f"unix://{path}").open()
        assert source.statistics().connected <= 1
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(SourceError, match="is there, and is no socket"):
        await listen(f"unix://{path}").open()
    assert path.read_text() == "precious"


async def test_source_connected_comes_back_after_the_server_was_away() -> None:
    """A server that goes without a word and comes back is found again, and the account goes on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    source = connect(f"tcp://127.0.0.1:{port}", backoff=QUICK)
    numbers = iter(range(1000))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(frame(next(numbers)))
        await writer.drain()
        writer.close()

    reading = asyncio.create_task(collected(source))
    await asyncio.sleep(0.05)
    for arrived in range(1, 4):
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        await until(lambda arrived=arrived: source.statistics().arrived >= arrived)  # type: ignore[misc]
        server.close()
        await server.wait_closed()
    await source.aclose()
    await reading
    [client] = source.statistics().clients
    check(client)
    assert client.frames >= 6


async def test_source_connected_without_a_server_gives_up_in_time() -> None:
    """Patience that ends is an error that names the address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        source = connect(f"tcp://127.0.0.1:{found.getsockname()[1]}", patience_s=0.2, backoff=QUICK)
        with pytest.raises(
            SourceError, match=r"could not be reached within 0\.2 s.*Check that something listens there"
        ):
            await anext(source)
        await source.aclose()


async def test_source_closed_while_it_waits_ends(url: str) -> None:
    """Closing ends a pending wait, leaves nothing, and may be done again."""
    source = listen(url)
    waiting = asyncio.create_task(collected(source))
    await asyncio.sleep(0.02)
    await source.aclose()
    assert await waiting == []
    await source.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(source)


async def test_source_cancelled_while_it_waits_loses_no_frame() -> None:
    """A cancelled read leaves the next frame for the next read."""
    async with listen("tcp://127.0.0.1:0") as source:
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(source.url))
        for number in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(source)
            writer.write(frame(number))
            assert (await anext(source)).sequence == number
        writer.close()


async def test_source_with_dtype_and_to_value_makes_what_the_network_takes() -> None:
    """Integers become float32, or what is asked for, or what a function makes of the message."""
    cases = [
        (torch.float32, None, torch.tensor([[1.0, 2.0]])),
        (torch.float64, None, torch.tensor([[1.0, 2.0]], dtype=torch.float64)),
        (torch.bfloat16, None, torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)),
        (None, None, torch.tensor([[1, 2]], dtype=torch.int16)),
        (None, lambda message: torch.tensor([[float(message.array.sum())]]), torch.tensor([[3.0]])),
    ]
    for dtype, to_value, wanted in cases:
        async with listen("tcp://127.0.0.1:0", dtype=dtype, to_value=to_value) as source:
            _, writer = await asyncio.open_connection("127.0.0.1", port_of(source.url))
            writer.write(wire.encode(np.array([1, 2], np.int16), sequence=0))
            got = (await anext(source)).value
            assert isinstance(got, torch.Tensor)
            assert got.dtype is wanted.dtype
            assert torch.equal(got, wanted)
            writer.close()


async def test_source_of_long_messages_reads_them_in_a_thread() -> None:
    """A megabyte of JSON takes milliseconds: the loop is not asked to wait for it, and nothing changes in the frame."""
    limits = Limits(message_bytes=1 << 21)
    async with listen("tcp://127.0.0.1:0?format=json", limits=limits) as source:
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(source.url))
        values = [number / 7 for number in range(50_000)]
        writer.write(str(values).encode() + b"\n")
        got = (await anext(source)).value
        assert isinstance(got, torch.Tensor)
        assert torch.allclose(got, torch.tensor([values]))
        writer.close()


def test_source_with_a_wrong_address_says_which_function_is_right() -> None:
    """Listening, connecting and brokers are told apart."""
    with pytest.raises(ConfigurationError, match=r"asks to connect\. Use connect\(\)"):
        listen("tcp://127.0.0.1:9000?connect")
    with pytest.raises(ConfigurationError, match=r"Use listen\(\)"):
        connect("mqtt://broker/topic")
    with pytest.raises(SourceError, match="only WebSockets have origins"):
        listen("tcp://127.0.0.1:9000", origins=["https://a.example"])
    with pytest.raises(ConfigurationError, match="capacity is 0"):
        listen("tcp://127.0.0.1:9000", capacity=0)


def test_backoff_grows_to_its_longest_and_starts_again() -> None:
    """Waits double, a random part less, up to a bound, for ever; use resets them."""
    backoff = Backoff(first_s=0.1, longest_s=1.0, draw=lambda: 1.0)
    assert [round(backoff.next_s(), 3) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.tries = 5000
    assert backoff.next_s() == 1.0
    backoff.reset()
    backoff.draw = lambda: 0.0
    assert backoff.next_s() == 0.05


async def test_sink_connected_comes_back_and_sends_what_was_left() -> None:
    """Results wait while the other side is away, and go out in order when it is back."""
    source = listen("tcp://127.0.0.1:0")
    port = port_of((await source.open()).url)
    async with SocketSink(f"tcp://127.0.0.1:{port}", backoff=QUICK, capacity=100) as sink:
        await sink.write(vector(0))
        assert (await anext(source)).sequence == 0
        await source.aclose()
        await until(lambda: not sink.statistics().connected)
        for number in range(1, 6):
            await sink.write(vector(number))
        assert sink.statistics().waiting == 5
        async with listen(f"tcp://127.0.0.1:{port}") as again:
            assert [(await anext(again)).sequence for _ in range(5)] == [1, 2, 3, 4, 5]
            statistics = sink.statistics()
            assert statistics.written == statistics.sent + statistics.waiting + statistics.dropped == 6
            assert statistics.arrived == 2


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", [7, 8, 9]), ("drop_newest", [0, 1, 2])])
async def test_sink_without_a_reader_drops_by_its_policy(overflow: str, kept: list[int]) -> None:
    """A sink that may not wait keeps the newest, or the oldest, and counts the others."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    async with SocketSink(f"tcp://127.0.0.1:{port}", overflow=overflow, capacity=3, backoff=QUICK) as sink:
        for number in range(10):
            await sink.write(vector(number))
        assert (sink.statistics().dropped, sink.statistics().waiting) == (7, 3)
        async with listen(f"tcp://127.0.0.1:{port}") as source:
            assert [(await anext(source)).sequence for _ in range(3)] == kept


async def test_sink_that_blocks_without_a_reader_waits_and_may_be_cancelled() -> None:
    """A lossless sink holds its writer back."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{found.getsockname()[1]}"
        async with SocketSink(url, capacity=2, limits=Limits(close_s=0.1), backoff=QUICK) as sink:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    for number in range(10):
                        await sink.write(vector(number))
            assert sink.statistics().waiting == 2
    assert sink.statistics().dropped == 2


async def test_sink_of_results_sends_their_index_and_every_tensor() -> None:
    """A `Result` brings its own number and time; a tuple goes out as messages that belong together."""
    async with SocketSink("tcp://127.0.0.1:0", listen=True) as sink:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(sink.url))
        await until(lambda: sink.statistics().connected == 1)
        async with pa.Pipeline(network(), torch.zeros(1, WIDTH), stages=1) as pipeline:
            await pipeline.process(torch.ones(1, WIDTH))
            result = await pipeline.process(torch.ones(1, WIDTH))
        await sink.write(result)
        await sink.write((torch.zeros(1), torch.ones(2)), sequence=7)
        await sink.write({"alarm": True})
        messages = []
        for _ in range(4):
            prefix = await reader.readexactly(4)
            messages.append(wire.decode(prefix + await reader.readexactly(int.from_bytes(prefix, "little"))))
        writer.close()
    assert (messages[0].sequence, messages[0].captured_at, messages[0].array.shape) == (1, result.captured_at, (WIDTH,))
    assert [(message.sequence, message.has_more) for message in messages[1:3]] == [(7, True), (7, False)]
    assert messages[3].note == {"alarm": True}


async def test_results_of_one_pipeline_are_frames_of_the_next() -> None:
    """A sink sends them without the batch dimension that whoever listens puts in front: two machines make a chain."""
    async with (
        pa.Pipeline(network(), torch.zeros(1, WIDTH), stages=1) as first,
        pa.Pipeline(network(), torch.zeros(1, WIDTH), stages=1) as second,
        listen("tcp://127.0.0.1:0", is_endless=False) as source,
    ):
        async with SocketSink((await source.open()).url) as sink:
            async for result in first.stream([torch.full((1, WIDTH), float(number)) for number in range(5)]):
                await sink.write(result)
        results = [result async for result in second.stream(source)]
    assert [result.output.tolist() for result in results if isinstance(result.output, torch.Tensor)] == [
        [[4.0 * number] * WIDTH] for number in range(5)
    ]


async def test_sink_used_wrongly_says_so() -> None:
    """Mistakes of the caller are named."""
    with pytest.raises(ConfigurationError, match="overflow is 'latest'"):
        SocketSink("tcp://127.0.0.1:9", overflow="latest")
    with pytest.raises(ConfigurationError, match="Leave out listen"):
        SocketSink("mqtt://broker/topic", listen=True)
    sink = SocketSink("tcp://127.0.0.1:0", listen=True)
    with pytest.raises(pa.SinkError, match="is not open"):
        await sink.write(vector(0))
    async with sink:
        with pytest.raises(pa.SinkError, match="open already"):
            await sink.__aenter__()
