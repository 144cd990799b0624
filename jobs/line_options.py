"""What a line of a batch file may ask of Pressrun itself, in an object `pressrun` beside its `custom_id` and `body`.

Knows nothing of how it is done.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .invalid import user_error


class LineOptions(BaseModel):
    """After `timeout_s` seconds in the engine a line is given up; None: as the service has it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    timeout_s: float | None = Field(None, gt=0, allow_inf_nan=False)


class _Envelope(BaseModel):
    """So that errors name the whole path."""

    pressrun: LineOptions | None = None


NONE = LineOptions(timeout_s=None)


def line_options(given: object) -> LineOptions:
    """The options in `given`, the value of a line's `pressrun`. Raises UserError that names the field and the fix."""
    if given is None:
        return NONE
    try:
        return _Envelope.model_validate({"pressrun": given}).pressrun or NONE
    except ValidationError as error:
        raise user_error(error.errors(include_url=False)) from error
