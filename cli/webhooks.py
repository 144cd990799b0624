"""`pressrun webhooks`: who is told when batches end, for those who run the service.

It works on the store itself, so that it needs no API server, and may name any tenant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ..jobs.errors import SettingsError
from ..jobs.records import DEFAULT_TENANT
from ..jobs.settings import Settings
from .flags import takes_settings
from .reach import connected

if TYPE_CHECKING:
    from ..jobs.backend import Backend

FIELDS = ("data_dir", "redis_url", "webhook_allow_private")
app = typer.Typer(no_args_is_help=True, help="Webhook endpoints: who is told when batches end.")

Tenant = Annotated[str, typer.Option(help="Whose batches are meant.")]
EndpointId = Annotated[str, typer.Argument(metavar="ID", help="The endpoint's id, whe_…")]


@app.command()
@takes_settings(FIELDS)
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are posted to.")],
    *,
    name: Annotated[str, typer.Option(help="What people call it.")] = "webhook",
    event: Annotated[list[str] | None, typer.Option(help="An event to post; may be said again. [default: all]")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    settings: Settings,
) -> None:
    """Have events posted to a URL, and print the secret that signs them. It is not shown again."""
    from ..jobs import webhooks

    with _backend(settings) as backend:
        made = webhooks.create_endpoint(
            backend, name=name, url=url, event_types=event or webhooks.EVENT_TYPES, tenant=tenant
        )
    typer.echo(f"id      {made.id}\nsecret  {made.secret}")


@app.command("list")
@takes_settings(FIELDS)
def list_(*, tenant: Tenant = DEFAULT_TENANT, settings: Settings) -> None:
    """Show webhook endpoints, newest first: id, name, URL and events."""
    from ..jobs import webhooks

    with _backend(settings) as backend:
        found = webhooks.list_endpoints(backend, limit=webhooks.MAX_ENDPOINTS, tenant=tenant).items
    for one in found:
        typer.echo(f"{one.id}  {one.name}  {one.url}  {' '.join(one.event_types)}")


@app.command()
@takes_settings(FIELDS)
def delete(endpoint_id: EndpointId, *, tenant: Tenant = DEFAULT_TENANT, settings: Settings) -> None:
    """Delete a webhook endpoint; what is still on its way to it is dropped."""
    from ..jobs import webhooks

    with _backend(settings) as backend:
        webhooks.delete_endpoint(backend, endpoint_id, tenant)


@app.command()
@takes_settings(FIELDS)
def deliveries(
    endpoint_id: EndpointId,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most deliveries to show.")] = 20,
    tenant: Tenant = DEFAULT_TENANT,
    settings: Settings,
) -> None:
    """Show what was posted to an endpoint, or is to be, newest first, with every attempt."""
    from ..jobs.deliveries import deliveries_of

    with _backend(settings) as backend:
        found = deliveries_of(backend, endpoint_id, limit=limit, tenant=tenant).items
    for one in found:
        typer.echo(f"{_time(one.created_at)}  {one.event_id}  {one.event_type}  {one.batch_id}  {one.status}")
        for made in one.attempts:
            typer.echo(f"    {_time(made.at)}  {made.error or f'status {made.status_code}'}")
        if one.next_attempt_at is not None:
            typer.echo(f"    {_time(one.next_attempt_at)}  next attempt")


@app.command("test")
@takes_settings((*FIELDS, "webhook_timeout_s"))
def post_event(
    endpoint_id: EndpointId,
    *,
    event: Annotated[str, typer.Option(help="The event to make up.")] = "batch.completed",
    tenant: Tenant = DEFAULT_TENANT,
    settings: Settings,
) -> None:
    """Post a made-up event to an endpoint, and print the status that came back."""
    from ..jobs.posting import send_test

    with _backend(settings) as backend:
        typer.echo(f"status {send_test(backend, endpoint_id, event, tenant)}")


@contextmanager
def _backend(settings: Settings) -> Iterator[Backend]:
    """The deployment's store: the one that the settings name, or the Valkey that runs in the data folder."""
    from ..jobs.embedded import EmbeddedValkey

    if settings.redis_url is None:
        try:
            url = EmbeddedValkey(settings.data_dir).url
        except OSError as error:
            message = f"no Pressrun has run in {settings.data_dir}; set PRESSRUN_DATA_DIR or PRESSRUN_REDIS_URL"
            raise SettingsError(message) from error
        settings = settings.model_copy(update={"redis_url": url})
    with connected(settings) as backend:
        yield backend


def _time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
