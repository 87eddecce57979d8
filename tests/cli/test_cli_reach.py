"""Where a server is to be reached, as the command line says it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from partime_async.cli.reach import Reach
from partime_async.errors import ConfigurationError
from partime_async.webrtc import Ice, IceServer

TURN = {"url": "turn:relay.example:3478", "username": "me", "credential": "s3cret"}


def test_reach_without_a_word_is_this_machine_alone() -> None:
    """No token, no certificate, no address but loopback; beyond it WebRTC uses the machine's own addresses."""
    reach = Reach()
    assert (reach.access().needs_token, reach.tls(), reach.ice()) == (False, None, Ice.loopback())
    assert Reach(host="0.0.0.0").ice() == Ice.host()
    assert Reach(host="0.0.0.0", way="loopback").ice() == Ice.loopback()


def test_reach_with_servers_in_a_file_reads_them_and_whether_the_relay_is_the_only_way(tmp_path: Path) -> None:
    """A list of servers, or an object that also says that nothing else may be used."""
    path = tmp_path / "ice.json"
    path.write_text(json.dumps(["stun:stun.example", TURN]))
    assert Reach(way=str(path)).ice() == Ice.servers(["stun:stun.example", IceServer(**TURN)])
    path.write_text(json.dumps({"servers": [TURN], "relay_only": True}))
    found = Reach(way=str(path)).ice()
    assert found == Ice.servers([IceServer(**TURN)], relay_only=True)
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Give loopback, host, or a JSON file"),
        ("{}", "Give loopback, host, or a JSON file"),
        ("7", "Give loopback, host, or a JSON file"),
        ('[{"address": "turn:x"}]', "Give loopback, host, or a JSON file"),
        ('{"servers": ["stun:stun.example"], "relay_only": true}', "needs a TURN server"),
        ('[{"url": "turn:relay.example"}]', "has no credentials"),
    ],
)
def test_reach_with_a_file_that_names_no_servers_says_what_it_wants(tmp_path: Path, text: str, words: str) -> None:
    """Whatever is wrong with it."""
    path = tmp_path / "ice.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        Reach(way=str(path)).ice()


def test_reach_with_a_token_file_makes_it_once_and_never_tells_it(tmp_path: Path) -> None:
    """The file is its owner's alone; what is told names the file."""
    path = tmp_path / "token"
    reach = Reach(token_file=str(path))
    first = reach.access()
    assert (first.needs_token, first) == (True, reach.access())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert reach.told("https://host/") == f"https://host/?token=$(cat {path})"
    with pytest.raises(ConfigurationError, match="cannot be made"):
        Reach(token_file=str(tmp_path / "nowhere" / "token")).access()
