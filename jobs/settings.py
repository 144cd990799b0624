"""All settings: `PRESSRUN_*` in the environment, complete and checked when built.

An unknown `PRESSRUN_*` name is refused, because a misspelt setting that is silently ignored costs a night.
Knows nothing of how settings are used.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from .errors import SettingsError
from .generation import parse_override
from .leases import Lease

PREFIX = "PRESSRUN_"


class Settings(BaseSettings):
    """What a deployment can choose. The description of each field is its documentation."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    data_dir: Path = Field(
        Path("~/.cache/pressrun"), description="Folder for models, files, results and the embedded Valkey."
    )
    redis_url: str | None = Field(
        None, description="Redis (7 or newer) or Valkey to use, such as redis://host:6379/0. Unset: an embedded Valkey."
    )
    blob_url: str | None = Field(
        None,
        description="Where files and results lie: file:///path, s3://bucket/prefix or redis:. "
        "Unset: disk, in the data folder.",
    )
    s3_inputs: str | None = Field(
        None, description="Where batches may take their input from: bucket or bucket/folder, comma between several."
    )
    s3_outputs: str | None = Field(
        None, description="Where batches may put their results: bucket or bucket/folder, comma between several."
    )
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port that the API listens on.")
    auth: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Who needs an API key: required, everybody; off, nobody; auto, everybody unless the address is "
        "loopback and no key was ever made.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is logged.")

    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Collector of traces, by OTLP over HTTP, such as http://localhost:4318. Unset: no traces.",
    )
    traced_lines: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the lines of traced batches that have spans of their own; jobs always do.",
    )

    max_file_bytes: int = Field(512 * 2**20, ge=1, description="Largest upload, in bytes.")
    max_upload_bytes: int = Field(8 * 2**30, ge=1, description="Largest file that is uploaded in parts, in bytes.")
    max_batch_bytes: int = Field(200 * 2**20, ge=1, description="Largest input file of a batch, in bytes.")
    max_batch_lines: int = Field(50_000, ge=1, description="Most requests in one batch.")
    max_line_bytes: int = Field(8 * 2**20, ge=1024, description="Longest line of a batch file, in bytes.")
    file_ttl_s: int = Field(30 * 86400, ge=3600, description="Seconds until an uploaded batch file expires.")
    job_ttl_s: int = Field(86400, ge=60, description="Seconds that a finished native job can be polled.")

    max_waiting_requests: int = Field(
        1024,
        ge=1,
        description="Most online requests that wait for a worker of their model; more are answered 429, "
        "but of a tenant that has less than its part of them.",
    )
    online_timeout_s: float = Field(
        600.0, gt=0, le=86400, description="Longest time of an online request, in seconds, before it ends in an error."
    )
    stream_keep_alive_s: float = Field(
        15.0,
        ge=0,
        le=3600,
        description="Seconds of silence after which an online stream is sent a comment, so that nothing on the way "
        "closes its connection. 0: none.",
    )

    webhook_timeout_s: float = Field(10.0, gt=0, le=30, description="Longest wait for an endpoint to take a webhook.")
    webhook_allow_private: bool = Field(
        False, description="Post webhooks to private, loopback and other addresses that are not public, too."
    )

    shard_lines: int = Field(
        64,
        ge=1,
        description="Most lines in one shard, the unit that a worker claims; more where all of them ask the same.",
    )
    feed_window: int = Field(
        64, ge=1, description="Most shards of batches that wait in RQ for each live worker of their model."
    )
    lease_s: float = Field(30.0, ge=1, description="Seconds within which a silent worker's shards are with others.")
    max_attempts: int = Field(
        10,
        ge=1,
        description="Claims of a shard in a row without one finished line, of fewer and fewer lines at a time, "
        "before those fail.",
    )
    commit_interval_s: float = Field(0.05, gt=0, le=5, description="Longest wait of a finished line to be stored.")

    model: str = Field(
        "smollm2-135m-instruct",
        description="Model that the worker serves: a folder, a Hugging Face id, or smollm2-135m-instruct.",
    )
    served_model_name: str | None = Field(
        None, description="Name that clients use for the model. Unset: the last part of PRESSRUN_MODEL."
    )
    engine: Literal["native", "echo"] = Field(
        "native", description="native runs the model; echo answers at once with the prompt (service tests)."
    )
    engine_stall_s: float = Field(
        300.0,
        ge=0,
        description="Seconds that the engine may do nothing with lines in it, before it is taken to hang and started "
        "again; longer than any step may take. 0: for ever.",
    )
    max_line_seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Longest time of a line in the engine, in seconds, before it fails as line_timeout; waiting there "
        "for its turn counts. Unset: no limit.",
    )
    tool_call_parser: Literal["auto", "none", "hermes", "llama3", "mistral", "qwen3_coder"] = Field(
        "auto",
        description="How the model writes its calls of tools; auto tells it from the chat template, and refuses tools "
        "where it cannot. none: tools are refused.",
    )
    reasoning_parser: Literal["auto", "none", "think", "mistral"] = Field(
        "auto",
        description="How the model marks its thoughts, which answers give as reasoning_content: think is "
        "<think>…</think>, mistral the same in capitals and square brackets; auto tells it from the chat "
        "template. none: they are content.",
    )
    trust_request_chat_template: bool = Field(
        False,
        description="Take chat_template from requests. Templates are programs: one that does not end stops a worker.",
    )
    generation_config: str = Field(
        "auto",
        description="Where what requests leave out of their sampling is taken from: auto, generation_config.json in "
        "the model's folder, if it is there; vllm, nowhere; or a folder with such a file.",
    )
    override_generation_config: str | None = Field(
        None,
        description='JSON that goes over single fields of it, such as {"temperature": 0.5}; null takes one back.',
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of weights and KV cache."
    )
    load_format: Literal["safetensors", "dummy"] = Field(
        "safetensors", description="safetensors reads the model's weights; dummy makes them up, for measurements."
    )
    device: str = Field("auto", description="auto, cpu or cuda.")
    max_model_len: int | None = Field(
        None, ge=1, description="Longest prompt plus answer, in tokens. Unset: the model's own limit."
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Most sequences running at once. Unset: 256 on a CPU, what the KV cache holds on a GPU."
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="Most tokens in one engine step. Unset: 2048 on a CPU, 8192 on a GPU."
    )
    enforce_eager: bool = Field(False, description="Run no CUDA graphs: slower steps, a little more memory for pages.")
    enable_prefix_caching: bool = Field(True, description="Reuse KV pages of equal prompt beginnings.")
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        "auto", description="Precision of the KV cache. fp8 holds twice the tokens and rounds them; auto is dtype's."
    )
    pooling: Literal["auto", "last", "mean", "none"] = Field(
        "auto",
        description="What an embedding is made of: the last token's hidden state or the mean of all; none refuses "
        "/v1/embeddings. auto: what the model's folder says (1_Pooling/config.json), else last.",
    )
    kv_cache_gb: float = Field(1.0, gt=0, description="KV cache size on a CPU, in GiB.")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of the GPU's memory that the engine may fill."
    )
    seed: int = Field(0, ge=0, description="Seed of draws whose request names none.")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` gives: it has read the environment, and refused what it does not know."""
        return (init_settings,)

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("s3_inputs", "s3_outputs")
    @classmethod
    def _whole_places(cls, value: str | None) -> str | None:
        for place in cls.places(value):
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]+(/[^/]+)*", place):
                raise ValueError(f"{place!r} is not bucket or bucket/folder")
        return value

    @field_validator("override_generation_config")
    @classmethod
    def _known_fields(cls, value: str | None) -> str | None:
        if value is not None:
            parse_override(value)
        return value

    @staticmethod
    def places(value: str | None) -> tuple[str, ...]:
        """The single places of a setting that lists several."""
        return tuple(place.strip().rstrip("/") for place in value.split(",")) if value else ()

    @property
    def model_name(self) -> str:
        """The name that clients put into `model`."""
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def lease(self) -> Lease:
        """What is to be done within `lease_s`, and when."""
        return Lease(self.lease_s)

    @property
    def blobs(self) -> str:
        """The blob store's URL, with the default filled in."""
        return self.blob_url or (self.data_dir / "blobs").as_uri()

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {PREFIX + name.upper(): str(value) for name, value in values.items()}


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` (by field name; None means not given) on top.

    Raises SettingsError that names the variable, what is wrong and the nearest known name.
    """
    environ = os.environ if environ is None else environ
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in environ:
        if name.startswith(PREFIX) and name not in known and not name.startswith(PREFIX + "TEST_"):
            near = difflib.get_close_matches(name, known, n=1)
            raise SettingsError(f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else ""))
    given = {name.removeprefix(PREFIX).lower(): environ[name] for name in known & environ.keys() if environ[name]}
    values: dict[str, Any] = given | {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise SettingsError(f"{name}={first['input']!r}: {first['msg']}") from error
