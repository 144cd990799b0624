"""Every error that Pressrun raises on purpose.

PressrunError
├── SettingsError        a setting is unknown, malformed or contradicts another
├── UserError            what a client sent cannot be served; carries OpenAI's error fields
│   ├── NotFound         404: no object with this id
│   ├── Unauthorized     401: no API key, or one that is not good
│   ├── RateLimited      429: too many requests; later ones will be served
│   ├── Unavailable      503: what it needs is away now; later ones will be served
│   ├── QuotaExceeded    429: the tenant holds as much as it may; trying again does not help
│   └── Conflict         409: the object is not in a state that allows this
│       └── InProgress   the same request is being served right now
├── StoreUnavailable     Redis did not answer, or could not make a write durable
├── BlobsUnavailable     the blob store did not answer, or refused
│   └── BlobForbidden    it answered that these credentials may not do this, or that it cannot
├── BlobMissing          a blob that the store points to is not there
└── BlobExists           there is a blob under a name that was to be new
"""

from __future__ import annotations


class PressrunError(Exception):
    """The root: catch it to catch all that Pressrun raises on purpose."""


class SettingsError(PressrunError):
    """A setting is unknown, malformed or contradicts another."""


class UserError(PressrunError):
    """A request that cannot be served as it was sent, in the fields of OpenAI's error object.

    `status` is the HTTP status; `param` names the offending field; `code` is OpenAI's short name for the case; `kind`
    is its `type`, where the status does not tell it.
    """

    status = 400
    kind: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        if status is not None:
            self.status = status

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body that an OpenAI client expects beside `status`."""
        kind = self.kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class NotFound(UserError):
    """No object with this id."""

    status = 404


class Conflict(UserError):
    """The object is in a state that does not allow this."""

    status = 409


class InProgress(Conflict):
    """Another request with the same idempotency key is being served; trying again finds its answer."""


class Unauthorized(UserError):
    """No API key, or one that is unknown, revoked or expired."""

    status = 401


class RateLimited(UserError):
    """More requests than the tenant may send; from `retry_after_s` on they are served again."""

    status = 429
    kind = "requests"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, code="rate_limit_exceeded")
        self.retry_after_s = retry_after_s


class Unavailable(UserError):
    """What the request needs is away; from `retry_after_s` on it may be there again."""

    status = 503

    def __init__(self, message: str, *, retry_after_s: float, code: str, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_s = retry_after_s


class QuotaExceeded(UserError):
    """The tenant holds as many batches, tokens or bytes as it may."""

    status = 429
    kind = "insufficient_quota"


class StoreUnavailable(PressrunError):
    """Redis did not answer, or could not make a write durable."""


class BlobsUnavailable(PressrunError):
    """The blob store did not answer, or refused."""


class BlobForbidden(BlobsUnavailable):
    """The blob store answered that these credentials may not do this, or that it cannot."""


class BlobMissing(PressrunError):
    """A blob that the store points to is not there."""


class BlobExists(PressrunError):
    """There is a blob under a name that was to be new; it was left as it is."""
