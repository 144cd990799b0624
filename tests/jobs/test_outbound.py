"""Posting to an address that a client chose: where it may lead, and how long it may take."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Any

import pytest
import trustme

from pressrun.jobs.errors import UserError
from pressrun.jobs.outbound import PostFailed, check_url, is_public, post

from ..receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def send(url: str, *, allow_private: bool = True, timeout_s: float = 5.0) -> int:
    return post(url, b'{"a":1}', {"x-mark": "m"}, allow_private=allow_private, timeout_s=timeout_s)


@contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats each connection as `talk` says."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                talk(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_the_open_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "224.0.0.1",
        "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::1", "2002:a00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "5f00::1",
    ],
)  # fmt: skip
def test_every_other_network_is_not(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://example.com/", "file:///etc/passwd", "//example.com/", "http://", "http:///x", "https://é.com/",
        "https://user@example.com/", "https://u:p@example.com/", "https://example.com/#a", "https://example.com:0/",
        "https://example.com:99999/", "https://example.com/a b", "https://example.com/\n", "https://[::1/",
        "https://example.com\\@other/", "https://e.com/" + "x" * 2048,
    ],
)  # fmt: skip
def test_what_is_no_url_to_post_to_is_refused(url: str) -> None:
    for allow_private in (True, False):
        with pytest.raises(UserError) as caught:
            check_url(url, allow_private=allow_private)
        assert caught.value.param == "url"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254"]
)
def test_an_address_that_is_plainly_not_public_is_refused_before_it_is_used(host: str) -> None:
    with pytest.raises(UserError, match="PRESSRUN_WEBHOOK_ALLOW_PRIVATE"):
        check_url(f"http://{host}:8080/hook?a=b", allow_private=False)
    check_url(f"http://{host}:8080/hook?a=b", allow_private=True)
    check_url("https://hooks.example.com/x?y=z", allow_private=False)


def test_what_is_posted_arrives(receiver: Receiver) -> None:
    assert send(receiver.url + "?a=b") == 200
    (got,) = receiver.got
    assert (got.path, got.body, got.headers["x-mark"]) == ("/hook?a=b", b'{"a":1}', "m")
    assert got.headers["host"] == receiver.url.split("/")[2]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1"])
def test_no_spelling_of_this_machine_is_connected_to(receiver: Receiver, host: str) -> None:
    url = receiver.url.replace("127.0.0.1", host)
    with pytest.raises(PostFailed, match="not public"):
        send(url, allow_private=False)
    assert receiver.got == []


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have names mean these addresses, one answer a question; the questions asked."""
    asked: list[str] = []
    left = list(answers)

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return [(0, 0, 0, "", (address, port)) for address in left.pop(0)]

    monkeypatch.setattr("pressrun.jobs.outbound.getaddrinfo", getaddrinfo)
    return asked


def test_a_name_with_one_private_address_is_not_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, ["8.8.8.8", "127.0.0.1"])
    with pytest.raises(PostFailed, match="not public"):
        send(receiver.url.replace("127.0.0.1", "hooks.example.com"), allow_private=False)
    assert receiver.got == []


def test_a_name_is_asked_for_once_and_what_was_checked_is_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[str] = []

    class Backend:
        def connect_tcp(self, host: str, port: int, timeout: float) -> Any:
            connected.append(host)
            raise httpcore2.ConnectError("refused")

    import httpcore2

    asked = resolving(monkeypatch, ["8.8.8.8", "1.1.1.1"], ["127.0.0.1"])
    monkeypatch.setattr("pressrun.jobs.outbound.SyncBackend", Backend)
    with pytest.raises(PostFailed, match="refused"):
        send("https://hooks.example.com/", allow_private=False)
    assert (asked, connected) == (["hooks.example.com"], ["8.8.8.8", "1.1.1.1"])


def test_a_redirect_is_an_answer_and_not_followed(receiver: Receiver) -> None:
    receiver.answers, receiver.location = [307], receiver.url
    assert send(receiver.url) == 307
    assert len(receiver.got) == 1


def test_no_proxy_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert send(receiver.url) == 200


def test_an_endpoint_that_says_nothing_is_given_up_in_time() -> None:
    gone = threading.Event()

    def say_nothing(connection: socket.socket) -> None:
        gone.wait(5)

    with talking(say_nothing) as url:
        started = time.monotonic()
        with pytest.raises(PostFailed, match=r"no answer within 0\.3 s"):
            send(url, timeout_s=0.3)
        assert time.monotonic() - started < 2
        gone.set()


def test_an_endpoint_that_answers_in_drops_is_given_up_in_time() -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100):
            connection.sendall(b"x: y\r\n")
            time.sleep(0.05)

    with talking(drip) as url:
        started = time.monotonic()
        with pytest.raises(PostFailed, match="no answer within"):
            send(url, timeout_s=0.4)
        assert time.monotonic() - started < 2


def test_an_answer_without_end_is_not_read() -> None:
    def flood(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10_000):
            connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")

    with talking(flood) as url:
        started = time.monotonic()
        assert send(url) == 200
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2**20])
def test_what_is_not_http_is_a_failure(answer: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with talking(talk) as url, pytest.raises(PostFailed):
        send(url)


def test_nobody_there_and_no_such_name_are_failures() -> None:
    with pytest.raises(PostFailed, match="connection failed"):
        send("http://127.0.0.1:9/")
    with pytest.raises(PostFailed, match="name is not known"):
        send("http://nowhere.invalid/")


def test_a_certificate_is_checked_for_the_name_and_not_the_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example.com").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with receiving(tls) as receiver:
        port = receiver.url.split(":")[2]
        resolving(monkeypatch, *[["127.0.0.1"]] * 3)
        with pytest.raises(PostFailed, match=r"(?i)certificate verify failed"):
            send(f"https://hooks.example.com:{port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert send(f"https://hooks.example.com:{port}") == 200
        with pytest.raises(PostFailed, match=r"(?i)hostname mismatch"):
            send(f"https://other.example.com:{port}")
    assert len(receiver.got) == 1
