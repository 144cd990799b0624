"""Settings as command line flags: every field of Settings is `--its-name`, said once, where Settings says it.

A flag goes over the environment variable of the same setting. Values are checked by Settings, not here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ..jobs.settings import PREFIX, Settings, load_settings

# Settings says what the worker alone needs last, from the model on.
MODEL_FIELDS = tuple(Settings.model_fields)[tuple(Settings.model_fields).index("model") :]
API_FIELDS = ("host", "port", "auth")
EVERYWHERE = tuple(name for name in Settings.model_fields if name not in MODEL_FIELDS + API_FIELDS)


def takes_settings(names: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each named setting; it is called with `settings`, made of flags and environment."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = {
            name: parameter
            for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
            if name != "settings"
        }
        flags = {name: _flag(name, Settings.model_fields[name]) for name in names}

        @wraps(command)
        def run(**given: Any) -> None:
            overrides = {name: given.pop(name) for name in flags}
            command(settings=load_settings(**overrides), **given)

        parameters = own | flags
        del run.__wrapped__  # or its signature would be taken for the command's
        run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        return run

    return decorate


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    words = name.replace("_", "-")
    if field.annotation is bool:
        kind: Any = bool | None
        names, metavar = f"--{words}/--no-{words}", None
    else:
        kind = str | None
        names, metavar = f"--{words}", _metavar(field.annotation)
    default = "" if field.default is None else f" [default: {field.default}]"
    option = typer.Option(
        names,
        metavar=metavar,
        help=f"{field.description}{default}",
        show_default=False,
        rich_help_panel=f"Settings (each also as {PREFIX}NAME in the environment)",
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _metavar(annotation: Any) -> str:
    """What kind of value a flag takes, in a word."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    (kind, *_) = (arg for arg in get_args(annotation) or (annotation,) if arg is not type(None))
    return {"int": "NUMBER", "float": "NUMBER", "Path": "FOLDER"}.get(kind.__name__, "TEXT")
