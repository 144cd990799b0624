"""`pressrun keys` and `pressrun tenants`: who may come in, and how much each may have.

They write to the Redis of a running service, or to the embedded Valkey of a data folder, running or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ..jobs.errors import UserError
from ..jobs.records import DEFAULT_TENANT, ApiKey
from ..jobs.settings import Settings
from .flags import takes_settings
from .reach import connected

if TYPE_CHECKING:
    from ..jobs.backend import Backend

WHERE = ("data_dir", "redis_url")
NONE = "none"
LONGEST_S = 36_500 * 86_400

keys = typer.Typer(help="API keys: make, list and revoke them.", no_args_is_help=True)
tenants = typer.Typer(help="Tenants: set and list what each may have.", no_args_is_help=True)

TenantName = Annotated[str, typer.Argument(metavar="NAME", help="The tenant; it needs no creation.")]
Limit = Annotated[str | None, typer.Option(metavar="NUMBER|none", help="At most so many; none: no limit.")]


@keys.command("create")
@takes_settings(WHERE)
def create_key(
    *,
    settings: Settings,
    tenant: Annotated[str, typer.Option(help="Whose files, batches and jobs it opens.")] = DEFAULT_TENANT,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[str | None, typer.Option(metavar="DURATION", help="How long it is good, such as 90d.")] = None,
) -> None:
    """Make an API key and print it. It is shown this once: only its hash is kept."""
    with _backend(settings) as backend:
        secret, key = backend.keys.create(tenant=tenant, name=name, expires_in_s=_lifetime(expires))
    typer.echo(
        f"{key.id} for tenant {key.tenant}, expires {_date(key.expires_at)}; keep it, it is not shown again:", err=True
    )
    typer.echo(secret)


@keys.command("list")
@takes_settings(WHERE)
def list_keys(*, settings: Settings) -> None:
    """List all API keys, by what is known of them."""
    with _backend(settings) as backend:
        found = backend.keys.list()
    head = ("id", "tenant", "name", "begins with", "created", "expires", "state")
    _show(head, *map(_key_row, found))


@keys.command("revoke")
@takes_settings(WHERE)
def revoke_key(
    key: Annotated[str, typer.Argument(help="Its id, or the key itself, or its beginning as listed.")],
    *,
    settings: Settings,
) -> None:
    """Refuse an API key from now on. A server that had keys never opens again without one."""
    with _backend(settings) as backend:
        revoked = backend.keys.revoke(key)
    typer.echo(f"{revoked.id} of tenant {revoked.tenant} is revoked")


@tenants.command("set")
@takes_settings(WHERE)
def set_tenant(
    name: TenantName,
    *,
    settings: Settings,
    weight: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Its part of the engines beside others'.")
    ] = None,
    max_enqueued_tokens: Limit = None,
    max_active_batches: Limit = None,
    max_stored_bytes: Limit = None,
    requests_per_minute: Limit = None,
) -> None:
    """Set limits of a tenant; those that are not named stay as they are."""
    given = {
        "weight": weight,
        "max_enqueued_tokens": max_enqueued_tokens,
        "max_active_batches": max_active_batches,
        "max_stored_bytes": max_stored_bytes,
        "requests_per_minute": requests_per_minute,
    }
    limits = {limit: _number(limit, text) for limit, text in given.items() if text is not None}
    if not limits:
        raise UserError("Nothing to set: name at least one of " + ", ".join(map(_flag, given)) + ".")
    with _backend(settings) as backend:
        backend.store.tenants.set(name, **limits)
        backend.store.make_durable()


@tenants.command("list")
@takes_settings(WHERE)
def list_tenants(*, settings: Settings) -> None:
    """List the tenants that have keys or limits, with what they hold now."""
    with _backend(settings) as backend:
        names = {tenant.name for tenant in backend.store.tenants.list()} | {key.tenant for key in backend.keys.list()}
        rows = [_tenant_row(backend, name) for name in sorted(names)]
    head = ("tenant", "weight", "tokens enqueued", "batches active", "bytes stored", "requests a minute")
    _show(head, *rows)


def _key_row(key: ApiKey) -> tuple[str, ...]:
    dates = _date(key.created_at), _date(key.expires_at)
    return (key.id, key.tenant, key.name or "–", f"{key.hint}…", *dates, _state(key))


def _tenant_row(backend: Backend, name: str) -> tuple[str, ...]:
    tenant, held = backend.store.tenant(name), backend.quotas.held(name)
    return (
        name,
        f"{tenant.weight:g}",
        _of(held.tokens, tenant.max_enqueued_tokens),
        _of(held.num_batches, tenant.max_active_batches),
        _of(backend.store.stored_bytes(name), tenant.max_stored_bytes),
        "–" if tenant.requests_per_minute is None else str(tenant.requests_per_minute),
    )


@contextmanager
def _backend(settings: Settings) -> Iterator[Backend]:
    """The service's backend; without a Redis, the embedded Valkey's, which is started for as long as it takes."""
    from ..jobs.embedded import EmbeddedValkey

    if settings.redis_url is not None:
        with connected(settings) as backend:
            yield backend
        return
    with (
        EmbeddedValkey(settings.data_dir) as valkey,
        connected(settings.model_copy(update={"redis_url": valkey.url})) as backend,
    ):
        yield backend


def _lifetime(text: str | None) -> int | None:
    from ..jobs.submit import duration_s

    if text is None:
        return None
    seconds = duration_s(text)
    if not seconds or seconds > LONGEST_S:
        raise UserError(f"--expires {text}: expected a duration of at most 36500d, such as 90d or 12h.")
    return math.ceil(seconds)


def _number(limit: str, text: str) -> float | None:
    if text == NONE:
        return None
    try:
        return float(text) if limit == "weight" else int(text)
    except ValueError as error:
        raise UserError(f"{_flag(limit)} {text}: expected a number or '{NONE}'.") from error


def _flag(limit: str) -> str:
    return f"--{limit.replace('_', '-')}"


def _state(key: ApiKey) -> str:
    return "revoked" if key.revoked_at is not None else "good" if key.is_good(time.time()) else "expired"


def _date(seconds: int | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _of(held: int, limit: int | None) -> str:
    return str(held) if limit is None else f"{held} of {limit}"


def _show(*rows: tuple[str, ...]) -> None:
    """Columns, whole at any width of the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
