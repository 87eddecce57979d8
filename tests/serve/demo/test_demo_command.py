"""`partime-async demo` as a user starts it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from partime_async.serve.demo.page import PAGE
from tests.serve.demo.browser import demo_server


def get(url: str) -> tuple[str, str]:
    """Return what an address of this machine answers, and the policy that comes with it."""
    with urlopen(url, timeout=20) as response:
        return response.read().decode(), response.headers["Content-Security-Policy"]


def test_demo_command_serves_the_page_and_all_it_needs_and_stops_at_ctrl_c() -> None:
    """Page, scripts and services are there under a policy without exceptions; Ctrl-C ends it with exit code 0."""
    with demo_server() as (url, process):
        page, policy = get(url)
        assert "unsafe" not in policy
        loaded = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
        assert len(loaded) >= 4
        for path in loaded:
            get(url + path)
        assert set(json.loads(get(f"{url}api/services")[0])["services"]) == {"teach", "predict"}
        assert json.loads(get(f"{url}healthz")[0])["status"] == "ready"
        assert "partime" in get(f"{url}metrics")[0]
        with pytest.raises(HTTPError):
            get(f"{url}static/nothing.js")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_demo_command_on_a_port_that_is_taken_says_so() -> None:
    """A port that another program has is named in one line, with exit code 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "partime_async", "demo", "--no-browser", "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert str(port) in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_demo_page_loads_nothing_from_elsewhere() -> None:
    """No file of the page names another server, but for the names of formats and licences."""
    files = [path for path in PAGE.rglob("*") if path.suffix in (".html", ".js", ".css", ".svg")]
    assert len(files) >= 7
    for path in files:
        foreign = re.findall(r"https?://[^\s\"')]+", path.read_text())
        own = [address for address in foreign if "w3.org" not in address and path.parent.name != "uplot"]
        assert own == [], f"{path.name} names {own}"


def test_demo_page_vendors_uplot_with_its_licence() -> None:
    """The charts' library comes with its licence."""
    folder = PAGE / "vendor" / "uplot"
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert {path.name for path in folder.iterdir()} == {"LICENSE", "uPlot.esm.js", "uPlot.min.css"}
