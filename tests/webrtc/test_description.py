"""What strangers send as SDP is checked before aiortc sees it."""

from __future__ import annotations

import re

import pytest

import partime_async as pa
from partime_async.webrtc import Description, Ice, Peer, PictureTrack
from partime_async.webrtc.description import MAX_CHARACTERS, MAX_SECTIONS, read


async def an_offer(videos: int = 1) -> Description:
    """Return the offer of a real peer."""
    async with Peer() as peer:
        tracks = [PictureTrack() for _ in range(videos)]
        for track in tracks:
            peer.send_video(track)
        peer.open_channel("control")
        return await peer.offer()


async def test_description_of_a_real_offer_is_read() -> None:
    """Every section comes out, with the candidates of the first."""
    session = read(await an_offer(2), "offer", Ice.loopback())
    assert [section.kind for section in session.media] == ["video", "video", "application"]
    assert {candidate.ip for section in session.media for candidate in section.ice_candidates} == {"127.0.0.1"}
    assert len({tuple(str(each) for each in section.ice_candidates) for section in session.media}) == 1


async def test_description_with_foreign_addresses_keeps_those_that_are_tried() -> None:
    """On loopback, addresses elsewhere are left out, and what may still turn up is waited for."""
    offer = await an_offer()
    foreign = Description(offer.sdp.replace("127.0.0.1", "192.0.2.7"), "offer")
    on_loopback = read(foreign, "offer", Ice.loopback())
    assert all(not section.ice_candidates for section in on_loopback.media)
    assert not any(section.ice_candidates_complete for section in on_loopback.media)
    assert all(section.ice_candidates for section in read(foreign, "offer", Ice.host()).media)


async def test_description_of_vp9_alone_names_the_codecs_that_are_understood() -> None:
    """An offer in no codec in common is answered in words."""
    offer = await an_offer()
    vp9 = offer.sdp.replace("H264", "VP9").replace("VP8", "VP9")
    with pytest.raises(pa.SourceError, match=r"comes in VP9, which is not understood\. Offer VP8 or H264"):
        read(Description(vp9, "offer"), "offer", Ice.loopback())


async def test_description_that_does_not_bundle_is_refused() -> None:
    """Several transports for one connection are not served."""
    offer = await an_offer()
    apart = re.sub(r"a=group:BUNDLE[^\r\n]*\r\n", "", offer.sdp)
    with pytest.raises(pa.SourceError, match="BUNDLE"):
        read(Description(apart, "offer"), "offer", Ice.loopback())


@pytest.mark.parametrize(
    ("sdp", "told"),
    [
        ("", "0 media sections"),
        ("v=0\r\n" * 3, "Send"),
        ("hello", "cannot be read|media sections"),
        ("v=0\r\nm=video\r\n", "cannot be read"),
        ("v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 97\r\nc=IN IP4 0.0.0.0\r\n", "ICE credentials|cannot be read"),
        ("x" * (MAX_CHARACTERS + 1), "characters"),
    ],
)
def test_description_that_is_rubbish_is_refused_in_words(sdp: str, told: str) -> None:
    """Whatever comes, the error is ours and says what is wrong."""
    with pytest.raises(pa.SourceError, match=told):
        read(Description(sdp, "offer"), "offer", Ice.loopback())


async def test_description_with_parts_missing_is_refused_in_words() -> None:
    """Credentials, fingerprints and known kinds are required; sections are counted."""
    offer = await an_offer()
    for pattern, told in (
        (r"a=ice-(ufrag|pwd)[^\r\n]*\r\n", "ICE credentials"),
        (r"a=(fingerprint|setup)[^\r\n]*\r\n", "DTLS fingerprint|cannot be read"),
    ):
        with pytest.raises(pa.SourceError, match=told):
            read(Description(re.sub(pattern, "", offer.sdp), "offer"), "offer", Ice.loopback())
    with pytest.raises(pa.SourceError, match="text"):
        read(Description(offer.sdp.replace("m=application", "m=text"), "offer"), "offer", Ice.loopback())
    many = await an_offer(MAX_SECTIONS)
    with pytest.raises(pa.SourceError, match=f"{MAX_SECTIONS + 1} media sections"):
        read(many, "offer", Ice.loopback())


async def test_description_of_the_wrong_type_is_refused() -> None:
    """An answer is no offer."""
    offer = await an_offer()
    with pytest.raises(pa.SourceError, match="Send an answer"):
        read(offer, "answer", Ice.loopback())


async def test_description_shows_no_keys() -> None:
    """The keys of the connection are in no log."""
    offer = await an_offer()
    assert "ice-pwd" in offer.sdp
    assert repr(offer) == "Description(type='offer')"
