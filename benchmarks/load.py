"""A program that is busy: controlled background load."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy with another process, of ordinary priority, for as long as the block lasts."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, name="benchmark load", daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
        process.close()


def _spin() -> None:
    number = 1
    while True:
        number = (number * 1103515245 + 12345) % 2147483648
