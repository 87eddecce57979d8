"""A live source in a process of its own: sends datagrams, each with the time it was sent.

Run by path, ``python metronome.py PORT RATE``; imports next to nothing, so that it starts at once.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

STAMP = struct.Struct("d")


def main(port: int, rate: float) -> None:
    """Send `rate` datagrams a second to a local port, until ended."""
    target = ("127.0.0.1", port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        due = time.monotonic()
        while True:
            # A late one does not make the others late, and none is sent to make up for it.
            due = max(due + 1.0 / rate, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            sender.sendto(STAMP.pack(time.monotonic()), target)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
