"""What waits to be sent to a client."""

from __future__ import annotations

import asyncio

from partime_async.serve.outbox import Outbox, Outgoing


class Clock:
    """Time that the test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


def results(*contents: bytes) -> list[Outgoing]:
    """Return messages that may be dropped."""
    return [Outgoing(content) for content in contents]


async def taken(box: Outbox) -> list[bytes | str | None]:
    """Take everything out."""
    return [message.content for _ in range(len(box)) if (message := await box.take()) is not None]


async def test_outbox_that_is_full_lets_the_oldest_results_go() -> None:
    """What must arrive keeps its place, and the order stays."""
    box = Outbox(3, now=Clock())
    for message in (*results(b"1"), Outgoing("must", must_arrive=True), *results(b"2", b"3", b"4")):
        assert box.put(message)
    assert box.dropped == 2
    assert await taken(box) == ["must", b"3", b"4"]


async def test_outbox_full_of_what_must_arrive_takes_nothing() -> None:
    """Its bound holds for those messages, too."""
    box = Outbox(2, now=Clock())
    assert [box.put(Outgoing(str(number), must_arrive=True)) for number in range(3)] == [True, True, False]
    assert not box.put(Outgoing(b"result"))
    assert (len(box), box.dropped) == (2, 0)


async def test_outbox_knows_how_long_its_reader_has_been_stuck() -> None:
    """From when anything last moved: a message that waits, or one that is still being sent."""
    clock = Clock()
    box = Outbox(4, now=clock)
    seen: list[tuple[float, bool, bool]] = []

    def look_at(seconds: float) -> None:
        clock.seconds = seconds
        seen.append((box.stuck_s, box.is_idle, box.is_crowded))

    look_at(50.0)
    for message in results(b"1", b"2", b"3"):
        box.put(message)
    look_at(53.0)
    await taken(box)
    look_at(54.0)
    coming = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    look_at(55.0)
    assert seen == [(0.0, True, False), (3.0, False, True), (1.0, False, False), (0.0, True, False)]
    box.close()
    await coming


async def test_outbox_that_is_closed_gives_what_it_has_and_then_the_end() -> None:
    """A task that waits already is woken."""
    box = Outbox(4, now=Clock())
    box.put(Outgoing(b"1"))
    box.close()
    assert not box.put(Outgoing(b"2"))
    assert await taken(box) == [b"1"]
    assert await box.take() is None
    waiting_box = Outbox(4, now=Clock())
    waiting = asyncio.create_task(waiting_box.take())
    await asyncio.sleep(0)
    waiting_box.close()
    assert await waiting is None


async def test_outbox_take_that_is_cancelled_has_taken_nothing() -> None:
    """Cancelled while it waits, or in the same step as the message comes."""
    box = Outbox(4, now=Clock())
    for comes in (False, True):
        waiting = asyncio.create_task(box.take())
        await asyncio.sleep(0)
        if comes:
            box.put(Outgoing(b"1"))
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
    assert await taken(box) == [b"1"]
