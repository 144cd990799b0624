"""POST to an address that a client chose, without being led into the network that this process stands in.

The name is resolved once, every address is checked, and the connection goes to an address that was checked, so that a
name cannot mean one thing when it is looked at and another when it is used. No redirect is followed, no proxy is used,
and of the answer only the status is read. The whole call has one deadline (resolving apart, which has the system's).
Knows nothing of webhooks.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import SOCK_STREAM, getaddrinfo
from typing import Any
from urllib.parse import urlsplit

import httpcore2
from httpcore2 import NetworkBackend, NetworkStream, SyncBackend

from .errors import PressrunError, UserError

MAX_URL = 2048
# All of IPv6 that is given out. IPv4 addresses come wrapped in others where a NAT64 gateway stands.
UNICAST, NAT64 = ip_network("2000::/3"), ip_network("64:ff9b::/96")
# What looks public and is not: protocol assignments (Oracle's metadata among them), relays, Azure's metadata.
SPECIAL = [ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")]

Address = IPv4Address | IPv6Address


class PostFailed(PressrunError):
    """There was no answer; says why in words that may be shown to who chose the address."""


def check_url(url: str, *, allow_private: bool) -> None:
    """Raise UserError for what can never be posted to. Where a name leads is looked at when it is used."""
    host = _host(url)
    if host is None:
        message = "Invalid value for 'url': expected an http or https URL with a host and no user name, in ASCII."
        raise UserError(message, param="url", code="invalid_value")
    address = _literal(host)
    if not allow_private and (host == "localhost" or (address is not None and not is_public(address))):
        message = "Invalid value for 'url': its address is not public (PRESSRUN_WEBHOOK_ALLOW_PRIVATE)."
        raise UserError(message, param="url", code="invalid_value")


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool, timeout_s: float) -> int:
    """POST `body`; the status of the answer. Raises PostFailed if there is none within `timeout_s`."""
    network = _CheckedNetwork(allow_private=allow_private, deadline=time.monotonic() + timeout_s)
    try:
        with (
            httpcore2.ConnectionPool(network_backend=network) as pool,
            pool.stream("POST", url, headers=list(headers.items()), content=body) as response,
        ):
            return int(response.status)
    except httpcore2.TimeoutException as error:
        raise PostFailed(f"no answer within {timeout_s:g} s") from error
    except httpcore2.NetworkError as error:
        raise PostFailed(f"the connection failed: {error}") from error
    except httpcore2.ProtocolError as error:
        raise PostFailed("the answer is not HTTP") from error


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet's, whatever it is wrapped in."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in SPECIAL)


class _CheckedNetwork(NetworkBackend):
    """Connects to public addresses only, unless private ones are allowed too, and only until the deadline."""

    def __init__(self, *, allow_private: bool, deadline: float) -> None:
        self.allow_private = allow_private
        self.deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        addresses = _resolve(host, port)
        if not self.allow_private and not all(map(is_public, addresses)):
            raise PostFailed("the host has an address that is not public (PRESSRUN_WEBHOOK_ALLOW_PRIVATE)")
        failure: httpcore2.NetworkError | None = None
        for address in addresses:
            try:
                stream = SyncBackend().connect_tcp(str(address), port, _left(self.deadline))
            except httpcore2.NetworkError as error:
                failure = error
            else:
                return _BoundedStream(stream, self.deadline)
        raise failure or PostFailed("the host has no address")


class _BoundedStream(NetworkStream):
    """A connection whose every step ends by one deadline, so that an answer in drops does not last for ever."""

    def __init__(self, stream: NetworkStream, deadline: float) -> None:
        self.stream = stream
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _left(self.deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _left(self.deadline))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        return _BoundedStream(self.stream.start_tls(ssl_context, server_hostname, _left(self.deadline)), self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout
    return left


def _resolve(host: str, port: int) -> list[Address]:
    try:
        found = getaddrinfo(host, port, type=SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PostFailed("the host's name is not known") from error
    # A scope such as %eth0 belongs to addresses of one link only, which are not public without it either.
    return [ip_address(str(place[0]).partition("%")[0]) for *_, place in found]


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _host(url: str) -> str | None:
    """The host of a URL that can be posted to; None for any other."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url and len(url) <= MAX_URL
    named = parts.hostname and parts.username is None and parts.password is None and not parts.fragment
    if not plain or not named or parts.scheme not in ("http", "https") or port == 0:
        return None
    return parts.hostname
