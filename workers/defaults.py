"""The defaults that a worker's model is drawn by: read once at its start, from the folder that the settings name.

As in vLLM, `max_new_tokens` of the model's own file is a default, and one that the operator gives, in a folder of his
own or as an override, is a limit too. `do_sample` is not looked at. Knows nothing of requests.

https://docs.vllm.ai/en/stable/configuration/engine_args/#-generation-config
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..jobs.errors import SettingsError, UserError
from ..jobs.generation import NO_DEFAULTS, Defaults, checked, defaults_of, known_fields, parse_override
from ..jobs.settings import Settings

log = logging.getLogger(__name__)
FILE = "generation_config.json"


def load_defaults(settings: Settings, model_dir: Path | None) -> Defaults:
    """The defaults, which are logged where they are not what goes without saying; the stand-in has no `model_dir`.

    Raises SettingsError that names the file, what is wrong and the fix.
    """
    file = _file(settings, model_dir)
    override = parse_override(settings.override_generation_config or "{}")
    fields = _read(file) | override
    try:
        config = checked(fields)
    except UserError as error:  # The override was found to be good when the settings were read.
        raise _out_of_range(file, error.message) from error
    is_operators = settings.generation_config not in ("auto", "vllm")
    most_tokens = config.max_new_tokens if is_operators or "max_new_tokens" in override else None
    defaults = defaults_of(config, most_tokens=most_tokens)
    if defaults != NO_DEFAULTS:
        _log(fields, file, override)
    return defaults


def _file(settings: Settings, model_dir: Path | None) -> Path | None:
    """The file that counts, if one does. Raises SettingsError where the settings name one that is not there."""
    where = settings.generation_config
    if where == "vllm" or (where == "auto" and model_dir is None):
        return None
    try:
        file = (model_dir if where == "auto" and model_dir is not None else Path(where).expanduser()) / FILE
        # A link to nothing is no file that is left out, but one that has gone.
        is_there = file.exists() or file.is_symlink()
    except (OSError, RuntimeError) as error:
        raise SettingsError(f"PRESSRUN_GENERATION_CONFIG={where!r}: it cannot be looked at: {error}") from error
    if not is_there and where != "auto":
        fix = f"give auto, vllm or a folder with a {FILE}"
        raise SettingsError(f"PRESSRUN_GENERATION_CONFIG={where!r}: {file} is not there; {fix}")
    return file if is_there else None


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return known_fields(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        # Of the model's own the engine reads which tokens end an answer, whatever the settings say.
        raise SettingsError(f"{file}: it cannot be read as a JSON object: {error}; mend it, or remove it") from error


def _out_of_range(file: Path | None, what: str) -> SettingsError:
    fix = "mend it, or give the field in PRESSRUN_OVERRIDE_GENERATION_CONFIG, or use PRESSRUN_GENERATION_CONFIG=vllm"
    return SettingsError(f"{file}: {what.rstrip('.')}; {fix}")


def _log(fields: dict[str, Any], file: Path | None, override: dict[str, Any]) -> None:
    taken = {
        name: f"{value} ({'override' if name in override else file})"
        for name, value in fields.items()
        if value is not None
    }
    what = ", ".join(f"{name} {value}" for name, value in taken.items())
    log.info("where requests leave it out: %s; PRESSRUN_GENERATION_CONFIG=vllm takes no file", what)
