"""`partime-async run tcp://…`: devices into a model by one command."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from partime_async.client import Sender


@pytest.mark.slow
def test_run_of_an_address_takes_what_a_device_sends() -> None:
    """The command waits for the device, runs its frames through the model, and sums up without a loss."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "partime_async",
        "run",
        url,
        "--model",
        "mlp",
        "-n",
        "30",
        "--stages",
        "1",
        "--json",
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        Sender(url, patience_s=60.0) as sender,
    ):
        for _ in range(30):
            sender.send(np.zeros(256, np.float32))
        assert process.stdout is not None
        told = [json.loads(line) for line in process.stdout]
        assert process.wait(60) == 0
    assert told[0]["type"] == "start"
    assert told[0]["source"].startswith(f"devices that send to {url}")
    assert told[-1]["type"] == "summary"
    assert (told[-1]["frames"]["offered"], told[-1]["frames"]["delivered"]) == (30, 30)
