"""Who serves the browser: the library's own server, and the usual ways behind a page; and the browser itself."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from aiohttp import web

import partime_async as pa
from benchmarks.live.call import slope
from benchmarks.live.chromium_clip import write_clip
from benchmarks.live.contestants import OURS, LiveSpec, _pipeline, _Usual
from benchmarks.live.fastrtc_peer import FASTRTC_SKIPPING, FASTRTC_WAYS, FastRtc
from benchmarks.live.networks import Network
from benchmarks.record import BenchmarkError, Measurement
from benchmarks.summary import percentile
from benchmarks.workers import Contestant
from partime_async.offload import in_thread
from partime_async.serve import Client, ClientKind, Server, make_app
from partime_async.webrtc import Description

_PAGE = Path(__file__).with_name("page")
_VISIT = Path(__file__).with_name("chromium_visit.py")
_LINE_BYTES = 2**24
_PATIENCE_S = 60.0
_SPARE_S = 45.0
"""By how much the camera's clip is longer than a call: a picture may come back that late and still be told apart."""

Seen: TypeAlias = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class ChromiumSpec:
    """One way to run a network over a browser's camera and send the pictures back.

    Attributes:
        way: `OURS`, or one of the usual ones.
        network: What runs.
        clip: What the camera plays; it is written if it is not there.
        warm_up_s: How long the call goes on before it counts.
    """

    way: str
    network: Network
    clip: Path
    warm_up_s: float = 4.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Contestant]:
        """Start the browser, which stays: what its processes took is counted as the benchmark's own while they live."""
        async with _browser(self.clip) as browser:
            yield _Chromium(self, browser)


class _Chromium:
    def __init__(self, spec: ChromiumSpec, browser: _Browser) -> None:
        self.facts: Mapping[str, str] = {"chromium": browser.version}
        self._spec, self._browser = spec, browser

    async def run(self, seconds: float) -> Measurement:
        spec = self._spec
        live = LiveSpec(spec.way, spec.network)
        async with AsyncExitStack() as stack:
            if spec.way == OURS:
                pipeline = await in_thread(lambda: _pipeline(live), name="benchmark network")
                app = make_app({"mirror": _Mirror(pipeline, spec.network.side)}, page=_PAGE)
                url = (await stack.enter_async_context(Server(app, port=0))).url
            else:
                url = await stack.enter_async_context(_page_of(self._peer(live)))
            found = await self._browser.measure(url, seconds, spec.warm_up_s)
        return measured(found)

    def _peer(self, live: LiveSpec) -> _Usual | FastRtc:
        if live.way not in FASTRTC_WAYS:
            return _Usual(live)
        return FastRtc(live.network, skips_frames=live.way == FASTRTC_SKIPPING, warm_up_s=self._spec.warm_up_s)


class _Mirror:
    """A service whose pictures come back as they are, once the network is done with them: their numbers stay."""

    error: BaseException | None = None

    def __init__(self, pipeline: pa.Pipeline, side: int) -> None:
        self._pipeline, self._side = pipeline, side
        self._stack = AsyncExitStack()

    def describe(self) -> Mapping[str, object]:
        return {"kind": "mirror"}

    def pipelines(self) -> Mapping[str, pa.Pipeline]:
        return {"mirror": self._pipeline}

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._pipeline)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def serve(self, client: Client) -> None:
        assert client.kind is ClientKind.WEBRTC
        async with aclosing(client.frames(size=(self._side, self._side))) as frames:
            async for result in self._pipeline.stream(frames, overflow="latest"):
                frame = result.context
                assert isinstance(frame, pa.SourceFrame)
                assert frame.image is not None
                client.show(frame.image, captured_at=frame.captured_at)
                client.delivered(result)


