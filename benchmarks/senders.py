"""Devices for the sockets benchmark, all in a process of their own: small frames, as fast as they are taken or paced.

Run by path, ``python senders.py URL CLIENTS SECONDS RATE``; imports next to nothing, so that it starts at once and
costs little beside what is measured. RATE is in frames/s of all together; 0: as fast as it goes. Prints how many frames
it sent. The messages are those of docs/wire.md.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import time
from urllib.parse import urlsplit

VALUES = 64
_HEADER = struct.Struct("<I2sBBQdBBBBI")
_BATCH = 32
_GOODBYES = 3
_SETTLE_S = 0.2
_MOST_PER_S = 10_000
"""Frames of all together that a flood sends: more would only fill buffers, which take their time to run empty."""


def message(kind: int, sequence: int, captured_at: float) -> bytes:
    """Return a message: a frame of 64 float32 values, or a goodbye."""
    if kind == 6:
        return _HEADER.pack(24, b"pt", 1, 6, sequence, 0.0, 0, 0, 0, 0, 0)[:28]
    body = bytes(4 * VALUES)
    return _HEADER.pack(28 + len(body), b"pt", 1, 1, sequence, captured_at, 1, 1, 1, 0, VALUES) + body


class Device:
    """One connection.

    Args:
        url: Where to.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.scheme = parts.scheme
        self.sequence = 0
        self._pending = memoryview(b"")
        address = (parts.hostname or "", parts.port or 0)
        if self.scheme == "udp":
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.scheme == "ws":
            self.socket.sendall(
                f"GET {parts.path} HTTP/1.1\r\nHost: {parts.hostname}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            assert b" 101 " in self.socket.recv(4096)
        self.socket.setblocking(False)

    def framed(self, data: bytes) -> bytes:
        """Return a message as the transport carries it."""
        if self.scheme != "ws":
            return data
        # Masked by zeros, which is a mask: no work is done on the bytes.
        return struct.pack(">BBH4x", 0x82, 0x80 | 126, len(data)) + data

    def send(self, count: int) -> None:
        """Send so many frames, or what is left of earlier ones; as far as it goes."""
        if self.scheme == "udp":
            for _ in range(count):
                try:
                    self.socket.send(message(1, self.sequence, time.monotonic()))
                except BlockingIOError:
                    return
                self.sequence += 1
            return
        if not self._pending:
            now = time.monotonic()
            frames = (self.framed(message(1, self.sequence + number, now)) for number in range(count))
            self._pending = memoryview(b"".join(frames))
            self.sequence += count
        self.flush()

    def flush(self) -> bool:
        """Send what is left; say whether nothing is."""
        try:
            self._pending = self._pending[self.socket.send(self._pending) :] if self._pending else self._pending
        except BlockingIOError:
            return False
        return not self._pending

    def end(self) -> None:
        """Send all that is left, say goodbye, and close."""
        self.socket.setblocking(True)
        if self._pending:
            self.socket.sendall(self._pending)
        for _ in range(_GOODBYES if self.scheme == "udp" else 1):
            self.socket.send(self.framed(message(6, self.sequence, 0.0)))
        self.socket.close()


def flood(devices: list[Device], seconds: float) -> None:
    """Send as fast as it is taken; over UDP, as fast as it goes."""
    end, most = time.monotonic() + seconds, int(_MOST_PER_S * seconds / len(devices))
    with selectors.DefaultSelector() as selector:
        for device in devices:
            selector.register(device.socket, selectors.EVENT_WRITE, device)
        while time.monotonic() < end:
            for key, _ in selector.select(0.1):
                if key.data.sequence < most:
                    key.data.send(_BATCH)
                elif key.data.flush():
                    selector.unregister(key.fileobj)
            if not selector.get_map():
                break


def pace(devices: list[Device], end: float, rate: float) -> None:
    """Send one frame of each device in turn, evenly."""
    began, number = time.monotonic(), 0
    while (now := time.monotonic()) < end:
        due = began + number / rate
        if due > now:
            time.sleep(due - now)
            continue
        devices[number % len(devices)].send(1)
        number += 1


def main(url: str, clients: int, seconds: float, rate: float) -> None:
    """Connect, send, and say how many frames it were."""
    devices = [Device(url) for _ in range(clients)]
    if rate:
        pace(devices, time.monotonic() + seconds, rate)
    else:
        flood(devices, seconds)
    time.sleep(_SETTLE_S)  # a full buffer would lose the goodbyes
    for device in devices:
        device.end()
    sys.stdout.write(json.dumps({"sent": sum(device.sequence for device in devices)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
