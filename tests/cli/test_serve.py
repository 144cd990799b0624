"""The socket that the API listens on."""

from __future__ import annotations

import socket

from pressrun.cli.serve import KEEP_ALIVE_S, listen_on
from pressrun.jobs.settings import load_settings


def test_what_the_api_answers_is_sent_at_once(free_port: int) -> None:
    with (
        listen_on(load_settings({}, port=free_port)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_connection_that_is_silent_is_kept_alive(free_port: int) -> None:
    with (
        listen_on(load_settings({}, port=free_port)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEP_ALIVE_S
