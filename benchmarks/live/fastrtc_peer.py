"""FastRTC beside the others, where it is installed: it wants an environment of its own.

``python -m benchmarks.live.fastrtc_peer`` makes that environment in ``out/fastrtc``, about 2 GB. It is no dependency of
the project's, and without it the tables say so.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import venv
from dataclasses import asdict
from pathlib import Path
from time import monotonic

import aiohttp

from benchmarks.live.networks import Network
from benchmarks.record import BenchmarkError
from benchmarks.summary import percentile
from partime_async.webrtc import Description

FASTRTC, FASTRTC_SKIPPING = "FastRTC", "FastRTC, skip_frames"
"""As its documentation has it, and with its own remedy for networks that are too slow."""

FASTRTC_WAYS = (FASTRTC, FASTRTC_SKIPPING)

REQUIREMENTS = ("fastrtc==0.0.34", "torch==2.13.0", "uvloop==0.23.0")
_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = _ROOT / "out" / "fastrtc"
_PYTHON = _ENVIRONMENT / "bin" / "python"
_HOST = Path(__file__).with_name("fastrtc_host.py")
_START_S = 90.0


def is_installed() -> bool:
    """Tell whether there is an environment with FastRTC in it."""
    return _PYTHON.is_file() and any(_ENVIRONMENT.glob("lib/*/site-packages/fastrtc/__init__.py"))


def install() -> None:
    """Make the environment."""
    venv.create(_ENVIRONMENT, with_pip=True)
    subprocess.run([str(_PYTHON), "-m", "pip", "install", *REQUIREMENTS], check=True)


class FastRtc:
    """A process of FastRTC's, fresh each time: what one caller leaves in its queues must not burden the next.

    Args:
        network: What runs.
        skips_frames: FastRTC's `skip_frames`.
        warm_up_s: How long after the answer its event loop's lag does not count.
    """

    def __init__(self, network: Network, *, skips_frames: bool, warm_up_s: float) -> None:
        self._order = json.dumps({"network": asdict(network), "skip_frames": skips_frames})
        self._warm_up_s = warm_up_s
        self._counts_from = float("inf")
        self._lags: list[float] = []
        self._port = 0

    async def __aenter__(self) -> FastRtc:
        self._process = await asyncio.create_subprocess_exec(
            *(str(_PYTHON), str(_HOST), self._order),
            stdout=asyncio.subprocess.PIPE,
            limit=2**20,
            cwd=_ROOT,
        )
        self._is_there = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read(), name="benchmark FastRTC")
        try:
            await self._started()
        except BaseException:
            await self._end()
            raise
        return self

    async def answer(self, offer: Description) -> Description:
        """Answer a caller's offer, as FastRTC's own page has it answered."""
        said = {"sdp": offer.sdp, "type": offer.type, "webrtc_id": "caller"}
        url = f"http://127.0.0.1:{self._port}/webrtc/offer"
        async with aiohttp.ClientSession() as web, web.post(url, json=said) as response:
            answered = await response.json()
        if "sdp" not in answered:
            raise BenchmarkError(f"FastRTC answered {answered!r:.200}. Try another version: {REQUIREMENTS[0]}.")
        self._counts_from = monotonic() + self._warm_up_s
        return Description(answered["sdp"], answered["type"])

    async def __aexit__(self, *error: object) -> None:
        await self._end()

    def steps(self) -> int:
        """Return how often it has learned."""
        return 0

    def figures(self) -> dict[str, float]:
        """Return the lag of its own event loop, in place of the one that drives it."""
        return {f"lag_p{round(100 * share)}_ms": 1e3 * percentile(self._lags, share) for share in (0.5, 0.99)}

    async def _started(self) -> None:
        async with asyncio.timeout(_START_S):
            await self._is_there.wait()
        if not self._port:
            raise BenchmarkError(f"FastRTC ended. Run it by hand: {_PYTHON} {_HOST} '{self._order}'")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                said = json.loads(line)
                self._port = said.get("port", self._port)
                self._is_there.set()
                if monotonic() >= self._counts_from:
                    self._lags += said.get("lags_s", ())
        finally:
            self._is_there.set()

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._reading.cancel()
        await asyncio.wait([self._reading])


if __name__ == "__main__":
    install() if not is_installed() else print(f"FastRTC is in {_ENVIRONMENT}", file=sys.stderr)
