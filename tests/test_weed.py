"""A server of the tests comes up though another has taken one of its ports in between."""

from __future__ import annotations

import socket
from pathlib import Path

import boto3
import pytest

from . import weed


def test_a_server_whose_port_was_taken_is_started_on_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose, chosen = weed._free_ports, list[list[int]]()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def ports(number: int) -> list[int]:
            chosen.append(choose(number))
            return [*chosen[-1][1:], other.getsockname()[1]] if len(chosen) == 1 else chosen[-1]

        monkeypatch.setattr(weed, "_free_ports", ports)
        with weed.running_weed(tmp_path) as (endpoint, environ):
            assert len(chosen) > 1
            client = boto3.client(
                "s3",
                endpoint_url=endpoint,
                region_name="us-east-1",
                aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
            )
            assert client.list_objects_v2(Bucket=environ["S3_BUCKET"])["KeyCount"] == 1
