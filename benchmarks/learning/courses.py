"""What is to be learned: real recordings in a smooth and a shuffled order, each with a network of four stages.

A frame comes with its target, at the moment when the target is known: a picture when the next one is there, a window of
measurements when the four after it are, which is when the next window is complete. So nothing is predicted with weights
that have seen what came later, and without a delay of its own a rule is an ordinary training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import data
from partime_async.models.dense import mlp

STAGES = 4
SMOOTH, SHUFFLED, DRIFT, RUNS = "smooth", "shuffled", "drift", "runs"

_SIDE = 32
_CHANNELS = 16
_WINDOW = 16
_AHEAD = 4
_SENSOR_STEP = 2  # 50 rows a second make 25 frames
_HELD_OUT = 1000
_RUN = 20
_DRIFT_SPREAD = 2.5


@dataclass(frozen=True, slots=True)
class Lecture:
    """The frames of a course in one order.

    Attributes:
        frames: With the batch dimension.
        targets: One for each.
        naive: What is reached without learning, by saying "the same again": the mean loss, or with classes the share
            that is right.
        held_out: Frames that are never learned from, and their classes.
    """

    frames: Sequence[Tensor]
    targets: Sequence[Tensor]
    naive: float
    held_out: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """Something to be learned.

    Attributes:
        name: For tables.
        orders: In which the frames are given.
        frames: How many.
        loss: Of an output and a target.
        first_rate: Where the search for a learning rate starts.
        balance: Layers of each stage.
        module: Makes the network, by torch's random numbers.
        lecture: Makes the frames: order, how many, seed.
    """

    name: str
    orders: tuple[str, ...]
    frames: int
    loss: Callable[[Tensor, Tensor], Tensor]
    first_rate: float
    balance: tuple[int, ...]
    module: Callable[[], nn.Sequential]
    lecture: Callable[[str, int, int], Lecture]


def video(order: str, count: int, seed: int) -> Lecture:
    """Return pictures of a street, -1 to 1, each with the next one as its target; over and over."""
    pictures = 2.0 * data.clip("bikes.mp4", side=_SIDE) - 1.0
    present, following = pictures[:-1], pictures[1:]
    turns = torch.arange(count) % len(present)
    if order == SHUFFLED:
        turns = turns[torch.randperm(count, generator=_generator(seed))]
    naive = functional.mse_loss(present[turns], following[turns])
    return Lecture(_singles(present[turns]), _singles(following[turns]), naive.item())


def sensor(order: str, count: int, seed: int) -> Lecture:
    """Return windows of a motion sensor, each with the change over the next four steps as its target.

    Steps are 25 a second, windows 16 long and four steps apart. Seeds are people, who do one exercise after the other.
    """
    windows, changes = [], []
    for rows in data.recordings(1 + seed % 10):
        steps = rows[: len(rows) // _SENSOR_STEP * _SENSOR_STEP].reshape(-1, _SENSOR_STEP, 6).mean(dim=1)
        seen = steps.unfold(0, _WINDOW, _AHEAD).transpose(1, 2)
        following = steps[_WINDOW + _AHEAD - 1 :: _AHEAD]
        windows.append(seen[: len(following)].flatten(1))
        changes.append(following - seen[: len(following), -1])
    frames, targets = torch.cat(windows)[:count], torch.cat(changes)[:count]
    if order == SHUFFLED:
        shuffled = torch.randperm(len(frames), generator=_generator(seed))
        frames, targets = frames[shuffled], targets[shuffled]
    return Lecture(_singles(frames), _singles(targets), targets.square().mean().item())


def labelled_digits(order: str, count: int, seed: int) -> Lecture:
    """Return digits with their classes: drifting from 0 to 9, in runs of one class, or shuffled."""
    images, classes = data.digits()
    # The same for every seed and order: what is held out, and what may be learned from.
    mixed = torch.randperm(len(images), generator=_generator(0))
    images, classes = images[mixed], classes[mixed]
    held_out = images[-_HELD_OUT:], classes[-_HELD_OUT:]
    images, classes = images[:-_HELD_OUT][:count], classes[:-_HELD_OUT][:count]
    arranged = _arranged(order, classes, _generator(seed))
    images, classes = images[arranged], classes[arranged]
    naive = (classes[1:] == classes[:-1]).float().mean()
    return Lecture(_singles(images), _singles(classes), naive.item(), held_out)


def _arranged(order: str, classes: Tensor, generator: torch.Generator) -> Tensor:
    if order == DRIFT:
        return (classes + _DRIFT_SPREAD * torch.randn(len(classes), generator=generator)).argsort()
    mixed = torch.randperm(len(classes), generator=generator)
    if order == SHUFFLED:
        return mixed
    runs = [run for label in range(10) for run in torch.split(mixed[classes[mixed] == label], _RUN)]
    return torch.cat([runs[index] for index in torch.randperm(len(runs), generator=generator).tolist()])


def _singles(batch: Tensor) -> Sequence[Tensor]:
    return [batch[index : index + 1] for index in range(len(batch))]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture_net() -> nn.Sequential:
    """Build four convolutions with group normalisation."""
    return _kaiming(
        nn.Sequential(
            *(layer for channels in (3, _CHANNELS, _CHANNELS) for layer in _normalised(channels)),
            nn.Conv2d(_CHANNELS, 3, 3, padding=1),
        )
    )


def plain_picture_net() -> nn.Sequential:
    """Build four convolutions without any normalisation: its learning rate is limited by its stability."""
    return _kaiming(nn.Sequential(*(layer for layer in picture_net() if not isinstance(layer, nn.GroupNorm))))


def sensor_net() -> nn.Sequential:
    """Build four linear layers."""
    return mlp(layers=STAGES, width=64, in_features=6 * _WINDOW, out_features=6)


def digit_net() -> nn.Sequential:
    """Build two convolutions and two linear layers."""
    return _kaiming(
        nn.Sequential(
            *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(16 * 7 * 7, 64), nn.ReLU()),
            nn.Linear(64, 10),
        )
    )


def _normalised(channels: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, _CHANNELS, 3, padding=1), nn.GroupNorm(4, _CHANNELS), nn.ReLU()


def _kaiming(net: nn.Sequential) -> nn.Sequential:
    # torch's default shrinks signal and gradient layer by layer: rules would be compared on a net that hardly learns.
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


VIDEO = Course(
    name="video, next frame",
    orders=(SMOOTH, SHUFFLED),
    frames=1000,
    loss=functional.mse_loss,
    first_rate=0.025,
    balance=(3, 3, 3, 1),
    module=picture_net,
    lecture=video,
)
PLAIN_VIDEO = replace(
    VIDEO,
    name="the same, net without normalisation",
    orders=(SMOOTH,),
    balance=(2, 2, 2, 1),
    module=plain_picture_net,
)
SENSOR = Course(
    name="motion sensor, 4 steps ahead",
    orders=(SMOOTH, SHUFFLED),
    frames=1500,
    loss=functional.mse_loss,
    first_rate=0.01,
    balance=(2, 2, 2, 1),
    module=sensor_net,
    lecture=sensor,
)
DIGITS = Course(
    name="labelled digits",
    orders=(DRIFT, RUNS, SHUFFLED),
    frames=1500,
    loss=functional.cross_entropy,
    first_rate=0.01,
    balance=(2, 2, 3, 1),
    module=digit_net,
    lecture=labelled_digits,
)
COURSES = {course.name: course for course in (VIDEO, PLAIN_VIDEO, SENSOR, DIGITS)}
