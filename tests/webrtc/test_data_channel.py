"""Data channels: nothing blocks, nothing piles up, nothing raises because the other side went."""

from __future__ import annotations

import asyncio

import pytest

import partime_async as pa
from partime_async.webrtc import DataChannel, Peer
from partime_async.webrtc.channel import MAX_MESSAGE_BYTES, MAX_UNREAD
from tests.webrtc.calls import PATIENCE_S, Call, calling, until


async def both_ends(call: Call) -> tuple[DataChannel, DataChannel]:
    """Return the two ends of the channel, open."""
    async with asyncio.timeout(PATIENCE_S):
        there = await call.answerer.channel("control")
        await call.control.opened()
        await there.opened()
    return call.control, there


async def message(channel: DataChannel) -> str | bytes:
    """Return the next message; a test does not wait for ever."""
    async with asyncio.timeout(PATIENCE_S):
        return await anext(channel)


async def test_channel_carries_messages_both_ways() -> None:
    """JSON, text and bytes arrive in order."""
    async with calling() as call:
        here, there = await both_ends(call)
        assert here.send_json({"a": [1, 2.5]})
        assert here.send("text")
        assert here.send(b"\x00\x01")
        assert [await message(there) for _ in range(3)] == ['{"a":[1,2.5]}', "text", b"\x00\x01"]
        assert there.send_json("back")
        assert await message(here) == '"back"'
        assert (here.statistics().sent, there.statistics().received, there.label) == (3, 3, "control")


async def test_channel_yields_json_objects_and_counts_what_is_none() -> None:
    """A stranger's rubbish is left out."""
    async with calling() as call:
        here, there = await both_ends(call)
        for text in ("{", "[1]", "[" * 5000, '{"b": 2}'):
            here.send(text)
        async with asyncio.timeout(PATIENCE_S):
            async for content in there.json_messages():
                assert content == {"b": 2}
                break
        assert there.statistics().unreadable == 3


async def test_channel_with_too_much_waiting_skips_and_says_so() -> None:
    """A sender that is faster than the way is told, and its messages do not pile up."""
    async with calling() as call:
        here, _ = await both_ends(call)
        told = [here.send(b"x" * 30_000) for _ in range(20)]
        assert told[0]
        assert not told[-1]
        counts = here.statistics()
        assert counts.skipped == told.count(False)
        assert counts.buffered_bytes <= 64 * 1024
        await until(lambda: here.statistics().buffered_bytes == 0)
        assert here.send("again")


async def test_channel_that_nobody_reads_keeps_so_much() -> None:
    """Messages beyond the bound are refused and counted."""
    async with calling() as call:
        here, there = await both_ends(call)
        for number in range(MAX_UNREAD + 5):
            here.send_json(number)
        await until(lambda: there.statistics().received == MAX_UNREAD + 5)
        assert (there.statistics().unread, there.statistics().refused) == (MAX_UNREAD, 5)
        assert await message(there) == "0"


async def test_channel_refuses_what_cannot_be_sent() -> None:
    """Messages too long, and what JSON cannot say, are the caller's errors."""
    async with calling() as call:
        here, _ = await both_ends(call)
        with pytest.raises(pa.ConfigurationError, match="Send it in parts"):
            here.send(b"x" * (MAX_MESSAGE_BYTES + 1))
        with pytest.raises(TypeError):
            here.send_json(object())
        with pytest.raises(ValueError, match="JSON"):
            here.send_json(float("nan"))


async def test_channel_before_it_is_open_skips() -> None:
    """What is sent too early is not sent, and that is no error."""
    async with Peer() as peer:
        channel = peer.open_channel("early")
        assert not channel.is_open
        assert not channel.send_json({})
        assert channel.statistics().skipped == 1
    with pytest.raises(pa.SourceError, match="'early' is closed"):
        await channel.opened()


async def test_channel_of_a_peer_that_left_ends_after_what_came() -> None:
    """The reader gets what had come, then the end; sending says no."""
    async with calling() as call:
        here, there = await both_ends(call)
        here.send("last")
        await until(lambda: there.statistics().unread == 1)
        await call.caller.close()
        async with asyncio.timeout(PATIENCE_S):
            await call.answerer.closed()
            assert [text async for text in there] == ["last"]
        assert not there.send("?")
        assert not here.send("?")


async def test_channel_closed_by_one_side_ends_for_both() -> None:
    """Closing one channel leaves the connection alone."""
    async with calling() as call:
        here, there = await both_ends(call)
        here.close()
        here.close()
        async with asyncio.timeout(PATIENCE_S):
            assert [text async for text in there] == []
        assert call.answerer.statistics().state == "connected"


async def test_channel_cancelled_while_waiting_loses_nothing() -> None:
    """A message that comes after the cancellation is there for the next call; a second reader is refused."""
    async with calling() as call:
        here, there = await both_ends(call)
        reader = asyncio.ensure_future(anext(there))
        await asyncio.sleep(0)
        with pytest.raises(pa.SourceError, match="Let one task read"):
            await anext(there)
        reader.cancel()
        await asyncio.wait([reader])
        here.send("kept")
        assert await message(there) == "kept"
