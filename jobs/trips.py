"""Scripts and other commands that go to Redis together, in one round trip.

redis-py asks before every pipeline with scripts in it whether Redis knows them, which is another round trip. Here that
is found out by sending them: those that Redis turns out to have forgotten, because it was started anew, are run one by
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis
from redis.commands.core import Script
from redis.exceptions import NoScriptError


class Trip:
    """Add commands to its `pipe` and scripts by `add`, then `go`. Not a transaction, and for one thread."""

    def __init__(self, redis: Redis) -> None:
        self.pipe = redis.pipeline(transaction=False)
        self._scripts: dict[int, tuple[Script, tuple[Any, ...], tuple[Any, ...]]] = {}

    def add(self, script: Script, *, keys: Iterable[Any], args: Iterable[Any]) -> None:
        keys, args = tuple(keys), tuple(args)
        self._scripts[len(self.pipe)] = script, keys, args
        self.pipe.evalsha(script.sha, len(keys), *keys, *args)

    def go(self) -> Sequence[Any]:
        """The replies in order. Raises the first error among them; the others were done all the same."""
        replies = self.replies()
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def replies(self) -> Sequence[Any]:
        """The replies in order, errors of single commands among them."""
        replies = self.pipe.execute(raise_on_error=False)
        for place, (script, keys, args) in self._scripts.items():
            if isinstance(replies[place], NoScriptError):
                replies[place] = script(keys=keys, args=args)
        return replies
