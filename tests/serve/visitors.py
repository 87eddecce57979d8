"""Servers that listen on this machine, services for them, and the clients that visit: programs and WebRTC peers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import aiohttp
import numpy as np
import torch
from aiohttp import web
from torch import Tensor, nn
from yarl import URL

import partime_async as pa
from partime_async.client import Kind, Message, decode, encode
from partime_async.serve import Access, Client, ClientKind, ClientLimits, ModelService, Server, Service, make_app
from partime_async.serve.app import ROSTER
from partime_async.serve.roster import Roster
from partime_async.webrtc import DataChannel, Description, Ice, Peer, PictureTrack, WebRTCFrames, webrtc_frames

WIDTH = 4
PATIENCE_S = 20.0
TOKEN = "correct horse battery staple"


@dataclass(slots=True)
class Mirror:
    """A service without a network: frames, pictures and commands go back as they came.

    Attributes:
        here: The clients that are being served.
        seen: Those that ever were.
        lets_in: While it is not set, frames are not taken.
    """

    here: list[Client] = field(default_factory=list)
    seen: list[Client] = field(default_factory=list)
    lets_in: asyncio.Event = field(default_factory=asyncio.Event)
    is_entered: bool = False
    failure: Exception | None = None

    async def __aenter__(self) -> Self:
        self.is_entered = True
        self.lets_in.set()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.is_entered = False

    def describe(self) -> Mapping[str, object]:
        """Say what it is."""
        return {"kind": "mirror"}

    async def serve(self, client: Client) -> None:
        """Send everything back."""
        self.here.append(client)
        self.seen.append(client)
        try:
            if self.failure is not None:
                raise self.failure
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._frames(client))
                tasks.create_task(self._commands(client))
        finally:
            self.here.remove(client)

    async def _frames(self, client: Client) -> None:
        await self.lets_in.wait()
        async for frame in client.frames():
            if client.kind is ClientKind.WEBSOCKET:
                client.send(frame.value, answers=frame)
            else:
                assert frame.image is not None
                client.show(frame.image, captured_at=frame.captured_at)
                client.tell({"type": "telemetry", "size": list(frame.image.shape)})
            await self.lets_in.wait()

    async def _commands(self, client: Client) -> None:
        async for command in client.commands():
            client.reply({"type": "echo", "said": command})


def network(width: int = WIDTH) -> nn.Sequential:
    """Return a small network, the same every time."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def learner() -> pa.Learner:
    """Return a learner of what clients say."""
    return pa.Learner(nn.functional.mse_loss, partial(torch.optim.SGD, lr=0.1), rule=pa.rules.exact())


def model_service(*, learner: pa.Learner | None = None, width: int = WIDTH, **options: object) -> ModelService:
    """Return a service of the small network."""
    example = torch.zeros(1, width)
    pipeline = pa.Pipeline(network(width), example, stages=1, learner=learner, close_timeout_s=2.0)
    return ModelService(pipeline, example, **options)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Rig:
    """A server that listens.

    Attributes:
        server: What listens.
        app: What it serves.
        url: Where.
        web: A client's session, without cookies from before.
    """

    server: Server
    app: web.Application
    url: str
    web: aiohttp.ClientSession

    @property
    def roster(self) -> Roster:
        """Its clients."""
        return self.app[ROSTER]

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.005)

    async def empty(self) -> None:
        """Wait until nobody is here."""
        await self.until(lambda: not self.roster.clients)

    async def text(self, path: str, *, status: int = 200, **options: object) -> str:
        """Return what a path answers with."""
        url = URL(self.url + path, encoded=True)
        async with self.web.get(url, **options) as response:  # type: ignore[arg-type]
            assert response.status == status, await response.text()
            return await response.text()

    @asynccontextmanager
    async def stream(self, query: str = "") -> AsyncIterator[Stream]:
        """Be a program for the time of the block."""
        async with self.web.ws_connect(f"{self.url}api/stream{query}") as socket:
            yield Stream(socket, await socket.receive_json(timeout=PATIENCE_S))

    @asynccontextmanager
    async def call(self, *, service: str | None = None, key: str | None = None) -> AsyncIterator[Caller]:
        """Be a camera for the time of the block."""
        async with Peer(ice=Ice.loopback()) as peer:
            caller = Caller(peer, PictureTrack())
            peer.send_video(caller.camera)
            caller.control = peer.open_channel("control")
            caller.telemetry = peer.open_channel("telemetry", ordered=False, max_retransmits=0)
            offer = await peer.offer()
            said = {"sdp": offer.sdp, "type": offer.type, "service": service, "client": key}
            async with self.web.post(f"{self.url}api/offer", json=said) as response:
                answer = await response.json()
                assert response.status == 200, answer
            caller.id = answer["id"]
            await peer.accept(Description(answer["sdp"], answer["type"]))
            async with asyncio.timeout(PATIENCE_S):
                await caller.control.opened()
            yield caller


