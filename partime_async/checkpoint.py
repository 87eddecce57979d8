"""Weights, and all that learning remembers, on disk: one safetensors file, whole or not there.

    header   {"partime_async": JSON}: format, versions, frames, and for each stage its optimiser and schedule as trees
    tensors  the module's own keys, as any reader of safetensors finds them;
             learning/<stage>/<path in the tree>, to which the trees refer

Nothing in the file is executed when it is read. A new file is written beside the old one and takes its place when it is
complete and on the disk.

Source: safetensors (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import os
import pickle
import secrets
import zipfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor

from partime_async.errors import CheckpointError, MissingDependencyError
from partime_async.learning.stepper import Memory

if TYPE_CHECKING:
    from types import ModuleType

FORMAT = 1
"""Of the header; a file of a higher one was written by a later version of this library."""

_KEY = "partime_async"
_PREFIX = "learning/"
_WRAPPERS = ("state_dict", "model_state_dict")
"""Under which training programs keep the weights, beside what else they write."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """All that one stage has learned, beside its weights.

    Attributes:
        parameters: Names of those it trains, in the order in which the optimiser numbers them.
        version: How often its weights had changed.
        updates: Optimiser steps it had taken.
        kinds: Names of the classes of its optimiser and its schedule; None: there was no such thing.
        memory: What these remembered, on the CPU.
    """

    parameters: tuple[str, ...]
    version: int
    updates: int
    kinds: tuple[str | None, str | None]
    memory: Memory


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a network has learned up to one frame boundary: in memory, and what a file holds.

    Attributes:
        weights: The module's `state_dict`, on the CPU.
        frames: How many frames had been through the network, over all its runs.
        stages: What each stage had learned; None: it had no learner.
    """

    weights: Mapping[str, Tensor]
    frames: int
    stages: tuple[StageRecord, ...] | None


def write(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot; blocks. If it fails, a file that was there before is still there.

    Raises:
        CheckpointError: Something in it cannot be written, or the file cannot.
        MissingDependencyError: safetensors is not installed.
    """
    safetensors = _library()
    check_place(path)
    tensors = {name: item for name, item in snapshot.weights.items() if isinstance(item, Tensor)}
    extra = {name: item for name, item in snapshot.weights.items() if not isinstance(item, Tensor)}
    encoder = _Encoder(str(path), tensors)
    stages = snapshot.stages
    header: dict[str, Json] = {
        "format": FORMAT,
        "library": _own_version(),
        "torch": torch.__version__,
        "frames": snapshot.frames,
        "extra": encoder.encoded(extra, f"{_PREFIX}extra"),
        "stages": None if stages is None else [encoder.stage(*numbered) for numbered in enumerate(stages)],
    }
    ready = {name: encoder.checked(name, tensor) for name, tensor in tensors.items()}
    # In the same folder: a file moves to another name in one step only within one file system.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        safetensors.torch.save_file(ready, str(beside), metadata={_KEY: json.dumps(header, allow_nan=False)})
        _settle(beside)
        beside.replace(path)
        _settle(path.parent)
    except safetensors.SafetensorError as error:
        raise CheckpointError(str(path), f"it cannot be written: {error}.") from error
    finally:
        beside.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """See that a checkpoint could be written there, before there is one to lose; blocks.

    Raises:
        CheckpointError: It could not; the caller's fault.
    """
    if not path.parent.is_dir():
        raise CheckpointError(str(path), f"there is no folder {path.parent}. Create it first.")
    if path.is_dir():
        raise CheckpointError(str(path), "it is a folder. Name a file in it.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CheckpointError(str(path), f"nothing may be written into {path.parent}. Choose another folder.")


def read(path: Path) -> Snapshot:
    """Read a checkpoint; blocks. A safetensors file of another program, or what `torch.save` wrote, is weights alone.

    Raises:
        CheckpointError: It is neither, is damaged, or was written by a later version of this library.
        FileNotFoundError: There is no such file.
        MissingDependencyError: safetensors is not installed.
    """
    safetensors = _library()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if zipfile.is_zipfile(path):
        return Snapshot(_saved_by_torch(path), 0, None)
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            str(path), f"it is no safetensors file, and none of torch.save, or damaged: {error}."
        ) from error
    if _KEY not in metadata:
        return Snapshot(tensors, 0, None)
    try:
        header = json.loads(metadata[_KEY])
        written = int(header["format"])
        found = _parsed(header, tensors) if written <= FORMAT else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(str(path), f"its header is damaged: {type(error).__name__}: {error}.") from error
    if found is None:
        raise CheckpointError(str(path), f"it has the format {written}, known is {FORMAT}. Update partime-async.")
    return found


def _saved_by_torch(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file of `torch.save`; nothing in it is executed."""
    remedy = "Write the weights alone: torch.save(module.state_dict(), path)."
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            str(path), f"it is damaged, or holds other things than weights, such as a whole module. {remedy}"
        ) from error
    for name in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not any(isinstance(item, Tensor) for item in found.values()):
        raise CheckpointError(str(path), f"it holds a {type(found).__name__} without weights. {remedy}")
    return dict(found)


