"""The Idempotency-Key header: a POST that is sent twice creates one object. The rules are `jobs/once.py`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel

from ..jobs.once import Once
from .deps import BackendDep, TenantDep

T = TypeVar("T")
Asked = BaseModel | Callable[[], object]
REPLAYED = "Idempotency-Replayed"
KEY = "Send the same key with a repeated request, and nothing is created twice; kept for 24 hours."


class OncePerKey:
    """Creates what a request asks for, or finds what it created before and says so in a header."""

    def __init__(self, once: Once, path: str, response: Response) -> None:
        self._once = once
        self._path = path
        self._response = response

    def __call__(
        self, asked: Asked, *, new_id: Callable[[], str], find: Callable[[str], T], create: Callable[[str], T]
    ) -> T:
        """The object that `create` makes under an id; `asked` is all that tells this request from others."""
        made, replayed = self._once.do(lambda: [self._path, _plain(asked)], new_id=new_id, find=find, create=create)
        if replayed:
            self._response.headers[REPLAYED] = "true"
        return made


def _plain(asked: Asked) -> object:
    # What is wrong with it is said by who serves it, and better than by a serializer.
    return asked.model_dump(warnings=False) if isinstance(asked, BaseModel) else asked()


def _once(
    request: Request,
    response: Response,
    backend: BackendDep,
    tenant: TenantDep,
    key: Annotated[str | None, Header(alias="Idempotency-Key", description=KEY)] = None,
) -> OncePerKey:
    return OncePerKey(Once(backend, tenant=tenant, key=key), request.url.path, response)


OnceDep = Annotated[OncePerKey, Depends(_once)]
