"""Doing once what a client asks twice: of the requests under one idempotency key, one creates an object.

The object's id is written under the key before the object is created, and to create it under an id that is there
already changes nothing. So a process may die anywhere, or stall and wake: whoever comes next with the key goes on with
the same id. A request that is refused leaves its key free. Keys are the tenant's own, and are kept for a day.

| key | what |
|---|---|
| `pressrun:once:{tenant}:{sha256 of the key}` | what was asked, the object's id, and who is at it until when |

Knows nothing of HTTP and of what is created.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from .backend import Backend
from .errors import Conflict, InProgress, NotFound, UserError
from .ids import owner_id

T = TypeVar("T")
KEEP_S = 86400
# After so long without an end, whoever is at it is taken for dead. If it is not, two create the same object, once.
LEASE_S = 10
MAX_KEY = 255


class Once:
    """The requests of one tenant under one idempotency key (None: every request stands for itself)."""

    def __init__(self, backend: Backend, *, tenant: str, key: str | None) -> None:
        if key is not None and not 1 <= len(key) <= MAX_KEY:
            message = f"An Idempotency-Key has 1 to {MAX_KEY} characters, not {len(key)}."
            raise UserError(message, param="Idempotency-Key", code="invalid_value")
        self.key = key
        self._backend = backend
        self._owner = owner_id()
        self._record = f"pressrun:once:{tenant}:{_sha256(key or '')}"

    def do(
        self,
        request: Callable[[], object],
        *,
        new_id: Callable[[], str],
        find: Callable[[str], T],
        create: Callable[[str], T],
    ) -> tuple[T, bool]:
        """The object that `create` makes under an id, and whether it was there before. `request` gives what
        is asked, as JSON.

        `find` raises NotFound where there is none under an id. Raises Conflict where the key stands for another
        request, and InProgress while another process serves this one.
        """
        if self.key is None:
            return create(new_id()), False
        state, object_id = self._open(_sha256(json.dumps(request(), sort_keys=True)), new_id())
        if state == "done":
            return find(object_id), True
        try:
            return self._go_on(state, object_id, find, create)
        except UserError:
            # Who began it before may be stalled and not dead: the next must go on with the same id then.
            self._settle("refused" if state == "first" else "broken")
            raise
        except Exception:
            self._settle("broken")
            raise

    def _go_on(
        self, state: str, object_id: str, find: Callable[[str], T], create: Callable[[str], T]
    ) -> tuple[T, bool]:
        found = _found(find, object_id) if state == "again" else None
        if found is not None:
            self._backend.store.make_durable()  # Whoever created it may have died before that.
        made = create(object_id) if found is None else found
        self._settle("done")
        return made, found is not None

    def _open(self, request: str, fresh_id: str) -> tuple[Literal["first", "again", "done"], str]:
        args: list[Any] = [request, fresh_id, self._owner, LEASE_S, KEEP_S]
        state, object_id = (raw.decode() for raw in self._backend.store.scripts["once"](keys=[self._record], args=args))
        if state == "other":
            message = "This Idempotency-Key was used for another request; use a new one for a new request."
            raise Conflict(message, param="Idempotency-Key", code="idempotency_key_reused")
        if state == "busy":
            message = "A request with this Idempotency-Key is being served. Try again shortly for its answer."
            raise InProgress(message, param="Idempotency-Key", code="idempotency_key_in_use")
        return state, object_id

    def _settle(self, how: Literal["done", "refused", "broken"]) -> None:
        self._backend.store.scripts["once_settle"](keys=[self._record], args=[self._owner, how])


def _found(find: Callable[[str], T], object_id: str) -> T | None:
    try:
        return find(object_id)
    except NotFound:
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