@dataclass(slots=True)
class Stream:
    """A program's connection.

    Attributes:
        socket: The WebSocket.
        hello: The server's first words.
    """

    socket: aiohttp.ClientWebSocketResponse
    hello: Mapping[str, object]

    async def send(self, values: Tensor, sequence: int, *, target: Tensor | None = None) -> None:
        """Send a frame, behind its target if it has one."""
        if target is not None:
            await self.socket.send_bytes(encode(target.numpy(), sequence=sequence, kind=Kind.TARGET))
        await self.socket.send_bytes(encode(values.numpy(), sequence=sequence, captured_at=time.monotonic()))

    async def result(self) -> Message:
        """Return the next result; telemetry in between is passed over."""
        while True:
            message = await self.socket.receive(timeout=PATIENCE_S)
            if message.type is aiohttp.WSMsgType.BINARY:
                return decode(bytearray(message.data))
            assert message.type is aiohttp.WSMsgType.TEXT, message
            said = message.json()
            assert said["type"] == "telemetry", said

    async def words(self, kind: str) -> dict[str, object]:
        """Return the next message of this type; others are passed over."""
        while True:
            message = await self.socket.receive(timeout=PATIENCE_S)
            if message.type is aiohttp.WSMsgType.TEXT:
                said: dict[str, object] = message.json()
                if said["type"] == kind:
                    return said
            else:
                assert message.type is aiohttp.WSMsgType.BINARY, message

    async def close_code(self) -> int:
        """Return the code that the server closes with; what it says before is passed over."""
        while True:
            message = await self.socket.receive(timeout=PATIENCE_S)
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                return self.socket.close_code or 0
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message


class Caller:
    """A WebRTC client.

    Attributes:
        peer: Its side of the connection.
        camera: What it sends.
        control: Its reliable channel.
        telemetry: Its lossy one.
        id: The visit's secret name.
    """

    control: DataChannel
    telemetry: DataChannel
    id: str

    def __init__(self, peer: Peer, camera: PictureTrack) -> None:
        self.peer = peer
        self.camera = camera

    async def said(self) -> dict[str, object]:
        """Return the next control message of the server."""
        async with asyncio.timeout(PATIENCE_S):
            return await anext(self.control.json_messages())

    async def told(self) -> dict[str, object]:
        """Return the next telemetry."""
        async with asyncio.timeout(PATIENCE_S):
            return await anext(self.telemetry.json_messages())

    @asynccontextmanager
    async def filming(self, grey: int = 128) -> AsyncIterator[WebRTCFrames]:
        """Send grey pictures for the time of the block; yield the video that comes back."""

        async def film() -> None:
            while True:
                self.camera.show(np.full((48, 64, 3), grey, np.uint8), captured_at=time.monotonic())
                await asyncio.sleep(1 / 30)

        task = asyncio.create_task(film())
        try:
            async with asyncio.timeout(PATIENCE_S):
                video = await self.peer.video
            async with webrtc_frames(video) as frames:
                yield frames
        finally:
            task.cancel()
            await asyncio.wait({task})


@asynccontextmanager
async def serving(
    services: Mapping[str, Service] | Service,
    *,
    access: Access | None = None,
    limits: ClientLimits | None = None,
    page: Path | None = None,
) -> AsyncIterator[Rig]:
    """Serve for the time of the block."""
    named = services if isinstance(services, Mapping) else {"main": services}
    app = make_app(named, access=access, limits=limits, page=page)
    async with Server(app, port=0) as server, aiohttp.ClientSession() as session:
        yield Rig(server, app, server.url, session)
