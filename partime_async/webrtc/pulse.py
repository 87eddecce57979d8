"""Whether the other side is still there: its ICE agent, which has to answer, is asked again and again.

aioice itself asks every five seconds and gives up after six times: half a minute. Counting received packets instead
would take a peer for dead that has nothing to say: one that only watches, or has muted its camera.
"""

from __future__ import annotations

import asyncio
import time

from partime_async.errors import MissingDependencyError
from partime_async.webrtc.closing import ice_transports

try:
    from aioice import Connection
    from aioice.stun import TransactionError
    from aiortc import RTCPeerConnection
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

# The share of the time that a question, which is repeated meanwhile, may take; the rest is for the pause before it,
# and for closing.
_PATIENCE = 0.75
_PAUSE = 0.125
# How much later than that the patience may end; beyond it, this process itself was held up.
_LATE = 0.05


class Pulse:
    """Asks the other side's ICE agent until it does not answer any more.

    Args:
        connection: A connection that is connected.
        silence_s: Within how many seconds a silence is noticed.

    Attributes:
        round_trip_s: Of the last answer, in seconds; None: there was none.
    """

    def __init__(self, connection: RTCPeerConnection, silence_s: float) -> None:
        self.round_trip_s: float | None = None
        self._connection = connection
        self._patience_s = silence_s * _PATIENCE
        self._pause_s = silence_s * _PAUSE
        self._late_s = silence_s * _LATE

    async def until_silent(self) -> None:
        """Return when a question was not answered in time.

        Cancellation: safe.
        """
        while True:
            asked_at = time.monotonic()
            is_answered = await self._ask()
            # If this process itself was held up, the answer may lie unread in the socket.
            was_held_up = time.monotonic() - asked_at > self._patience_s + self._late_s
            if not is_answered and not was_held_up:
                return
            await asyncio.sleep(self._pause_s)

    async def _ask(self) -> bool:
        for transport in ice_transports(self._connection):
            if not await self._ask_over(transport._connection):
                return False
        return True

    async def _ask_over(self, ice: Connection) -> bool:
        nominated = getattr(ice, "_nominated", None)
        if nominated is None or not hasattr(ice, "build_request") or ice.remote_password is None:
            return True  # another version of aioice: its own, slower, watch has to do
        for pair in list(nominated.values()):
            asked_at = time.monotonic()
            try:
                async with asyncio.timeout(self._patience_s):
                    await pair.protocol.request(
                        ice.build_request(pair, nominate=False),
                        pair.remote_addr,
                        integrity_key=ice.remote_password.encode(),
                    )
            except (TimeoutError, TransactionError, OSError, RuntimeError):  # the last: its socket has gone
                return False
            self.round_trip_s = time.monotonic() - asked_at
        return bool(nominated)
