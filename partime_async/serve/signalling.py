"""``POST /api/offer`` and ``POST /api/bye``: how a browser's WebRTC connection begins, and how it ends at once."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from partime_async.errors import SourceError
from partime_async.serve.access import Access
from partime_async.serve.meters import Meters
from partime_async.serve.roster import Refused, Roster
from partime_async.serve.stream import checked_key
from partime_async.serve.tokens import shown_tokens
from partime_async.serve.webrtc_client import WebRTCClient
from partime_async.webrtc import Description, Ice

_BODY_S = 5.0
"""Seconds that the body of a request may take."""


class Signalling:
    """Makes clients of WebRTC offers.

    Args:
        access: Who may come in.
        roster: Whom they join.
        meters: Is told of their results.
        ice: How they are reached.
    """

    def __init__(self, access: Access, roster: Roster, meters: Meters, ice: Ice) -> None:
        self._access = access
        self._roster = roster
        self._meters = meters
        self._ice = ice

    async def offer(self, request: web.Request) -> web.StreamResponse:
        """Answer an offer: ``{sdp, type, service, client, token}`` gives ``{sdp, type, id}``.

        Raises:
            AccessDenied: It shows no token.
            Refused: It cannot join now, or the offer is none.
        """
        roster = self._roster
        said = await _said(request)
        token = said.get("token")
        self._access.check_token(*shown_tokens(request), token if isinstance(token, str) else None)
        service = said.get("service")
        name = roster.knock(request.remote, service if isinstance(service, str) else None)
        sdp, kind, receiver = said.get("sdp"), said.get("type"), said.get("receiver")
        if not isinstance(sdp, str) or not isinstance(kind, str):
            raise Refused(
                400, "offer", "the offer lacks sdp or type. Send those of RTCPeerConnection.localDescription."
            )
        if receiver not in (None, "aiortc"):
            raise Refused(400, "offer", f"the receiver is {receiver!r:.40}. Send 'aiortc', or leave it out.")
        with roster.place():
            client = WebRTCClient(
                ice=self._ice,
                limits=roster.limits,
                service=name,
                key=checked_key(said.get("client")),
                observer=self._meters,
                ends_pictures=receiver is not None,
            )
            try:
                answer = await client.answer(Description(sdp, kind))
            except SourceError as error:
                raise Refused(400, "offer", str(error)) from error
            try:
                roster.join(client)
            except Refused:
                await client.abandon()
                raise
        return web.json_response({"sdp": answer.sdp, "type": answer.type, "id": client.id})

    async def bye(self, request: web.Request) -> web.StreamResponse:
        """Let a client go: ``{id}``, as a closing page sends it by `navigator.sendBeacon`.

        A client that is gone already is no error: a page that lost its connection cannot know who went first.
        """
        said = await _said(request)
        visit = said.get("id")
        if not isinstance(visit, str):
            raise Refused(400, "bye", "the goodbye lacks an id. Send the one that came with the answer to the offer.")
        self._roster.bye(visit)
        return web.Response(status=204)


async def _said(request: web.Request) -> dict[str, object]:
    """Return the JSON object in a request's body, whatever it says of its type: beacons come as plain text.

    Raises:
        Refused: There is none; the other side's fault.
    """
    try:
        async with asyncio.timeout(_BODY_S):
            body = await request.read()
    except TimeoutError:
        raise Refused(408, "slow", f"the body did not come within {_BODY_S:g} s. Send it again.") from None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "json", f"the body is no JSON: {error!s:.80}.") from None
    if not isinstance(said, dict):
        raise Refused(400, "json", "the body is no JSON object.")
    return said
