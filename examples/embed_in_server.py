"""Serve a network over TCP: every connection's handler awaits `process`, and all share one pipeline.

A request is 128 float32 values, the answer a line with the class. Clients that break their requests off, or go away,
disturb nobody.

Install:  pip install partime-async
Run:      python examples/embed_in_server.py
Expect:   (... stands for figures of your machine)

    serving on 127.0.0.1:...
    8 clients got 400 answers, all right: True
    ... answers/s, ... ms in the middle, frames in the pipeline at the end: 0
"""

import asyncio

import torch
from torch import Tensor

import partime_async as pa
from partime_async.models import mlp

network = mlp(layers=12, width=128, out_features=10)
REQUEST_BYTES = 128 * 4


async def answer(pipeline: pa.Pipeline, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one client's requests until it goes away."""
    try:
        while True:
            request = await reader.readexactly(REQUEST_BYTES)
            frame = torch.frombuffer(bytearray(request), dtype=torch.float32)[None]
            result = await pipeline.process(frame)
            assert isinstance(result.output, Tensor)
            writer.write(f"{int(result.output.argmax())}\n".encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def ask(port: int, requests: Tensor) -> list[int]:
    """Be a client: send requests one after the other, and return the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    for request in requests:
        writer.write(request.numpy().tobytes())
        answers.append(int(await reader.readline()))
    writer.close()
    return answers


async def main() -> None:
    """Start the server and eight clients."""
    requests = torch.randn(8, 50, 128)
    async with pa.Pipeline(network, example=requests[0, :1], stages=2) as pipeline:
        server = await asyncio.start_server(lambda *streams: answer(pipeline, *streams), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        print(f"serving on 127.0.0.1:{port}")
        async with server:
            answers = await asyncio.gather(*(ask(port, part) for part in requests))
        seen = pipeline.statistics()
    is_right = torch.equal(torch.tensor(answers), network(requests).argmax(-1))
    print(f"8 clients got {sum(map(len, answers))} answers, all right: {is_right}")
    figures = f"{seen.throughput:.0f} answers/s, {1e3 * seen.latency_s.p50:.1f} ms in the middle"
    print(f"{figures}, frames in the pipeline at the end: {seen.frames.in_flight}")


asyncio.run(main())
