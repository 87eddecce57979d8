"""Models by name, the package's and the user's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from partime_async.errors import ConfigurationError
from partime_async.models import build, describe, example_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER_CODE = """
from torch import nn

ready = nn.Linear(4, 2)
number = 3


class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.linear = nn.Linear(4, width)


def make(layers=2):
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))


def text():
    return "no module"


def broken():
    raise ValueError("the user's own")
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a module of a user's, and one that lacks something, where Python finds them."""
    (tmp_path / "user_nets.py").write_text(USER_CODE)
    (tmp_path / "lacking.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "user_nets"
    for name in ("user_nets", "lacking"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [name for name, _ in describe()])
def test_build_of_every_described_model_takes_its_example(name: str) -> None:
    """Each model is built by its name, and computes something from a frame of the size given for it."""
    model = build(name).eval()
    with torch.inference_mode():
        output = model(torch.rand(example_size(name)))
    assert output.shape[0] == 1
    assert output.isfinite().all()


def test_describe_has_one_line_for_each_model() -> None:
    """Descriptions fit a listing."""
    assert {"conv-a", "conv-b", "mlp", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"} == set(
        dict(describe())
    )
    assert all(summary and "\n" not in summary and len(summary) < 100 for _, summary in describe())


def test_build_passes_options_on_and_the_example_follows_them() -> None:
    """Options reach the factory, and the size of a frame fits what was built."""
    assert len(build("mlp", layers=3, width=8)) == 5  # type: ignore[arg-type]
    assert example_size("mlp", layers=3, width=8) == (1, 8)
    assert example_size("mlp", in_features=5) == (1, 5)
    assert example_size("conv-a", in_channels=1) == (1, 1, 64, 64)
    assert example_size("resnet50") == (1, 3, 64, 64)


def test_build_of_a_users_factory_class_or_module_gives_it(user_module: str) -> None:
    """A function, a class or a module that is there already can be named."""
    assert len(build(f"{user_module}:make", layers=4)) == 4  # type: ignore[arg-type]
    assert type(build(f"{user_module}:Net", width=7)).__name__ == "Net"
    assert isinstance(build(f"{user_module}:ready"), nn.Linear)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("resnet", {}, "there is no model 'resnet'. Choose one of conv-a, .*, or name your own as 'module:factory'"),
        ("user_nets:", {}, "there is no model 'user_nets:'"),
        ("mlp", {"depth": 3}, r"options \['depth'\]: .*'depth'. It takes: layers, width, in_features, out_features"),
        ("no_such_module:make", {}, "there is no module 'no_such_module' to import for .* PYTHONPATH"),
        ("user_nets.inner:make", {}, "there is no module 'user_nets.inner'"),
        ("user_nets:nothing", {}, "has no 'nothing', and a factory is needed. Choose one of: Net, make, text, broken"),
        ("user_nets:number", {}, "has 'number' of type int, and a factory"),
        ("user_nets:make", {"width": 1}, r"options \['width'\].* It takes: layers"),
        ("user_nets:ready", {"width": 1}, r"options \['width'\].* It takes: none"),
        ("user_nets:text", {}, "gave a str. Let it return a torch.nn.Module"),
        ("errno:EPERM", {}, "has 'EPERM' of type int.* Choose one of: it has none"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_build_of_what_is_not_there_raises_and_says_what_is(name: str, options: dict[str, object], told: str) -> None:
    """An unknown model, module, factory or option is refused with the choices."""
    with pytest.raises(ConfigurationError, match=told):
        build(name, **options)


@pytest.mark.usefixtures("user_module")
def test_build_passes_on_what_the_users_code_raises() -> None:
    """Errors inside the user's code are the user's: they come as they are."""
    with pytest.raises(ValueError, match="the user's own"):
        build("user_nets:broken")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        build("lacking:make")


def test_build_of_a_callable_without_a_signature_calls_it() -> None:
    """A callable that cannot be inspected is called all the same."""
    with pytest.raises(ConfigurationError, match="gave a dict"):
        build("builtins:dict")


def test_example_size_of_an_unknown_model_raises() -> None:
    """Nothing is known of the frames of a user's model."""
    with pytest.raises(ConfigurationError, match="Give their size"):
        example_size("user_nets:make")


@pytest.mark.parametrize("name", ["weights.pt", "folder/net.safetensors", "net.onnx"])
def test_build_of_a_file_says_where_the_file_goes(name: str) -> None:
    """Weights do not say which network they belong to."""
    with pytest.raises(ConfigurationError, match=r"Name the network as 'module:factory', and give the file with --wei"):
        build(name)
