"""What two peers tell each other before they connect (SDP), read with care: it comes from strangers."""

from __future__ import annotations

from dataclasses import dataclass, field

from partime_async.errors import MissingDependencyError, SourceError
from partime_async.webrtc.ice import Ice

try:
    from aiortc.sdp import MediaDescription, SessionDescription
except ImportError as error:
    raise MissingDependencyError("aiortc", "webrtc") from error

CODECS = ("VP8", "H264")
MAX_CHARACTERS = 64 * 1024
# Each video section costs a decoder and its thread.
MAX_SECTIONS = 8


@dataclass(frozen=True, slots=True)
class Description:
    """An offer or an answer.

    Attributes:
        sdp: The description; it holds the keys of the connection, so it is never shown.
        type: ``offer`` or ``answer``.
    """

    sdp: str = field(repr=False)
    type: str


def read(description: Description, expected: str, ice: Ice) -> SessionDescription:
    """Check what the other side says, and leave out the addresses that are not to be tried.

    Args:
        description: As it came.
        expected: The type that it must have.
        ice: Which addresses are tried.

    Raises:
        SourceError: It is not what was expected, malformed, too long, or has video in no codec that is understood; the
            other side's fault.
    """
    if description.type != expected:
        raise SourceError(f"got an SDP of type {description.type!r:.40}. Send an {expected}.")
    if len(description.sdp) > MAX_CHARACTERS:
        raise SourceError(f"the {expected} has {len(description.sdp)} characters. Send at most {MAX_CHARACTERS}.")
    try:
        session = SessionDescription.parse(description.sdp)
        session.type = description.type
        bundled = [mid for group in session.group if group.semantic == "BUNDLE" for mid in map(str, group.items)]
        for section in session.media:
            _check_section(section, expected)
    except SourceError:
        raise
    except Exception as error:  # its parser raises whatever it stumbles over
        raise SourceError(f"the {expected} cannot be read: {error!r}. Send the SDP as the browser gives it.") from error
    if not session.media or len(session.media) > MAX_SECTIONS:
        raise SourceError(f"the {expected} has {len(session.media)} media sections. Send 1 to {MAX_SECTIONS}.")
    if len(session.media) > 1 and {section.rtp.muxId for section in session.media} - set(bundled):
        raise SourceError(f"the {expected} spreads its media over several transports. Use the BUNDLE group.")
    _choose_candidates(session, ice)
    return session


def _check_section(section: MediaDescription, expected: str) -> None:
    if section.ice is None or not section.ice.usernameFragment or not section.ice.password:
        raise SourceError(f"the {expected} has no ICE credentials. Send the SDP as the browser gives it.")
    if section.dtls is None or not section.dtls.fingerprints:
        raise SourceError(f"the {expected} has no DTLS fingerprint. Send the SDP as the browser gives it.")
    if section.kind not in ("audio", "video", "application"):
        raise SourceError(f"the {expected} has a section of kind {section.kind!r:.40}. Send audio, video or data.")
    if section.kind == "video":
        names = [codec.name for codec in section.rtp.codecs if codec.name.lower() != "rtx"]
        if not {name.upper() for name in names} & set(CODECS):
            listed = ", ".join(dict.fromkeys(names)) or "no codec"
            raise SourceError(f"the video comes in {listed:.80}, which is not understood. Offer {' or '.join(CODECS)}.")


def _choose_candidates(session: SessionDescription, ice: Ice) -> None:
    """Keep the candidates worth trying, and name them in every section.

    All sections share the transport of the first, but aiortc takes the candidates of the last section that it reads.
    """
    first = session.media[0]
    kept = [each for each in first.ice_candidates if ice.accepts(each.ip)]
    is_complete = first.ice_candidates_complete and len(kept) == len(first.ice_candidates)
    for section in session.media:
        section.ice_candidates = list(kept)
        # What was left out may still turn up by itself; aioice gives up at once if it thinks that there is nothing.
        section.ice_candidates_complete = is_complete and bool(kept)
