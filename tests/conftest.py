"""What every part's tests may ask for: the real model, real prompts, a real Valkey."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from pressrun.cli.model import SMOLLM2, ensure_model
from pressrun.cli.prompts import humaneval_prompts, mtbench_prompts
from pressrun.jobs.embedded import EmbeddedValkey

from .weed import running_weed


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Kept between runs, so that the model is fetched and converted once."""
    return Path(os.environ.get("PRESSRUN_TEST_DATA", "~/.cache/pressrun")).expanduser()


@pytest.fixture(scope="session")
def smollm2(test_data: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    return ensure_model(SMOLLM2, test_data)


@pytest.fixture(scope="session")
def humaneval(test_data: Path) -> list[str]:
    """HumanEval's 164 prompts."""
    return list(humaneval_prompts(test_data).values())


@pytest.fixture(scope="session")
def mtbench(test_data: Path) -> list[str]:
    """MT-bench's 80 first turns."""
    return list(mtbench_prompts(test_data).values())


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey that lives as long as the test session."""
    with EmbeddedValkey(tmp_path_factory.mktemp("redis")) as valkey:
        with Redis.from_url(valkey.url) as client:
            # By default once a second, for which everybody would wait who is told that something is on disk.
            client.config_set("appendfsync", "always")
        yield valkey.url


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on a SeaweedFS of the tests' own; boto3 finds it by the environment."""
    with running_weed(tmp_path_factory.mktemp("weed")) as (endpoint, environ), pytest.MonkeyPatch.context() as patch:
        for name, value in (environ | {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_REGION": "us-east-1"}).items():
            patch.setenv(name, value)
        yield f"s3://{environ['S3_BUCKET']}"


@pytest.fixture
def redis(redis_server: str) -> Iterator[Redis]:
    """A client on an empty database; replies are bytes."""
    with Redis.from_url(redis_server, decode_responses=False) as client:
        client.flushall()
        yield client
