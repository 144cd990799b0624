"""Everything that a process needs to work on the queue, connected."""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from .blobs import Blobs, open_blobs
from .blobs.redis import RedisBlobs
from .errors import SettingsError
from .keys import Keys
from .lineups import Lineups
from .live import Live
from .quotas import Quotas
from .records import Batch
from .settings import Settings
from .shards import Shards
from .store import Store
from .traces import NoTraces, Traces

DAY_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The store, the shards, models' lines, the online road, the blob stores, who may use them, and where traces go."""

    settings: Settings
    redis: Redis
    store: Store
    shards: Shards
    keys: Keys
    quotas: Quotas
    lineups: Lineups
    live: Live
    blobs: Blobs
    job_blobs: RedisBlobs
    traces: Traces

    def blobs_of(self, batch: Batch) -> Blobs:
        """Where a batch's input and segments lie: native jobs keep theirs in Redis."""
        return self.job_blobs if batch.kind == "job" else self.blobs

    def close(self) -> None:
        self.traces.close()
        self.redis.close()


def connect(settings: Settings) -> Backend:
    """Connect to what the settings name; `redis_url` must be set by now (`pressrun up` sets it to its own Valkey)."""
    if settings.redis_url is None:
        raise SettingsError("PRESSRUN_REDIS_URL is not set; `pressrun up` runs a Valkey of its own")
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=3)
    redis = Redis.from_url(settings.redis_url, retry=retry, retry_on_error=[RedisConnectionError])
    return backend_on(settings, redis)


def backend_on(settings: Settings, redis: Redis) -> Backend:
    """The backend on a given connection."""
    store = Store(redis)
    return Backend(
        settings=settings,
        redis=redis,
        store=store,
        shards=Shards(store),
        keys=Keys(store),
        quotas=Quotas(store),
        lineups=Lineups(store),
        live=Live(store),
        blobs=open_blobs(settings.blobs, redis),
        # The blobs of a job whose submission or end broke off go by themselves.
        job_blobs=RedisBlobs(redis, ttl_s=DAY_S + settings.job_ttl_s),
        traces=_open_traces(settings.otlp_endpoint),
    )


def _open_traces(endpoint: str | None) -> Traces:
    if endpoint is None:
        return NoTraces()
    try:
        from .otlp import OtlpTraces
    except ModuleNotFoundError as error:
        message = f"PRESSRUN_OTLP_ENDPOINT needs OpenTelemetry ({error.name}): pip install 'pressrun[otel]'"
        raise SettingsError(message) from error
    return OtlpTraces(endpoint)
