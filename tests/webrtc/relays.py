"""A real STUN and TURN server (coturn) on this machine, for the time of a block."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from partime_async.webrtc import IceServer

USER, SECRET = "device", "open-sesame-7391"
_PATIENCE_S = 20.0

needs_coturn = pytest.mark.skipif(
    shutil.which("turnserver") is None, reason="there is no turnserver: apt-get install coturn"
)


@dataclass(frozen=True, slots=True)
class Relay:
    """A server that runs.

    Attributes:
        port: On 127.0.0.1, for UDP and TCP.
    """

    port: int

    def turn(self, *, transport: str = "udp", user: str = USER, credential: str = SECRET) -> IceServer:
        """Return how it is named as a TURN server."""
        return IceServer(f"turn:127.0.0.1:{self.port}?transport={transport}", user, credential)

    @property
    def stun(self) -> str:
        """How it is named as a STUN server."""
        return f"stun:127.0.0.1:{self.port}"


def free_port() -> int:
    """Return a port that is free for UDP and TCP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@asynccontextmanager
async def relaying(folder: Path) -> AsyncIterator[Relay]:
    """Run coturn; what it writes goes to the folder."""
    relay = Relay(free_port())
    arguments = [
        "-n",  # no configuration file of the system's
        "--no-cli",
        "--lt-cred-mech",
        f"--user={USER}:{SECRET}",
        "--realm=partime.test",
        "--listening-ip=127.0.0.1",
        "--relay-ip=127.0.0.1",
        f"--listening-port={relay.port}",
        "--allow-loopback-peers",
        "--no-tls",
        "--no-dtls",
        "--no-rfc5780",
        "--log-file=stdout",
        f"--pidfile={folder / 'pid'}",
        f"--userdb={folder / 'users'}",
    ]
    process = await asyncio.create_subprocess_exec(
        "turnserver", *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, cwd=folder
    )
    try:
        await _answers(relay.port)
        yield relay
    finally:
        process.terminate()
        await process.wait()


async def _answers(port: int) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                return
