"""Files of weights in pieces."""

from __future__ import annotations

import base64

import pytest

from partime_async.errors import ConfigurationError
from partime_async.serve.demo.engine import LARGEST_WEIGHTS
from partime_async.serve.demo.transfer import PIECE_BYTES, Transfer


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
