"""A line on its way, and the run that answers it: one run for all lines of a batch that ask the same.

Knows nothing of when runs are sent, nor of what becomes of answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..engine.request import Output
from .prompts import Prepared
from .shard import RunningShard
from .twins import Answer, Twin


@dataclass(slots=True, kw_only=True, eq=False)
class Flying:
    """One line. Once it has ended it has the `outputs` of its choices in order, or else the code of an `error`.

    One that `is_twin` was answered by another line's run.
    """

    shard: RunningShard
    prepared: Prepared
    outputs: tuple[Output, ...] = ()
    error: str | None = None
    is_twin: bool = False

    @property
    def interactive(self) -> bool:
        return self.shard.ticket.interactive

    @property
    def twin(self) -> Twin | None:
        """What it has in common with the lines that it may share a run with; None: it runs by itself."""
        batch, digest = self.shard.claim.batch, self.prepared.twin
        # What is run from another copy of its lines is run afresh.
        return None if digest is None or self.interactive else (batch.id, batch.lines_blob, digest)

    def end(self, answer: Answer, *, is_twin: bool) -> None:
        self.outputs, self.error, self.is_twin = answer.outputs, answer.error, is_twin


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """The requests that one line made, for it and for the twins that came meanwhile, in the order of coming.

    What has come back of them so far, and how often the engine died with them alone inside.
    """

    name: str
    prepared: Prepared
    twin: Twin | None
    interactive: bool
    weight: float
    lines: dict[Flying, None] = field(default_factory=dict)
    outputs: dict[int, Output] = field(default_factory=dict)
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

    def take(self, place: int, output: Output) -> bool:
        """Whether the run is complete with this output."""
        self.outputs[place] = output
        return len(self.outputs) == self.prepared.num_choices

    def answer(self) -> Answer:
        return Answer(outputs=tuple(self.outputs[place] for place in range(self.prepared.num_choices)))

    def for_twins(self, answer: Answer) -> Answer:
        """The same for a line that the run was not begun for: nothing of its prompt had to be computed."""
        n, prompts = self.prepared.body.n, self.prepared.prompts
        outputs = (replace(one, num_cached_tokens=len(prompts[i // n])) for i, one in enumerate(answer.outputs))
        return replace(answer, outputs=tuple(outputs))