class _Encoder:
    """Writes trees of Python values as JSON, and their tensors into a dictionary."""

    def __init__(self, path: str, tensors: dict[str, Tensor]) -> None:
        self._path = path
        self._tensors = tensors
        self._storages: set[int] = set()

    def stage(self, number: int, stage: StageRecord) -> Json:
        """Return a stage's record as JSON."""
        memory, (optimizer, scheduler) = stage.memory, stage.kinds
        return {
            "parameters": list(stage.parameters),
            "version": stage.version,
            "updates": stage.updates,
            "kinds": [optimizer, scheduler],
            "optimizer": self.encoded(memory.optimizer, f"{_PREFIX}{number}/optimizer"),
            "scheduler": self.encoded(memory.scheduler, f"{_PREFIX}{number}/scheduler"),
        }

    def encoded(self, value: object, name: str) -> Json:
        """Return a value as JSON, its tensors under names that begin with `name`."""
        if value is None or type(value) in (bool, int, str):
            return cast("Json", value)
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor):
            self._tensors[name] = value
            return {"tensor": name}
        if type(value) in (list, tuple):
            items = [self.encoded(item, f"{name}/{at}") for at, item in enumerate(cast("list[object]", value))]
            return items if type(value) is list else {"tuple": cast("Json", items)}
        if type(value) in (dict, Counter):
            pairs: list[Json] = [
                [self._key(key, name), self.encoded(item, f"{name}/{key}")]
                for key, item in cast("dict[object, object]", value).items()
            ]
            return {"dict" if type(value) is dict else "counter": pairs}
        raise CheckpointError(
            self._path,
            f"{name.removeprefix(_PREFIX)} is a {type(value).__name__}, which has no safe form on disk. Use an "
            "optimizer and a scheduler whose state_dict holds tensors, numbers, texts, lists and dictionaries.",
        )

    def checked(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor that can be written."""
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(
                self._path, f"{name.removeprefix(_PREFIX)} is a sparse or quantized tensor. Make it a dense one."
            )
        storage = tensor.untyped_storage().data_ptr()
        is_shared = storage in self._storages  # which a file does not tell, and the format refuses
        self._storages.add(storage)
        return tensor.contiguous().clone() if is_shared else tensor.contiguous()

    def _key(self, key: object, name: str) -> Json:
        if type(key) in (int, str):
            return cast("Json", key)
        raise CheckpointError(
            self._path, f"{name.removeprefix(_PREFIX)} has the key {key!r}. Use texts or whole numbers for keys."
        )


def _parsed(header: dict[str, Json], tensors: Mapping[str, Tensor]) -> Snapshot:
    stages = cast("list[dict[str, Json]] | None", header["stages"])
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}
    weights |= cast("dict[str, Tensor]", _decoded(header["extra"], tensors))
    learned = None if stages is None else tuple(_stage(stage, tensors) for stage in stages)
    return Snapshot(weights, cast("int", header["frames"]), learned)


def _stage(header: dict[str, Json], tensors: Mapping[str, Tensor]) -> StageRecord:
    optimizer, scheduler = cast("list[str | None]", header["kinds"])
    return StageRecord(
        parameters=tuple(cast("list[str]", header["parameters"])),
        version=cast("int", header["version"]),
        updates=cast("int", header["updates"]),
        kinds=(optimizer, scheduler),
        memory=Memory(
            cast("dict[str, object] | None", _decoded(header["optimizer"], tensors)),
            cast("dict[str, object] | None", _decoded(header["scheduler"], tensors)),
        ),
    )


def _decoded(value: Json, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float(cast("str", content))
    if kind == "tensor":
        return tensors[cast("str", content)]
    items = cast("list[Json]", content)
    if kind == "tuple":
        return tuple(_decoded(item, tensors) for item in items)
    pairs = {cast("str | int", key): _decoded(item, tensors) for key, item in cast("list[tuple[Json, Json]]", items)}
    if kind == "dict":
        return pairs
    if kind == "counter":
        return Counter(cast("dict[str | int, int]", pairs))
    raise ValueError(f"unknown kind {kind!r}")


def _library() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingDependencyError("safetensors", "checkpoint") from error
    return safetensors


def _own_version() -> str:
    try:
        return version("partime-async")
    except PackageNotFoundError:
        return "unknown"


def _settle(path: Path) -> None:
    """Have the disk keep what was written: the name must not outlive its content when the power fails."""
    with suppress(PermissionError, IsADirectoryError):  # folders cannot be opened on Windows
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
