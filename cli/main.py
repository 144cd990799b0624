"""The `pressrun` command: which commands there are, and what their errors look like.

Each command imports what it runs only when it runs, so that `pressrun --help` loads neither torch nor a server.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import __version__
from ..jobs.errors import PressrunError, SettingsError
from ..jobs.settings import Settings
from .flags import API_FIELDS, EVERYWHERE, MODEL_FIELDS, takes_settings
from .webhooks import app as webhooks

EXIT_ERROR, EXIT_SETTINGS = 1, 2

Parent = Annotated[int | None, typer.Option(hidden=True, help="Stop when this process, our parent, is gone.")]


class Commands(typer.core.TyperGroup):
    """Shows the errors that Pressrun raises on purpose as one message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PressrunError as error:
            typer.echo(f"pressrun: {error}", err=True)
            raise typer.Exit(EXIT_SETTINGS if isinstance(error, SettingsError) else EXIT_ERROR) from error


app = typer.Typer(
    name="pressrun",
    cls=Commands,
    help="A batch processor for language models: drop a file of prompts, get every line answered exactly once.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


app.add_typer(webhooks, name="webhooks")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pressrun {__version__}")
        raise typer.Exit


@app.callback()
def pressrun(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A batch processor for language models: drop a file of prompts, get every line answered exactly once."""


@app.command()
@takes_settings(EVERYWHERE + API_FIELDS + MODEL_FIELDS)
def up(*, settings: Settings, parent: Parent = None) -> None:
    """Run everything on this machine: a Valkey of its own (unless PRESSRUN_REDIS_URL is set), the API and a worker."""
    from .logs import configure_logging
    from .up import run

    configure_logging(settings)
    raise typer.Exit(run(settings, parent))


@app.command()
@takes_settings(EVERYWHERE + API_FIELDS)
def api(*, settings: Settings, parent: Parent = None) -> None:
    """Run an API server; it needs PRESSRUN_REDIS_URL."""
    from .logs import configure_logging
    from .parent import stop_with_parent
    from .serve import run_api

    configure_logging(settings)
    stop_with_parent(parent)
    raise typer.Exit(run_api(settings))


@app.command()
@takes_settings(EVERYWHERE + MODEL_FIELDS)
def worker(*, settings: Settings, parent: Parent = None) -> None:
    """Run a worker with one model; it needs PRESSRUN_REDIS_URL."""
    from .logs import configure_logging
    from .parent import stop_with_parent
    from .serve import run_worker

    configure_logging(settings)
    stop_with_parent(parent)
    raise typer.Exit(run_worker(settings))


@app.command()
@takes_settings(("data_dir", "model"))
def model(*, settings: Settings) -> None:
    """Fetch the model ahead of time, and print its folder."""
    from .model import ensure_model

    folder = ensure_model(settings.model, settings.data_dir, lambda line: typer.echo(line, err=True))
    typer.echo(folder)


@app.command()
@takes_settings(("data_dir", "log_level", *MODEL_FIELDS))
def demo(*, settings: Settings) -> None:
    """Start everything, have real prompts answered as a batch through the openai SDK, show answers, stop."""
    from .demo import run

    raise typer.Exit(run(settings))
