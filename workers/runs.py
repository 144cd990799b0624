"""A line on its way, and the run that answers it: one run for all lines of a batch that ask the same.

Knows nothing of when runs are sent, nor of what becomes of answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..engine.request import Output
from .online import OnlineRequest
from .pieces import joined
from .prompts import Prepared
from .shard import RunningShard
from .twins import Answer, Twin

Listener = Callable[[int, Output], None]


@dataclass(slots=True, kw_only=True, eq=False)
class Flying:
    """One line of a shard, or an online request.

    Once it has ended it has the `outputs` of its choices in order, or else the code of an `error`. One that `is_twin`
    was answered by another line's run.
    """

    shard: RunningShard | OnlineRequest
    prepared: Prepared
    outputs: tuple[Output, ...] = ()
    error: str | None = None
    is_twin: bool = False

    @property
    def interactive(self) -> bool:
        return self.shard.interactive

    @property
    def twin(self) -> Twin | None:
        """What it has in common with the lines that it may share a run with; None: it runs by itself."""
        digest = self.prepared.twin
        if digest is None or isinstance(self.shard, OnlineRequest) or self.interactive:
            return None
        batch = self.shard.claim.batch
        # What is run from another copy of its lines is run afresh.
        return batch.id, batch.lines_blob, digest

    @property
    def listener(self) -> Listener | None:
        """Who hears of new tokens at once, with the place of their choice; None: only the whole is wanted."""
        return self.shard.hear if isinstance(self.shard, OnlineRequest) and self.prepared.body.stream else None

    def end(self, answer: Answer, *, is_twin: bool) -> None:
        self.outputs, self.error, self.is_twin = answer.outputs, answer.error, is_twin


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """The requests that one line made, for it and for the twins that came meanwhile, in the order of coming.

    What has come back of them so far, who listens to it, and how often the engine died with them alone inside.
    """

    name: str
    prepared: Prepared
    twin: Twin | None
    interactive: bool
    weight: float
    listener: Listener | None = None
    lines: dict[Flying, None] = field(default_factory=dict)
    outputs: dict[int, Output] = field(default_factory=dict)
    num_ended: int = 0
    deaths_alone: int = 0

    @property
    def ids(self) -> list[str]:
        return [f"{self.name}.{place}" for place in range(self.prepared.num_choices)]

    def take_on(self, flying: Flying) -> None:
        """Answer one more line, which gives up its own copy of what is the same: many may wait for one run."""
        if flying.prepared is not self.prepared:
            line = replace(flying.prepared.line, body=self.prepared.line.body)
            flying.prepared = replace(self.prepared, line=line, timeout_s=flying.prepared.timeout_s)
        self.lines[flying] = None

    @property
    def is_heard(self) -> bool:
        """Whether somebody has heard a part of the answer, which another run might contradict."""
        return self.listener is not None and bool(self.outputs)

    def take(self, place: int, output: Output) -> bool:
        """Whether the run is complete with these new tokens of a choice. Only streams come in several pieces."""
        if self.listener is not None:
            self.listener(place, output)
            output = joined(self.outputs.get(place), output)
        self.outputs[place] = output
        self.num_ended += output.finish_reason is not None
        return self.num_ended == self.prepared.num_choices

    def begin_again(self) -> None:
        """What has come back is of no use."""
        self.outputs.clear()
        self.num_ended = 0

    def answer(self) -> Answer:
        return Answer(outputs=tuple(self.outputs[place] for place in range(self.prepared.num_choices)))

    def for_twins(self, answer: Answer) -> Answer:
        """The same for a line that the run was not begun for: nothing of its prompt had to be computed."""
        n, prompts = self.prepared.body.n, self.prepared.prompts
        outputs = (replace(one, num_cached_tokens=len(prompts[i // n])) for i, one in enumerate(answer.outputs))
        return replace(answer, outputs=tuple(outputs))
