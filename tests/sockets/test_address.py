"""Addresses: what a URL says, and what it may not."""

from __future__ import annotations

import socket

import pytest

from partime_async.errors import ConfigurationError
from partime_async.sockets import Limits
from partime_async.sockets.address import Address


@pytest.mark.parametrize(
    "url",
    [
        "tcp://127.0.0.1:9000",
        "udp://[::1]:9000?format=json",
        "unix:///tmp/a%20b.sock?format=csv",
        "ws://localhost:80/frames",
        "tcps://127.0.0.1:9000",
        "wss://localhost:443/frames?format=json",
        "mqtts://broker:8883/sensors/+",
        "mqtt://broker:1883/sensors/+/x",
        "mqtt://broker:1883/sensors/#?format=json",
    ],
)
def test_address_says_the_url_it_was_made_of(url: str) -> None:
    """What is printed can be parsed again."""
    address = Address.parse(url)
    assert str(address) == url
    assert Address.parse(str(address)) == address


def test_address_of_mqtt_never_shows_its_password() -> None:
    """Neither text, nor representation, nor an error has the secret."""
    address = Address.parse("mqtt://me:pass%40word@broker/a/b?qos=1")
    assert (address.username, address.password, address.path, address.qos) == ("me", "pass@word", "a/b", 1)
    assert (address.host, address.port) == ("broker", 1883)
    assert "pass@" not in f"{address} {address!r}"
    for wrong in (
        "mqtt://me:pass@password@broker",
        "mqtt://me:password@broker",
        "mqtt://me:password@broker:x/a",
        "mqtt://me:password@broker/a?qos=7",
    ):
        with pytest.raises(ConfigurationError) as caught:
            Address.parse(wrong)
        assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("9000", "is no address. Give one such as tcp://127.0.0.1:9000"),
        ("http://127.0.0.1:9000", "is no address"),
        ("tcp://127.0.0.1", "lacks a host or a port"),
        ("tcp://:9000", "lacks a host or a port"),
        ("tcp://127.0.0.1:70000", "out of range"),
        ("tcp://127.0.0.1:9000/path", "has a path, which tcp has not"),
        ("unix://", "lacks a path"),
        ("mqtt://broker/", "lacks a topic"),
        ("tcp://127.0.0.1:9000?format=xml", "no such format. Use binary, json, csv"),
        ("tcp://127.0.0.1:9000?qos=1", "unknown option 'qos'. Use format, connect"),
    ],
)
def test_address_of_something_else_says_what_is_wrong(url: str, text: str) -> None:
    """Every mistake is named, with what would be right."""
    with pytest.raises(ConfigurationError, match=text):
        Address.parse(url)


def test_address_of_a_unix_socket_where_there_are_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has none: the error says what to use instead."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ConfigurationError, match=r"has no UNIX sockets\. Use tcp://127\.0\.0\.1:port"):
        Address.parse("unix:///tmp/a.sock")


@pytest.mark.parametrize(
    "options",
    [
        {"message_bytes": 27},
        {"clients": 0},
        {"rate_hz": 0.0},
        {"idle_s": 0.0},
        {"message_s": -1.0},
        {"bad_messages": 0},
        {"close_s": float("nan")},
        {"on_bad": "shrug"},
    ],
)
def test_limits_that_nothing_could_keep_are_refused(options: dict[str, object]) -> None:
    """A bound of nothing, or an unknown policy, is the caller's mistake."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Limits(**options)  # type: ignore[arg-type]
