"""Certificates and addresses of TLS: what is wrong is said in words, before anything is opened, and without secrets."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from partime_async.errors import ConfigurationError, SinkError, SourceError
from partime_async.sockets import SensorServer, SocketSink, Tls, connect, listen
from partime_async.sockets.address import Address
from partime_async.sockets.tls import credentials
from tests.certificates import Authority
from tests.sockets.peers import serving, small, until, vector

SECRET = "open sesame"


def test_tls_of_files_makes_a_context_for_each_side(authority: Authority) -> None:
    """A server shows its certificate and asks for none, unless it has a ca; a client checks certificate and name."""
    pair = authority.issue("server")
    server = Tls(pair.certificate, pair.key).context(is_server=True)
    assert server.verify_mode is ssl.CERT_NONE
    assert Tls(pair.certificate, pair.key, authority.ca).context(is_server=True).verify_mode is ssl.CERT_REQUIRED
    client = Tls(ca=authority.ca).context(is_server=False)
    assert (client.verify_mode, client.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert [found["subject"] for found in client.get_ca_certs()] == [((("commonName", "test authority"),),)]
    assert Tls().context(is_server=False).verify_mode is ssl.CERT_REQUIRED


def test_tls_of_one_file_and_of_an_encrypted_key_is_read(authority: Authority, tmp_path: Path) -> None:
    """Certificate and key may share a file; a password opens the key, and is never shown."""
    plain, closed = authority.issue("plain"), authority.issue("closed", password=SECRET)
    both = tmp_path / "both.pem"
    both.write_bytes(plain.certificate.read_bytes() + plain.key.read_bytes())
    Tls(both).context(is_server=True)
    tls = Tls(closed.certificate, closed.key, password=SECRET)
    tls.context(is_server=True)
    assert SECRET not in f"{tls} {tls!r}"


@pytest.mark.parametrize("is_server", [True, False])
def test_password_out_of_a_file_opens_an_encrypted_key(authority: Authority, tmp_path: Path, is_server: bool) -> None:
    """By name or in the address, so that it stands in no command line; it is among the files whose change is seen."""
    closed, file = authority.issue("closed", password=SECRET), tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    named = Tls(closed.certificate, closed.key, password_file=file)
    url = f"tcps://127.0.0.1:9000?cert={closed.certificate}&key={closed.key}&password_file={file}"
    for tls in (named, credentials(Address.parse(url), None, is_server=is_server)):
        assert isinstance(tls, Tls)
        tls.context(is_server=is_server)
        assert file in tls.files
        assert SECRET not in f"{tls} {tls!r}"
    assert str(Address.parse(url)) == "tcps://127.0.0.1:9000"


def test_password_file_that_does_not_help_says_why(authority: Authority, tmp_path: Path) -> None:
    """Missing, empty, wrong, no text, no file, or one of two: each is named, and no password with it."""
    closed, plain = authority.issue("closed", password=SECRET), authority.issue("plain")
    wrong, empty, binary, pipe = (tmp_path / name for name in ("wrong", "empty", "binary", "pipe"))
    wrong.write_text("wrong " + SECRET)
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    os.mkfifo(pipe)
    for file, words in (
        (None, r"closed\.key is encrypted, and there is no password\. Name the file .*--tls-password-file"),
        (wrong, r"closed\.key is encrypted, and the password does not open it\."),
        (empty, r"empty is empty\. Write"),
        (binary, "binary cannot be read: it is no text"),
        (pipe, "pipe is no regular file"),
        (tmp_path / "nowhere", "nowhere cannot be read: No such file"),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            Tls(closed.certificate, closed.key, password_file=file).context(is_server=True)
        assert SECRET not in str(caught.value)
    with pytest.raises(ConfigurationError, match="Use one of them"):
        Tls(closed.certificate, closed.key, password=SECRET, password_file=wrong).context(is_server=True)
    with pytest.raises(ConfigurationError, match=r"there is no certificate\. Name its files"):
        connect(f"tcps://127.0.0.1:1?password_file={wrong}")
    Tls(plain.certificate, plain.key, password_file=wrong).context(is_server=True)  # which needs none


@pytest.mark.parametrize("is_server", [True, False])
def test_tls_of_files_that_cannot_be_used_says_which_and_why(
    authority: Authority, tmp_path: Path, is_server: bool
) -> None:
    """Missing, a folder, rubbish, the other's key, a wrong password: each is named with its remedy."""
    pair, other = authority.issue("one"), authority.issue("other")
    closed = authority.issue("closed", password=SECRET)
    rubbish, damaged = tmp_path / "rubbish.pem", tmp_path / "damaged.pem"
    rubbish.write_bytes(b"hello")
    damaged.write_bytes(pair.certificate.read_bytes().replace(b"M", b"N"))
    for tls, words in (
        (Tls(tmp_path / "nowhere.pem", pair.key), r"nowhere\.pem cannot be read: No such file"),
        (Tls(pair.certificate, tmp_path / "nowhere.key"), r"nowhere\.key cannot be read"),
        (Tls(tmp_path, pair.key), "cannot be read: Is a directory"),
        (Tls(rubbish, pair.key), r"rubbish\.pem holds no certificate"),
        (Tls(pair.certificate), r"one\.pem holds no private key"),
        (Tls(damaged, pair.key), r"damaged\.pem .*cannot be used"),
        (Tls(pair.certificate, other.key), r"other\.key is not that of the certificate in .*one\.pem"),
        (Tls(closed.certificate, closed.key), "is encrypted, and there is no password"),
        (Tls(closed.certificate, closed.key, password="wrong " + SECRET), "the password does not open it"),
        (Tls(pair.certificate, pair.key, rubbish), r"rubbish\.pem holds no certificate"),
        (Tls(pair.certificate, pair.key, tmp_path / "no.pem"), r"no\.pem cannot be read"),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            tls.context(is_server=is_server)
        assert SECRET not in str(caught.value)
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("tcps://host:1?cert=a.pem&key=b.pem&ca=c.pem", "tcps://host:1"),
        ("wss://host/frames?ca=c.pem&format=json", "wss://host:443/frames?format=json"),
        ("mqtts://me:secret@broker/a/b", "mqtts://broker:8883/a/b"),
    ],
)
def test_address_of_tls_names_files_and_does_not_show_them(url: str, text: str) -> None:
    """What is printed is what the other side may connect to."""
    address = Address.parse(url)
    assert (str(address), address.is_encrypted) == (text, True)
    assert address.transport == {"tcps": "tcp", "wss": "ws", "mqtts": "mqtt"}[address.scheme]
    named = credentials(address, None, is_server=False)
    assert named == Tls(address.certificate, address.key, address.ca)
    assert "secret" not in f"{address!r} {named!r}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("tcp://host:1?ca=c.pem", "unknown option 'ca'"),
        ("udp://host:1?cert=c.pem", "unknown option 'cert'"),
        ("tcps://host:1?ca=", "names no file"),
        ("tcps://host:1?cert=a&key=b&password=open-secret", "unknown option 'password'"),
        ("tcps://host:1?cert=a&key=b&password_file=", "names no file"),
        ("tcps://host:1/path", "has a path, which tcps has not"),
        ("tcps://host", "lacks a host or a port"),
        ("mqtts://broker", "lacks a topic"),
        ("https://me:secret@host", "is no address"),
    ],
)
def test_address_of_tls_that_cannot_be_is_refused(url: str, words: str) -> None:
    """Every mistake is named, and no password with it."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        Address.parse(url)
    assert "secret" not in str(caught.value)


def test_tls_that_does_not_fit_its_address_is_refused_at_once() -> None:
    """A server without a certificate, a context for the other side, files twice: none waits for a connection."""
    client, server = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for make, words in (
        (lambda: listen("tcps://127.0.0.1:0"), r"needs a certificate\. Pass Tls"),
        (lambda: listen("tcp://127.0.0.1:0", tls=Tls("a")), r"is not encrypted, and tls is given\. Write tcps"),
        (lambda: listen("udp://127.0.0.1:0", tls=Tls("a")), "is not encrypted"),
        (lambda: listen("wss://127.0.0.1:0?cert=a", tls=Tls("a")), "Use one of them"),
        (lambda: listen("wss://127.0.0.1:0", tls=client), "for clients"),
        (lambda: connect("tcps://127.0.0.1:1", tls=server), "for servers"),
        (lambda: connect("tcps://127.0.0.1:1?key=a"), "has no certificate"),
        (lambda: SocketSink("tcps://127.0.0.1:0", listen=True), "needs a certificate"),
        (lambda: SocketSink("tcps://127.0.0.1:1", tls=server), "for servers"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            make()
    listen("mqtts://broker/topic", tls=client)  # to a broker everybody is a client


@pytest.mark.parametrize("scheme", ["tcps", "wss"])
async def test_tls_of_bad_files_fails_before_anything_is_bound(
    authority: Authority, tmp_path: Path, scheme: str
) -> None:
    """A server, a source and a sink say it on opening, and leave the address alone."""
    pair, other = authority.issue("one"), authority.issue("other")
    url, tls = f"{scheme}://127.0.0.1:0/", Tls(pair.certificate, other.key)
    for tls in (Tls(pair.certificate, other.key), Tls(tmp_path / "nowhere.pem")):
        source = listen(url, tls=tls)
        with pytest.raises(ConfigurationError, match=r"not that of|cannot be read"):
            await source.open()
        assert source.url.partition("/")[2].startswith("/127.0.0.1:0")
        with pytest.raises(ConfigurationError):
            async with serving(url, pipeline=small(), tls=tls):
                pass
        with pytest.raises(ConfigurationError):
            async with SocketSink(url, listen=True, tls=tls):
                pass
    bad = Tls(ca=tmp_path / "nowhere.pem")
    dialled = connect(f"{scheme}://127.0.0.1:9", tls=bad)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await anext(dialled)
    await dialled.aclose()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        async with SocketSink(f"{scheme}://127.0.0.1:9", tls=bad):
            pass


async def send_three(sink: SocketSink) -> None:
    """Write more than there is room for: the second result waits, until there is nothing to wait for."""
    async with sink:
        for number in range(3):
            await sink.write(vector(number))


async def send_nothing(sink: SocketSink, server: SensorServer) -> None:
    """Leave a sink after its handshake has failed."""
    before = server.statistics().failed_handshakes
    async with sink:
        await until(lambda: server.statistics().failed_handshakes > before)
        await until(lambda: sink._distrust is not None)


@pytest.mark.parametrize("scheme", ["tcps", "wss"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("self-signed", r"127\.0\.0\.1 is not trusted: self-signed certificate\. Name the one that has signed it"),
        ("stranger", r"127\.0\.0\.1 is not trusted: unable to get local issuer certificate\. Name"),
        ("expired", r"127\.0\.0\.1 is not trusted: certificate has expired\. Let the server renew it"),
        ("elsewhere", r"127\.0\.0\.1 is not trusted: .*not valid for '127\.0\.0\.1'\. Connect by a name that is in it"),
    ],
)
async def test_tls_of_an_untrusted_server_names_the_host_and_the_remedy(
    tmp_path: Path, authority: Authority, scheme: str, kind: str, words: str
) -> None:
    """It is refused at once, however patient the client is, and nothing is sent."""
    folder = tmp_path / "other"
    folder.mkdir()
    issuer = Authority(folder, "stranger") if kind == "stranger" else authority
    names = ("elsewhere.example",) if kind == "elsewhere" else ()
    pair = issuer.issue("server", *names, is_expired=kind == "expired", is_self_signed=kind == "self-signed")
    trusting = Tls(ca=authority.ca)
    async with serving(f"{scheme}://127.0.0.1:0/", tls=Tls(pair.certificate, pair.key)) as server:
        source = connect(server.url, tls=trusting)
        with pytest.raises(SourceError, match=words):
            await anext(source)
        await source.aclose()
        with pytest.raises(SinkError, match=words):
            await send_three(SocketSink(server.url, capacity=1, tls=trusting))
        with pytest.raises(SinkError, match=words):
            await send_nothing(SocketSink(server.url, tls=trusting), server)
        assert server.statistics().arrived == 0