@asynccontextmanager
async def _page_of(server: _Usual | FastRtc) -> AsyncIterator[str]:
    """Serve the page for one of the usual ways, and yield its address."""

    async def offer(request: web.Request) -> web.Response:
        said = await request.json()
        answer = await server.answer(Description(said["sdp"], said["type"]))
        return web.json_response({"sdp": answer.sdp, "type": answer.type})

    async def index(request: web.Request) -> web.FileResponse:
        return web.FileResponse(_PAGE / "index.html")

    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_static("/static", _PAGE)
    app.router.add_post("/api/offer", offer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    async with server:
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
        finally:
            await runner.cleanup()


class _Browser:
    """A browser's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.version = ""
        self._process = process

    async def begin(self) -> None:
        self.version = str((await self._line())["version"])

    async def measure(self, url: str, seconds: float, warm_up_s: float) -> Mapping[str, object]:
        """Let the page measure, and return what it found.

        Raises:
            BenchmarkError: It could not.
        """
        assert self._process.stdin is not None
        order = {"url": url, "seconds": seconds, "warmUp": warm_up_s}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(_PATIENCE_S + warm_up_s + seconds):
            found = await self._line()
        if "error" in found:
            raise BenchmarkError(f"the page said: {found['error']}. Open {url} in a browser while it is served.")
        return found

    async def _line(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the browser ended. Run it by hand: python {_VISIT} CLIP.mjpeg")
        said: dict[str, object] = json.loads(line)
        return said


@asynccontextmanager
async def _browser(clip: Path) -> AsyncIterator[_Browser]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(_VISIT), str(clip)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    try:
        browser = _Browser(process)
        await browser.begin()
        yield browser
    finally:
        assert process.stdin is not None
        process.stdin.close()  # it ends with its input, and its Chromium with it
        try:
            async with asyncio.timeout(10.0):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await asyncio.sleep(0)


def clip_for(folder: Path, seconds: float) -> Path:
    """Write a clip that is long enough for calls of so many seconds."""
    path = folder / "camera.mjpeg"
    write_clip(path, seconds=seconds + _SPARE_S)
    return path


def measured(found: Mapping[str, object]) -> Measurement:
    """Make figures of what `measure.js` returned, in ms of the page's clock.

    Raises:
        BenchmarkError: Next to nothing came back.
    """
    begin, end = _number(found["begin"]), _number(found["end"])
    taken, decoded, shown = _seen(found["taken"]), _seen(found["decoded"]), _seen(found["shown"])
    seconds = (end - begin) / 1e3
    to_decoded = _latencies(taken, decoded, begin, end)
    to_shown = _latencies(taken, shown, begin, end)
    if min(len(to_decoded), len(to_shown)) < 3:
        raise BenchmarkError(f"{len(to_decoded)} pictures came back, {len(to_shown)} were shown. Give it more time.")
    waited = [late for _, late in _spans(shown, begin, end)]
    figures = {
        "camera_per_s": sum(begin <= at[1] <= end for at in _complete(taken)) / seconds,
        "seen_per_s": len(to_decoded) / seconds,
        "shown_per_s": len(to_shown) / seconds,
        "unreadable": float(sum(row[0] is None for row in decoded)),
        "slope_ms_per_s": slope([at / 1e3 for at, _ in to_shown], [late for _, late in to_shown]),
        "received_to_shown_p50_ms": percentile(waited, 0.5),
        **_quantiles("decoded", to_decoded),
        **_quantiles("shown", to_shown),
        **_rates(found["before"], found["after"], seconds),
    }
    return Measurement(figures, {"shown_ms": [late for _, late in to_shown]})


def _quantiles(name: str, latencies: Sequence[tuple[float, float]]) -> dict[str, float]:
    late = [each for _, each in latencies]
    return {f"{name}_p{round(100 * share)}_ms": percentile(late, share) for share in (0.5, 0.95, 0.99)}


def _latencies(taken: Seen, came: Seen, begin: float, end: float) -> list[tuple[float, float]]:
    """Return arrival and latency of the pictures that came for the first time between two moments."""
    news = [(at[1], 0, at[0]) for at in _complete(taken)] + [(at[1], 1, at[0]) for at in _complete(came)]
    taken_at: dict[float, float] = {}
    found = []
    for at, is_back, number in sorted(news):
        if not is_back:
            taken_at[number] = at
        # Taken out: a picture that is shown again is not new, and the clip has the same numbers again some day.
        elif (since := taken_at.pop(number, None)) is not None and begin <= at <= end:
            found.append((at, at - since))
    return found


def _spans(shown: Seen, begin: float, end: float) -> list[tuple[float, float]]:
    """Return the moment of each picture that was shown, and how long ago its last packet had come."""
    return [(at, at - came_at) for _, at, came_at in _complete(shown) if begin <= at <= end]


def _rates(before: object, after: object, seconds: float) -> dict[str, float]:
    """Return what Chromium's own statistics say of a call."""
    assert isinstance(before, dict)
    assert isinstance(after, dict)

    def grown(name: str) -> float:
        return _number(after.get(name, 0.0)) - _number(before.get(name, 0.0))

    decoded = max(1.0, grown("inbound.framesDecoded"))
    return {
        "decoded_per_s": grown("inbound.framesDecoded") / seconds,
        "encoded_per_s": grown("outbound.framesEncoded") / seconds,
        "dropped_in_browser": grown("inbound.framesDropped"),
        "jitter_buffer_ms": 1e3
        * grown("inbound.jitterBufferDelay")
        / max(1.0, grown("inbound.jitterBufferEmittedCount")),
        "decode_ms": 1e3 * grown("inbound.totalDecodeTime") / decoded,
        "encode_ms": 1e3 * grown("outbound.totalEncodeTime") / max(1.0, grown("outbound.framesEncoded")),
        "width": _number(after.get("inbound.frameWidth", 0.0)),
    }


def _complete(rows: Seen) -> list[list[float]]:
    return [[value for value in row if value is not None] for row in rows if None not in row]


def _seen(rows: object) -> Seen:
    assert isinstance(rows, list)
    return rows


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
