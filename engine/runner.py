"""Runs planned steps on a device, whose rows hold what is known of each running sequence.

Page tables, sampling parameters and the tokens drawn last stay on the device by row; a step applies what has changed
and finds what the step before drew where that left it. `launch` does not wait for the device, and what a step drew is
taken later from the flight that it returned. Knows nothing of why a step is as it is.

R rows, N pages a row can hold; S rows of a step, T tokens, D of the rows draw, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.compiling import compiling
from ..kernels.paged_attention import SharedPrefixes, find_prefills
from ..kernels.step_inputs import StepInputs, step_inputs
from .allowed import Allowed
from .errors import OutOfMemory
from .graphs import StepGraphs, gpu_milliseconds
from .models.base import KVPages, Model, StepTensors
from .pages import IntArray
from .parts import Between, before_layers
from .plan import Plan
from .pooling import FloatArray, Pooled, Pooler, Pooling
from .prefixes import NUM_LEVELS, all_share_a_page, shared_prefixes
from .prompt_logprobs import Scoring, score
from .request import TokenLogprob
from .sampling import AskedLogprobs, Drawing, Drawn, Sampler
from .shapes import Shape
from .transfer import Download, upload

# Sequences of a step that is launched between the parts of another.
URGENT_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The tokens that a plan's drawing rows drew, in their order, and what else was asked, by place among them."""

    tokens: IntArray
    logprobs: dict[int, TokenLogprob]
    scores: list[npt.NDArray[Any]]  # of prompts, as `prompt_logprobs.py` has them
    pooled: dict[int, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """What a step leaves on the device beside its draws: the scores of prompts, and hidden states that were pooled."""

    scoring: Scoring | None
    scores: list[Tensor] = field(default_factory=list)
    pooled: Pooled | None = None

    @property
    def tensors(self) -> list[Tensor]:
        return self.scores if self.pooled is None else [*self.scores, self.pooled.vectors_nE]

    def read(self, values: list[npt.NDArray[Any]]) -> tuple[list[npt.NDArray[Any]], dict[int, FloatArray]]:
        """Scores, and pooled states by index into the drawing rows; `values` are the tensors, once they are here."""
        return values[: len(self.scores)], {} if self.pooled is None else self.pooled.read(values[-1])


class Flight:
    """A step under way: `draw` begins what is left to do, once, and `results` waits for its end."""

    def __init__(self, sampler: Sampler, drawn: Drawn, drawing: Drawing, more: More) -> None:
        self._sampler, self._drawn, self._drawing = sampler, drawn, drawing
        self._more = more
        self._download: Download | None = None
        self._logprobs: AskedLogprobs | None = None

    @property
    def scoring(self) -> Scoring | None:
        """Which tokens of prompts it scores."""
        return self._more.scoring

    @property
    def draws(self) -> bool:
        """Whether `draw` was called."""
        return self._download is not None

    @torch.inference_mode()
    def draw(self, allowed: Allowed | None = None) -> None:
        """Draw for the rows that ask for more than a step computes by itself. Raises OutOfMemory as `launch` does.

        Before the next step is launched, because that overwrites what this one has left.
        """
        with out_of_memory(f"drawing for {len(self._drawing.rows_D)} sequences"):
            logprobs = self._logprobs = self._sampler.amend(self._drawn, self._drawing, allowed)
            asked = [] if logprobs is None else logprobs.tensors
            self._download = Download([self._drawn.tokens_S, *self._more.tensors, *asked])

    @property
    def is_done(self) -> bool:
        """Whether `results` would not have to wait."""
        return self._download is not None and self._download.is_there

    def wait(self) -> None:
        """Wait for the step to end."""
        assert self._download is not None, "a step ends only after it has drawn"
        self._download.wait()

    def results(self) -> Results:
        """What it drew; waits for it."""
        assert self._download is not None, "a step ends only after it has drawn"
        tokens_S, *others = self._download.wait()
        num_more = len(self._more.tensors)
        scores, pooled = self._more.read(others[:num_more])
        tokens_D = tokens_S[self._drawing.lines_D]
        logprobs = {} if self._logprobs is None else self._logprobs.read(tokens_D, others[num_more:])
        return Results(tokens=tokens_D, logprobs=logprobs, scores=scores, pooled=pooled)


class Runner:
    """Owns the device side of the rows; `launch` starts one plan."""

    def __init__(
        self,
        *,
        model: Model,
        kv: KVPages,
        sampler: Sampler,
        num_rows: int,
        max_len: int,
        page_size: int,
        device: torch.device,
        num_graphed_tokens: int,
        num_urgent_tokens: int,
        pooling: Pooling | None = None,
    ) -> None:
        self._model, self._kv, self._sampler = model, kv, sampler
        self._page_size, self._device, self._max_len = page_size, device, max_len
        self._pooler = Pooler(num_rows, pooling, device)
        num_columns = -(-max_len // page_size)
        # As in the sampler, the last row is nobody's.
        self._page_table_RN = torch.zeros(num_rows + 1, num_columns, dtype=torch.int32, device=device)
        self._graphs: StepGraphs | None = None
        # Of small steps that are launched between the parts of others: what those leave must stay.
        self._urgent_graphs: StepGraphs | None = None
        if num_graphed_tokens:
            num_layers = len(kv.keys)
            self._graphs = StepGraphs(model.new_logits(num_rows), num_graphed_tokens, num_layers)
            urgent_rows = min(URGENT_ROWS, num_rows)
            self._urgent_graphs = StepGraphs(model.new_logits(urgent_rows), num_urgent_tokens, num_layers)

    @torch.inference_mode()
    def warm_up(self, *, num_paced_tokens: int, shares_reading: bool) -> None:
        """Compile, load and capture what steps would wait for later: decodes of every size, and paced mixed steps.

        Before any page is owned, because it writes to page 0.
        """
        graphs, urgent = self._graphs, self._urgent_graphs
        if graphs is None or urgent is None:
            return
        # The largest first: the others then find memory enough in the graphs' pool.
        decodes = [graphs.shapes.decodes(size) for size in reversed(graphs.shapes.sizes)]
        paced, doubling = graphs.shapes.paced(num_paced_tokens), urgent.shapes.doubling()
        self._compile(graphs, [*decodes, *paced, *_once(graphs, shares_reading), *_most_rows(graphs, shares_reading)])
        self._compile(urgent, doubling)
        self._warm_up(graphs, decodes, num_times=2)
        graphs.drop_slow_sizes()
        self._warm_up(graphs, paced, num_times=2)
        self._warm_up(urgent, doubling, num_times=2)
        # Few rows and many run different kernels, and so do prefills; which of these shapes are worth capturing, only
        # work will tell.
        self._warm_up(graphs, _once(graphs, shares_reading), num_times=1)
        self._warm_up(graphs, _most_rows(graphs, shares_reading), num_times=2)

    def _compile(self, graphs: StepGraphs, shapes: Sequence[Shape]) -> None:
        """What steps of these shapes launch, and draws that are made again."""
        with compiling(self._device):
            self._sampler.warm_up(self._model.new_logits(1).dtype)
            for shape in self._possible(shapes):
                graphs.compute(shape, self._fill_in(graphs, shape), self._compute)

    @torch.inference_mode()
    def spared_tokens_worth_sharing(self) -> int | None:
        """How many tokens' keys and values are read in the time that a level of sharing costs; None if not measured.

        What it costs is what a step of most rows takes longer that share one page; reading is as fast as copying.
        """
        if self._graphs is None:
            return None
        alone, shared = (self._milliseconds(self._graphs, num_levels) for num_levels in (0, 1))
        if alone is None or shared is None:
            return None
        keys, values = self._kv.keys, self._kv.values
        copying = gpu_milliseconds(lambda: values[0].copy_(keys[0]))
        tokens_copied = keys[0].shape[0] * self._page_size / len(keys)
        return int(max(0.0, shared - alone) / copying * tokens_copied)

    def _milliseconds(self, graphs: StepGraphs, num_levels: int) -> float | None:
        shape = graphs.shapes.decodes(graphs.shapes.sizes[-1], num_levels)
        self._fill_in(graphs, shape)
        return graphs.milliseconds(shape)

    def _warm_up(self, graphs: StepGraphs, shapes: Sequence[Shape], *, num_times: int) -> None:
        """Run steps of these shapes, each with its tokens shared out among its rows."""
        for shape in self._possible(shapes):
            for _ in range(num_times):
                graphs.run(shape, self._fill_in(graphs, shape), self._compute)

    def _possible(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Those whose tokens no row is too short for."""
        return [shape for shape in shapes if -(-shape.num_tokens // shape.num_rows) <= self._max_len]

    def _fill_in(self, graphs: StepGraphs, shape: Shape) -> StepInputs:
        """The inputs of a step of exactly this shape, all of row 0, whose rows share a page on each level."""
        starts = np.arange(shape.num_rows + 1) * shape.num_tokens // shape.num_rows
        rows, token_ids = np.zeros(shape.num_rows, np.int64), np.zeros(shape.num_tokens, np.int64)
        shared = all_share_a_page(shape.num_rows, shape.num_levels).words(self._page_size, shape.num_rows)
        *sent, shared_words = _send([rows, rows, starts, token_ids, shared], self._device)
        inputs = graphs.inputs(shape, shared_words)
        self._fill(sent, inputs)
        return inputs

    @torch.inference_mode()
    def launch(
        self, plan: Plan, scoring: Scoring | None = None, *, between: Between | None = None, urgent: bool = False
    ) -> Flight:
        """Start computing the planned tokens and, by their flight's `draw`, the next of the rows that reach their end.

        With `between` the step is launched in parts; what is `urgent` may then be launched between two of them.
        Raises OutOfMemory; the plan's sequences must then be admitted anew.
        """
        with out_of_memory(f"a step of {len(plan.token_ids)} tokens in {len(plan.rows)} sequences"):
            return self._launch(plan, scoring, between, self._urgent_graphs if urgent else self._graphs)

    def _launch(
        self, plan: Plan, scoring: Scoring | None, between: Between | None, graphs: StepGraphs | None
    ) -> Flight:
        self._sampler.open(plan.admitted)
        self._pooler.open(plan.admitted)
        step = [plan.rows, plan.starts, np.append(0, np.cumsum(plan.lengths)), plan.token_ids]
        shared = np.zeros(0, np.int64) if plan.sharing is None else plan.sharing.words(self._page_size, len(plan.rows))
        changes = [plan.table_rows, plan.table_columns, plan.table_pages]
        sent = _send([*step, shared, *changes], self._device)
        if len(plan.table_rows):
            self._page_table_RN[sent[5], sent[6]] = sent[7]
        more = More(scoring=scoring)
        if scoring is None and not self._pooler.asks(plan.rows):
            drawn = self._forward(plan, sent[:4], sent[4], between, graphs).narrowed(len(plan.rows))
        else:
            drawn, more = self._forward_for_more(plan, sent[:4], sent[4], scoring, between)
        lines_D = np.flatnonzero(plan.draws)
        ends_D = (plan.starts + plan.lengths)[lines_D]
        drawing = Drawing(lines_D=lines_D, rows_D=plan.rows[lines_D], positions_D=ends_D)
        return Flight(self._sampler, drawn, drawing, more)

    def _forward(
        self, plan: Plan, sent: Sequence[Tensor], shared: Tensor, between: Between | None, graphs: StepGraphs | None
    ) -> Drawn:
        """What follows every row's last token, padded rows behind them. Rows that are not at their end draw in vain."""
        num_rows, num_tokens = len(plan.rows), len(plan.token_ids)
        num_levels = 0 if plan.sharing is None else len(plan.sharing.levels)
        if graphs is not None and (shape := graphs.shape(num_tokens, num_rows, num_levels)) is not None:
            inputs = graphs.inputs(shape, shared)
            self._fill(sent, inputs)
            return graphs.run(shape, inputs, self._compute, between)
        inputs = StepInputs.empty(num_tokens, num_rows, self._device)
        self._fill(sent, inputs)
        prefixes, longest = shared_prefixes(shared, num_levels), int(plan.lengths.max())
        return self._compute(inputs, prefixes, longest, before_layer=before_layers(between))

    def _forward_for_more(
        self, plan: Plan, sent: Sequence[Tensor], shared: Tensor, scoring: Scoring | None, between: Between | None
    ) -> tuple[Drawn, More]:
        """The same, never captured, with the hidden states of more tokens than the last ones."""
        num_rows, num_tokens = len(plan.rows), len(plan.token_ids)
        inputs = StepInputs.empty(num_tokens, num_rows, self._device)
        self._fill(sent, inputs)
        levels = shared_prefixes(shared, 0 if plan.sharing is None else len(plan.sharing.levels))
        pools, nothing = self._pooler.asks(plan.rows), np.zeros(0, np.int64)
        every_T = np.arange(num_tokens) if pools and self._pooler.needs_all else nothing
        lines, targets = (nothing, nothing) if scoring is None else (scoring.lines_P, scoring.targets_P)
        lines_P, targets_P, every = _send([lines, targets, every_T], self._device)
        wanted = replace(inputs, last_Q=torch.cat([inputs.last_Q, lines_P, every]))
        hidden = self._hidden(wanted, levels, int(plan.lengths.max()), before_layers(between))
        hidden_SE, hidden_PE, hidden_TE = torch.split(hidden, [num_rows, len(lines_P), len(every)])
        scores: list[Tensor] = []
        if scoring is not None:
            scores = score(self._model.logits, hidden_PE, targets_P, scoring.num_top)
        pooled = self._pooler.pool(plan, hidden_TE if len(every) else hidden_SE) if pools else None
        return self._drawn(hidden_SE, inputs), More(scoring=scoring, scores=scores, pooled=pooled)

    def _fill(self, sent: Sequence[Tensor], inputs: StepInputs) -> None:
        rows_S, starts_S, query_starts_S1, given_ids_T = sent
        step_inputs(
            rows_S,
            starts_S,
            query_starts_S1,
            given_ids_T,
            self._page_table_RN,
            self._sampler.drawn_R,
            self._page_size,
            inputs,
        )

    def _compute(
        self,
        inputs: StepInputs,
        shared: SharedPrefixes,
        max_query_len: int | None,
        out: Drawn | None = None,
        before_layer: Callable[[int], None] | None = None,
    ) -> Drawn:
        return self._drawn(self._hidden(inputs, shared, max_query_len, before_layer), inputs, out)

    def _hidden(
        self,
        inputs: StepInputs,
        shared: SharedPrefixes,
        max_query_len: int | None,
        before_layer: Callable[[int], None] | None,
    ) -> Tensor:
        step = StepTensors(
            positions=inputs.positions_P,
            slots=inputs.slots_P,
            page_table=self._page_table_RN,
            rows=inputs.rows_Q,
            query_starts=inputs.query_starts_Q1,
            context_lens=inputs.context_lens_Q,
            last=inputs.last_Q,
            max_query_len=max_query_len,
            shared=shared if shared.levels else None,
            prefills=None if max_query_len == 1 else find_prefills(inputs.query_starts_Q1),
            before_layer=before_layer,
        )
        return self._model.forward(inputs.token_ids_P, step, self._kv)

    def _drawn(self, hidden_SE: Tensor, inputs: StepInputs, out: Drawn | None = None) -> Drawn:
        logits_SV = self._model.logits(hidden_SE, None if out is None else out.logits_SV)
        tokens_S = self._sampler.draw(
            logits_SV, inputs.rows_Q, inputs.context_lens_Q, None if out is None else out.tokens_S
        )
        return Drawn(logits_SV=logits_SV, tokens_S=tokens_S)


def _once(graphs: StepGraphs, shares_reading: bool) -> list[Shape]:
    """On each level of sharing a decode and a prefill of the fewest rows."""
    fewest = graphs.shapes.sizes[0]
    few = [(graphs.shapes.decodes(fewest, num), graphs.shapes.exact(2, 1, num)) for num in _levels(shares_reading)]
    return [shape for pair in few for shape in pair if shape is not None]


def _most_rows(graphs: StepGraphs, shares_reading: bool) -> list[Shape]:
    """On each level of sharing the largest decode."""
    return [graphs.shapes.decodes(graphs.shapes.sizes[-1], num) for num in _levels(shares_reading)]


def _levels(shares_reading: bool) -> range:
    return range(1 + NUM_LEVELS * shares_reading)


@contextmanager
def out_of_memory(what: str) -> Iterator[None]:
    """torch's error as ours."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        torch.cuda.empty_cache()
        raise OutOfMemory(f"{what}: {e}") from e


def _send(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> Sequence[Tensor]:
    """The arrays as int32 on the device, by one copy.

    Each begins at a multiple of 16 bytes, because Triton compiles a kernel anew for pointers that do not.
    """
    sizes = [-(-len(array) // 4) * 4 for array in arrays]
    starts = np.cumsum([0, *sizes]).tolist()
    words = np.zeros(starts[-1], np.int32)
    for array, start in zip(arrays, starts, strict=False):
        words[start : start + len(array)] = array
    sent = upload(words, device)
    return [sent[start : start + len(array)] for array, start in zip(arrays, starts, strict=False)]
