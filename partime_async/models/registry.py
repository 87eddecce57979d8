"""Models by name: those of this package, and the user's own as `module:factory`."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from partime_async.errors import ConfigurationError
from partime_async.models.convolution import deep_conv, frame_conv
from partime_async.models.dense import mlp
from partime_async.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class _Model:
    factory: Callable[..., nn.Module]
    summary: str
    side: int | None = 64  # of the frames it suits, in pixels; None for frames that are vectors


_MODELS = {
    "conv-a": _Model(
        deep_conv, "30 convolutions 5x5 of 32 filters, an output for every pixel (PARTIME's experiment A)"
    ),
    "conv-b": _Model(frame_conv, "30 convolutions 5x5 with pooling, one output for the frame (PARTIME's experiment B)"),
    "mlp": _Model(mlp, "16 linear layers of 256 with ReLUs, for frames that are vectors", side=None),
    "resnet18": _Model(resnet18, "ResNet-18, flat: 11.7 M parameters"),
    "resnet34": _Model(resnet34, "ResNet-34, flat: 21.8 M parameters"),
    "resnet50": _Model(resnet50, "ResNet-50, flat: 25.6 M parameters"),
    "resnet101": _Model(resnet101, "ResNet-101, flat: 44.5 M parameters"),
    "resnet152": _Model(resnet152, "ResNet-152, flat: 60.2 M parameters (PARTIME's experiment C)"),
}


_FILES = (".pt", ".pth", ".pt2", ".bin", ".ckpt", ".onnx", ".safetensors")
"""How files end that people have their models in."""


def build(name: str, **options: object) -> nn.Module:
    """Build a model.

    Args:
        name: One of `describe`, or `module:factory` for something importable that returns a module when called, or is
            one.
        options: What the factory takes, for instance `layers=8`.

    Raises:
        ConfigurationError: There is no such model, module, factory or option, or what the factory gave is no module;
            the caller is at fault. What the user's own code raises is passed on as it is.
    """
    factory = _MODELS[name].factory if name in _MODELS else _imported(name)
    _arguments(name, factory, options)
    module = factory(**options)
    if not isinstance(module, nn.Module):
        raise ConfigurationError(f"{name!r} gave a {type(module).__name__}. Let it return a torch.nn.Module.")
    return module


def describe() -> tuple[tuple[str, str], ...]:
    """Return the name and a one-line description of each model of this package."""
    return tuple((name, model.summary) for name, model in _MODELS.items())


def example_size(name: str, **options: object) -> tuple[int, ...]:
    """Return the shape of one frame that suits a model of this package, batch dimension included.

    Args:
        name: One of `describe`.
        options: What the model is built with.

    Raises:
        ConfigurationError: This package has no such model, so nothing is known of its frames; the caller is at fault.
    """
    if name not in _MODELS:
        raise ConfigurationError(f"nothing is known here of the frames that {name!r} takes. Give their size.")
    model = _MODELS[name]
    arguments = _arguments(name, model.factory, options)
    if model.side is None:
        return 1, arguments["in_features"] or arguments["width"]
    return 1, arguments.get("in_channels", 3), model.side, model.side


def _arguments(name: str, factory: Callable[..., object], options: Mapping[str, object]) -> Mapping[str, Any]:
    """Return what the factory would be called with, defaults included."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some callables written in C have none to look at
        return options
    try:
        bound = signature.bind(**options)
    except TypeError as error:
        raise ConfigurationError(
            f"{name!r} cannot be built with the options {sorted(options)}: {error}. "
            f"It takes: {', '.join(signature.parameters) or 'none'}."
        ) from error
    bound.apply_defaults()
    return bound.arguments


def _imported(name: str) -> Callable[..., object]:
    if Path(name).suffix in _FILES:
        raise ConfigurationError(
            f"{name!r} is a file, and weights do not say which network they belong to. Name the network as "
            "'module:factory', and give the file with --weights, or load it in the factory."
        )
    path, colon, attribute = name.partition(":")
    if not (path and colon and attribute):
        raise ConfigurationError(
            f"there is no model {name!r}. Choose one of {', '.join(_MODELS)}, or name your own as 'module:factory'."
        )
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # an import inside the user's module: theirs to see
        raise ConfigurationError(
            f"there is no module {error.name!r} to import for {name!r}. Check the name, and put the folder it is in on "
            "PYTHONPATH."
        ) from error
    found = getattr(module, attribute, None)
    if isinstance(found, nn.Module):
        return lambda: found
    if not callable(found):
        own = [key for key, item in vars(module).items() if getattr(item, "__module__", None) == module.__name__]
        offered = [key for key in own if callable(getattr(module, key)) and not key.startswith("_")]
        problem = f"has no {attribute!r}" if found is None else f"has {attribute!r} of type {type(found).__name__}"
        raise ConfigurationError(
            f"module {path!r} {problem}, and a factory is needed. Choose one of: {', '.join(offered) or 'it has none'}."
        )
    return cast("Callable[..., object]", found)
