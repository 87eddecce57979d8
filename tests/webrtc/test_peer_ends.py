"""Every way a connection ends: why is told, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import partime_async as pa
from partime_async.webrtc import CloseReason, Peer, PictureTrack
from partime_async.webrtc.closing import ice_transports
from tests.webrtc.calls import PATIENCE_S, Call, calling, connect, picture, until

ROOT = Path(__file__).parents[2]


def cut(peer: Peer) -> None:
    """Let a peer die without a word: its sockets are gone."""
    for transport in ice_transports(peer._connection):
        for protocol in transport._connection._protocols:
            protocol.transport.abort()


async def reason(peer: Peer) -> CloseReason:
    """Return why a peer ended; a test does not wait for ever."""
    async with asyncio.timeout(PATIENCE_S):
        return await peer.closed()


async def test_peer_whose_other_side_leaves_ends_by_itself() -> None:
    """What the other side closes is closed here too, with the reason, and its video and picture tracks end."""
    async with calling() as call:
        await call.show(1)
        await call.caller.close()
        assert await reason(call.answerer) is CloseReason.LEFT
        assert await reason(call.caller) is CloseReason.CLOSED
        assert call.answerer.statistics().state == "closed"
        assert call.camera.readyState == "ended"
        assert [video async for video in call.answerer.video] == []


async def test_peer_whose_other_side_dies_notices_the_silence() -> None:
    """A death without a word is seen within the time that was set."""
    async with calling(silence_s=0.4) as call:
        await call.show(1)
        cut(call.caller)
        assert await reason(call.answerer) is CloseReason.SILENT


async def test_peer_with_nothing_to_say_is_not_taken_for_dead() -> None:
    """A connection without a picture or a message stays, as long as the other side answers."""
    async with calling(silence_s=0.4) as call:
        await until(lambda: call.answerer.statistics().round_trip_s is not None)
        await asyncio.sleep(1.2)  # three silences: there is no event of nothing happening
        assert call.answerer.statistics().state == "connected"


async def test_peer_that_reaches_nobody_gives_up() -> None:
    """An answer that nobody takes ends in time, and who waits for the connection learns why."""
    async with Peer() as caller, Peer(connect_timeout_s=0.2) as answerer:
        caller.open_channel("control")
        offer = await caller.offer()
        cut(caller)
        await answerer.answer(offer)
        with pytest.raises(pa.SourceError, match="unreachable"):
            async with asyncio.timeout(PATIENCE_S):
                await answerer.connected()
        assert await reason(answerer) is CloseReason.UNREACHABLE


async def test_peer_closed_by_many_at_once_ends_once() -> None:
    """Closing is idempotent, and concurrent calls all wait for the end."""
    async with calling() as call:
        await asyncio.gather(*(call.answerer.close() for _ in range(3)), call.caller.close())
        assert await reason(call.answerer) is CloseReason.CLOSED


async def test_peer_closed_by_a_cancelled_task_is_closed() -> None:
    """A cancellation in the middle of closing comes after the end, not instead of it."""
    async with calling() as call:
        closing = asyncio.ensure_future(call.answerer.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert call.answerer.statistics().state == "closed"


async def test_peer_left_by_an_error_is_closed() -> None:
    """The block's own error comes out, and the connection is gone."""
    calls: list[Call] = []

    async def fail() -> None:
        async with calling() as call:
            calls.append(call)
            await call.show(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert calls[0].answerer.statistics().state == "closed"


async def test_peer_stuck_in_closing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where aiortc's own close hangs, as with a TURN server that does not answer, the deadline holds."""
    async with Peer(close_timeout_s=0.1) as caller, Peer() as answerer:
        caller.open_channel("control")
        await connect(caller, answerer)

        async def hang() -> None:
            await asyncio.Event().wait()

        assert caller._connection.sctp is not None
        monkeypatch.setattr(caller._connection.sctp, "stop", hang)
        async with asyncio.timeout(PATIENCE_S):
            await caller.close()
        # aiortc did not come to stop what follows: the other side goes, and takes it along.
        await answerer.close()
        for transport in ice_transports(caller._connection):
            await transport.stop()


async def agree(caller: Peer, answerer: Peer) -> None:
    """Do everything that two peers do, up to a picture."""
    camera = PictureTrack()
    caller.send_video(camera)
    caller.open_channel("control")
    await connect(caller, answerer)
    camera.show(picture(1))
    await (await answerer.video).recv()
    await (await answerer.channel("control")).opened()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_peers_cancelled_at_any_moment_leave_nothing(turns: int) -> None:
    """However far they have come, peers that are given up are closed without a trace."""
    async with Peer() as caller, Peer() as answerer:
        task = asyncio.ensure_future(agree(caller, answerer))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert (await reason(caller), await reason(answerer)).count(CloseReason.CLOSED) >= 1


@pytest.mark.parametrize("abort", [lambda caller, _: caller.close(), lambda _, answerer: answerer.close()])
async def test_peers_closed_while_connecting_end(abort: Callable[[Peer, Peer], Awaitable[None]]) -> None:
    """One that is closed before the connection stands takes the other with it, or lets it give up."""
    async with Peer(connect_timeout_s=0.5) as caller, Peer(connect_timeout_s=0.5) as answerer:
        caller.open_channel("control")
        await caller.accept(await answerer.answer(await caller.offer()))
        await abort(caller, answerer)
        assert CloseReason.CLOSED in {await reason(caller), await reason(answerer)}


async def test_peers_that_come_and_go_leave_no_descriptor_task_or_thread() -> None:
    """After many connections, everything is as it was before the first ones."""

    def left() -> tuple[int, int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), threading.active_count()  # noqa: PTH208

    before = (0, 0, 0)
    for cycle in range(12):
        async with Peer() as caller, Peer() as answerer:
            async with asyncio.timeout(PATIENCE_S):
                await agree(caller, answerer)
        await until(lambda: len(asyncio.all_tasks()) == 1)
        if cycle == 1:
            before = left()  # the loop's executor has its threads by now
    after = left()
    assert all(now <= then for now, then in zip(after, before, strict=True)), f"{before} became {after}"


@pytest.mark.slow
async def test_program_with_live_connections_ends_at_ctrl_c() -> None:
    """Ctrl-C ends a program with three live peers, with status 0: no thread of a decoder keeps it."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await program.stdout.readline() == b"live\n"
            program.send_signal(signal.SIGINT)
            _, complaints = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    assert (program.returncode, complaints) == (0, b"")


_PROGRAM = """
import asyncio
from contextlib import AsyncExitStack, suppress
from tests.webrtc.calls import calling

async def main():
    async with AsyncExitStack() as stack:
        for _ in range(3):
            call = await stack.enter_async_context(calling())
            await call.show(1)
        print("live", flush=True)
        await asyncio.Event().wait()

with suppress(KeyboardInterrupt):
    asyncio.run(main())
"""
