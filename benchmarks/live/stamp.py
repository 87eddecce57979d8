"""A number in a picture that survives the video codecs: black and white blocks, with a checksum."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 320, 240
_BLOCK = 16
_COLUMNS = WIDTH // _BLOCK
_NUMBER = struct.Struct("<IH")
_BITS = 8 * _NUMBER.size
_ROWS = -(-_BITS // _COLUMNS)
_BLACK, _WHITE = 16, 235


def write(luma: npt.NDArray[np.uint8], number: int) -> None:
    """Write a number over the top of a picture.

    Args:
        luma: ``(240, 320)``, the brightness.
        number: 0 to 2^32 - 1.
    """
    data = number.to_bytes(4, "little")
    bits = np.unpackbits(np.frombuffer(_NUMBER.pack(number, zlib.crc32(data) & 0xFFFF), np.uint8))
    cells = np.zeros(_ROWS * _COLUMNS, np.uint8)
    cells[:_BITS] = bits
    blocks = np.where(cells.reshape(_ROWS, _COLUMNS) > 0, np.uint8(_WHITE), np.uint8(_BLACK))
    luma[: _ROWS * _BLOCK, :WIDTH] = blocks.repeat(_BLOCK, 0).repeat(_BLOCK, 1)


def read(luma: npt.NDArray[np.uint8]) -> int | None:
    """Read the number of a picture.

    Args:
        luma: ``(240, 320)``, the brightness.

    Returns:
        The number; None: the checksum does not fit.
    """
    area = luma[: _ROWS * _BLOCK, :WIDTH].astype(np.float32)
    means = area.reshape(_ROWS, _BLOCK, _COLUMNS, _BLOCK)[:, 4:12, :, 4:12].mean((1, 3))
    bits = (means.ravel()[:_BITS] > 128).astype(np.uint8)
    number, checksum = _NUMBER.unpack(np.packbits(bits).tobytes())
    data = int(number).to_bytes(4, "little")
    return int(number) if zlib.crc32(data) & 0xFFFF == checksum else None
