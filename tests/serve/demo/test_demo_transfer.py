"""Files of weights in pieces."""

from __future__ import annotations

import base64
import json
import struct

import pytest
import torch
from safetensors.torch import load, save

from partime_async.errors import ConfigurationError
from partime_async.serve.demo.engine import LARGEST_WEIGHTS
from partime_async.serve.demo.transfer import PIECE_BYTES, Transfer, note_of, with_note


def encoded(data: bytes) -> str:
    """Return bytes as a browser sends them."""
    return base64.b64encode(data).decode()


def test_transfer_fetched_in_pieces_and_sent_back_is_the_same_file() -> None:
    """What goes out piece by piece and comes back likewise is what it was; then both sides hold nothing."""
    data = bytes(range(256)) * 150
    transfer = Transfer()
    transfer.offer(data)
    offset, back = 0, None
    while back is None:
        piece = transfer.piece(offset)
        text, total = piece["data"], piece["total"]
        assert isinstance(text, str)
        assert isinstance(total, int)
        assert len(text) <= 4 * PIECE_BYTES / 3 + 4
        back = transfer.take(offset, total, text)
        offset += PIECE_BYTES
    assert back == data
    assert transfer.received == 0
    with pytest.raises(ConfigurationError, match="of 0"):
        transfer.piece(0)


@pytest.mark.parametrize(
    ("offset", "total", "data"),
    [
        (0, 0, encoded(b"x")),
        (0, LARGEST_WEIGHTS + 1, encoded(b"x")),
        (5, 10, encoded(b"x")),
        (0, 10, "not base64!"),
        (0, 10, ""),
        (0, 3, encoded(b"four")),
    ],
)
def test_transfer_given_a_wrong_piece_refuses_it_and_lets_the_rest_go(offset: int, total: int, data: str) -> None:
    """A piece that does not fit is refused with words, and nothing of the file is kept."""
    transfer = Transfer()
    with pytest.raises(ConfigurationError):
        transfer.take(offset, total, data)
    assert transfer.received == 0


def test_transfer_begun_anew_forgets_what_came_before() -> None:
    """A first piece always begins a new file, as after a reload of the page."""
    transfer = Transfer()
    assert transfer.take(0, 6, encoded(b"abc")) is None
    assert transfer.take(0, 2, encoded(b"xy")) == b"xy"


def test_file_with_a_note_is_read_by_any_reader_and_gives_the_note_back() -> None:
    """A note stands in the header beside what was there, replaces an older one, and leaves the tensors alone."""
    weights = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2, dtype=torch.float16)}
    data = save(weights, metadata={"partime_async": "kept"})
    noted = with_note(with_note(data, {"old": 1}), {"mode": "teach", "classes": ["Füße", None]})
    assert note_of(noted) == {"mode": "teach", "classes": ["Füße", None]}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load(noted).items())
    header = json.loads(noted[8 : 8 + int.from_bytes(noted[:8], "little")])
    assert header["__metadata__"]["partime_async"] == "kept"
    assert int.from_bytes(noted[:8], "little") % 8 == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        b"\xff" * 40,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 20) + b'{"__metadata__": 17} ',
        struct.pack("<Q", 44) + b'{"__metadata__": {"partime_demo": "broken"}} ',
        struct.pack("<Q", 40) + b'{"__metadata__": {"partime_demo": "[1]"}}',
        save({"0.weight": torch.ones(1)}),
    ],
)
def test_file_without_a_note_has_an_empty_one(data: bytes) -> None:
    """What is no file of weights, or one of another program, has no note, and is no error here."""
    assert note_of(data) == {}
