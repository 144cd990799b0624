"""An online request in a worker's hands. Knows nothing of where it came from, nor of how answers travel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..engine.request import Output
from ..jobs.live import Call
from .moments import Moments
from .streaming import AnswerStream


@dataclass(slots=True, kw_only=True, eq=False)
class OnlineRequest:
    """One call. `on_tokens` hears of every piece of a `stream`; after it is `stopped` nobody wants any.

    Of its answer so many messages were made so far.
    """

    call: Call
    on_tokens: Callable[[OnlineRequest, int, Output], None]
    stream: AnswerStream | None = None
    stopped: bool = False
    num_messages: int = 0
    moments: Moments = field(default_factory=Moments)

    @property
    def name(self) -> str:
        """Tells it from another try of the same call."""
        return f"{self.call.id} {self.call.attempt}"

    @property
    def interactive(self) -> bool:
        return True

    @property
    def since(self) -> float:
        """When it came here, by the monotonic clock."""
        return self.moments.taken_at

    def hear(self, place: int, output: Output) -> None:
        """New tokens of the choice at `place`. Returns at once."""
        self.moments.hear([output])
        self.on_tokens(self, place, output)
