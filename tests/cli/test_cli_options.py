"""What the user typed becomes values, or an error that names the option."""

from __future__ import annotations

import pytest

from partime_async import ConfigurationError
from partime_async.cli.options import CutOptions, Size, SizeRule, parse_shape, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("128x96", (128, 96)), ("8X8", (8, 8)), ("auto", SizeRule.AUTO), ("source", SizeRule.SOURCE)],
)
def test_parse_size_of_numbers_and_rules_gives_them(text: str, size: Size) -> None:
    """Width and height, or one of two rules."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "64", "64x", "0x64", "64x-1", "3by4"])
def test_parse_size_of_anything_else_is_refused(text: str) -> None:
    """What is no size is named, with what a size looks like."""
    with pytest.raises(ConfigurationError, match=r"--size is .*128x96"):
        parse_size(text)


def test_parse_shape_gives_a_tuple() -> None:
    """Commas separate the sizes of a tensor."""
    assert parse_shape("1,3, 64,64") == (1, 3, 64, 64)


@pytest.mark.parametrize("text", ["", "1,a", "1,-3", "0,3"])
def test_parse_shape_of_no_tensor_is_refused(text: str) -> None:
    """A shape has whole sizes of at least 1."""
    with pytest.raises(ConfigurationError, match="--shape"):
        parse_shape(text)


def test_cut_options_of_the_defaults_leave_all_to_the_planner() -> None:
    """``auto`` and nothing else stand for None."""
    assert CutOptions.parsed("auto", None, ()) == CutOptions(stages=None, balance=None, devices=None)


def test_cut_options_of_text_give_numbers() -> None:
    """Stages, balance and devices arrive as the pipeline takes them."""
    parsed = CutOptions.parsed("2", "30,32", ["cpu", "cpu"])
    assert parsed == CutOptions(stages=2, balance=(30, 32), devices=("cpu", "cpu"))


@pytest.mark.parametrize(("stages", "balance", "option"), [("two", None, "--stages"), ("2", "30;32", "--balance")])
def test_cut_options_of_no_numbers_name_the_option(stages: str, balance: str | None, option: str) -> None:
    """The error says which option is wrong."""
    with pytest.raises(ConfigurationError, match=option):
        CutOptions.parsed(stages, balance, ())
