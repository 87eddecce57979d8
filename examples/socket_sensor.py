"""Forecast a motion sensor that sends over TCP from another process, and raise an alarm when it behaves anew.

The sensor is a replayer: it sends a real recording of a watch (acceleration and rotation, 50 Hz, one exercise after the
other) at the recording's own rate. The network learns to forecast it while it comes in. Nobody tells it where one
exercise ends: it is surprised, and its alarm goes back to the sensor.

Install:  pip install 'partime-async[sockets]' && pip install --no-deps seglearn==1.2.5   (for its recording)
Run:      python examples/socket_sensor.py [seconds of the recording, 45] [times its own rate, 1]
Expect:   a line every ten seconds of the recording, with a latency of about 80 ms, because a frame is learned from when
          its target has come; an alarm within half a second of 31.9 s, where the exercise changes;
          with "265 10", six exercises ten times as fast, alarms near 31.9, 164.8 and 213.1 s, no others.
"""

import asyncio
import sys
import time
from functools import partial
from importlib.metadata import files

import numpy as np
import torch
from torch import Tensor, nn

import partime_async as pa
from partime_async.client import Sender
from partime_async.sockets import SensorServer, SocketFrame

RATE_HZ, STEPS = 50, 4


class Memory(pa.Stateful):
    """A recurrent layer; every sensor has a state of its own."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(inputs, units)

    def initial_state(self) -> Tensor:
        return torch.zeros(1, self.cell.hidden_size)

    def step(self, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        state = self.cell(value, state)
        return torch.cat((value, state), 1), state


class Watch:
    """Compares the forecast's error of the last half second with that of the last ten seconds."""

    def __init__(self) -> None:
        self.fast = self.slow = 0.0
        self.frames = self.quiet_until = 0

    def __call__(self, result: pa.Result) -> dict[str, object] | None:
        if result.loss is None or not isinstance(result.context, SocketFrame):
            return None
        self.frames += 1
        self.fast += (result.loss - self.fast) / min(self.frames, 25)
        is_alarm = self.frames > max(500, self.quiet_until) and self.fast > 4 * self.slow
        self.slow += (result.loss - self.slow) / min(self.frames, 500)
        second = result.context.sequence / RATE_HZ
        if self.frames % (10 * RATE_HZ) == 0:
            print(f"{second:5.1f} s: error {self.slow:.3f}, {1e3 * result.latency_s:.1f} ms from sensor to result")
        if not is_alarm:
            return None
        self.quiet_until = self.frames + 2 * RATE_HZ
        return {"alarm": f"{second:.1f} s", "times": round(self.fast / self.slow, 1)}


def replay(url: str, seconds: float, speed: float) -> None:
    """Be the sensor: send the recording of the first person, and print what comes back."""
    [path] = [path for path in files("seglearn") or [] if path.name == "watch_dataset.npy"]
    content = np.load(str(path.locate()), allow_pickle=True).item()
    of_first = [rows for rows, person in zip(content["X"], content["subject"], strict=True) if person == 1]
    rows = (np.concatenate(of_first) / np.concatenate(content["X"]).std(0)).astype(np.float32)
    with Sender(url) as sender:
        began = time.monotonic()
        for number, row in enumerate(rows[: int(seconds * RATE_HZ)]):
            while (wait_s := began + number / (RATE_HZ * speed) - time.monotonic()) > 0:
                if (message := sender.receive(wait_s)) is not None:
                    print(f"the sensor is told of an alarm: {message.note}", flush=True)
            sender.send(row)


async def main(seconds: str, speed: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Memory(6, 48), nn.Linear(54, 48), nn.Tanh(), nn.Linear(48, 6))
    learner = pa.Learner(nn.functional.mse_loss, partial(torch.optim.SGD, lr=0.02), clip_norm=1.0)
    ahead = partial(pa.targets.ahead, steps=STEPS)
    pipeline = pa.Pipeline(network, torch.zeros(1, 6), balance=[1, 3], learner=learner)
    async with (
        pipeline,
        SensorServer(pipeline, "tcp://127.0.0.1:0", prepare=ahead, respond=Watch(), replies="always") as server,
    ):
        sensor = await asyncio.create_subprocess_exec(sys.executable, __file__, "--replay", server.url, seconds, speed)
        await sensor.wait()
        await server.all_left()
        [client] = server.statistics().clients
        print(f"{client.frames} frames, {client.sequence.missing} missing, {client.replies} alarm(s)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--replay"]:
        replay(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
    else:
        asyncio.run(main(*(sys.argv[1:3] + ["45", "1"][len(sys.argv) - 1 :])))
