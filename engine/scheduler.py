"""Who computes how many tokens in the next step.

There is one kind of step: every running sequence has tokens not yet computed (a whole prompt, the rest of one, or the
token drawn last) and is given some of them out of one budget, in the order of `waiting.py`. A sequence that reaches
its last token draws the next one. When pages run out, the last in that order is preempted: it gives up row and
pages, and starts again later with its generated tokens as part of its prompt.

A plan is a promise: its tokens count as computed at once, so that the next step can be planned while this one runs.
What it draws comes back later, by `record`; until then a sequence has one token whose value only the device knows.

The first in order is never preempted and always fits, so that there is progress whatever the pool's size. A sequence
is admitted only with the pages for all its known tokens, and while the pool is foreseen to hold all that run to their
ends (`forecast.py`).

Knows nothing of tensors, of how tokens are drawn or of why sequences end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from .forecast import FloatArray, LengthForecast, Outlook
from .pacing import paced_tokens
from .pages import IntArray, Match, PagePool
from .plan import Plan, make_plan
from .prefix_cache import PrefixCache
from .prefixes import Sharing, find_sharing
from .request import URGENT
from .rows import Rows
from .sequence import Sequence
from .waiting import Waiting

# Reading so many tokens' keys and values takes longer than a level of sharing, unless it was measured.
MIN_SPARED_TOKENS = 16384
# A sequence's last page is half full on average.
HALF_A_PAGE = 0.5
# Held back from others where urgent sequences are expected, whose steps then have no more than so many tokens.
KEPT_ROWS, KEPT_TOKENS, MOST_TOKENS_BESIDE_URGENT = 4, 4096, 2048


class Scheduler:
    """`plan = schedule()`, run it, `record(plan, tokens)`, then `close` the sequences that have ended.

    One more plan may be made and run before the last one is recorded.
    """

    def __init__(
        self,
        *,
        pool: PagePool,
        rows: Rows,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool,
        shares_reading: bool = False,
        min_spared_tokens: int | None = None,
        min_paced_tokens: int | None = None,
    ) -> None:
        self.pool = pool
        self.rows = rows
        self.num_preemptions = 0
        self.num_prompt_tokens = self.num_cached_tokens = self.num_generated_tokens = 0
        self.max_tokens = max_num_batched_tokens
        self._min_paced_tokens = min_paced_tokens or max_num_batched_tokens
        self.max_running = len(rows.sequences)
        self._cache = PrefixCache(pool, rows, enabled=enable_prefix_caching)
        self._shares = shares_reading
        self._min_spared_tokens = MIN_SPARED_TOKENS if min_spared_tokens is None else min_spared_tokens
        self._waiting = Waiting(rows.page_size, self._expected)
        self._running_S = np.zeros(0, np.int64)  # rows, in order
        self.forecast = LengthForecast()
        # Whether to hold back what urgent sequences will need, and to have steps of which none is long.
        self.expects_urgent = False

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running_S)

    def add(self, sequence: Sequence) -> None:
        self._cache.name(sequence, sequence.tokens)
        self._waiting.add(sequence)

    def close(self, sequences: Iterable[Sequence], *, ended: bool = True) -> None:
        """Forget sequences, running or waiting; their pages are released. Those that `ended` teach the forecast."""
        gone = set(sequences)
        running = [sequence for sequence in gone if sequence.row is not None]
        if len(running) < len(gone):
            self._waiting.remove(gone)
        rows = np.array([self._leave(sequence) for sequence in running], np.int64)
        self._running_S = self._running_S[~np.isin(self._running_S, rows)]
        if ended:
            rows = rows[~self.rows.only_reads_R[rows]]
            self.forecast.learn((self.rows.num_known_R - self.rows.num_prompt_R)[rows])

    def schedule(self) -> Plan | None:
        """Plan the next step, or None if there is nothing to compute before results come back, or at all."""
        budget = self._step_budget()
        admitted = self._admit(budget)
        given_S, grown = self._give(budget)
        taking = given_S > 0
        if not taking.any():
            return None
        sharing, order = self._sharing(self._running_S[taking], given_S[taking])
        rows_S, lengths_S = self._running_S[taking][order], given_S[taking][order]
        admitted = [sequence for sequence in admitted if sequence.row is not None]
        return self._promise(make_plan(self.rows, rows_S, lengths_S, admitted, grown=grown, sharing=sharing))

    def schedule_urgent(self, under_way: Collection[Plan], *, max_rows: int, max_tokens: int) -> Plan | None:
        """Plan a step of urgent sequences alone, to be run in the middle of others; None if there are none that can.

        It computes their prompts, with rows and pages that no step under way has to do with. Who does not fit so gets
        into the next step as everyone does.
        """
        admitted: list[Sequence] = []
        max_tokens = min(max_tokens, self.max_tokens)
        while len(admitted) < max_rows and self._waiting.urgent:
            sequence = self._waiting.first()
            assert sequence is not None
            match = self._cache.match(sequence)
            num_tokens = len(sequence.tokens) - len(match.pages) * self.rows.page_size
            if num_tokens > max_tokens or not self._enter_beside(sequence, match, under_way):
                break
            max_tokens -= num_tokens
            admitted.append(sequence)
        if not admitted:
            return None
        rows_S = np.array([sequence.row for sequence in admitted], np.int64)
        return self._promise(make_plan(self.rows, rows_S, self._wanted(rows_S), admitted))

    def _promise(self, plan: Plan) -> Plan:
        """Its tokens count as computed from now on, and what it draws as drawn."""
        rows = self.rows
        rows.num_computed_R[plan.rows] = plan.starts + plan.lengths
        rows.num_tokens_R[plan.rows[plan.draws]] += 1
        self._cache.publish(plan.rows)
        return plan

    def record(self, plan: Plan, tokens_D: IntArray) -> npt.NDArray[np.bool_]:
        """Note the tokens that the plan's drawing rows drew; say which of them still belong to who drew them."""
        rows, rows_D = self.rows, plan.rows[plan.draws]
        live_D: npt.NDArray[np.bool_] = rows.tenancy_R[rows_D] == plan.tenancies[plan.draws]
        rows_D, tokens_D = rows_D[live_D], tokens_D[live_D]
        rows.token_ids_RL[rows_D, rows.num_known_R[rows_D]] = tokens_D
        rows.num_known_R[rows_D] += 1
        self.num_generated_tokens += len(rows_D) - int(rows.only_reads_R[rows_D].sum())
        self._cache.publish(rows_D)
        return live_D

    def withdraw(self, plan: Plan) -> None:
        """The last step that was planned could not be computed: its sequences wait again. It was urgent ones' first.

        Nobody else has found the pages yet that it was to fill.
        """
        for row in plan.rows.tolist():
            self._preempt(row)
        self.pool.forget_idle()

    def start_over(self, *, max_running: int, max_tokens: int) -> None:
        """A planned step could not be computed: all running sequences wait again, and later steps are smaller.

        What pages hold is not believed any more. Results of a step under way are dropped, and drawn again.
        """
        while self.num_running:
            self._preempt_last()
        self.pool.forget_idle()
        self.max_running, self.max_tokens = max_running, max_tokens

    def check(self) -> None:
        """Raise AssertionError unless rows and page pool agree about every page."""
        live = [row for row, sequence in enumerate(self.rows.sequences) if sequence is not None]
        assert sorted(self._running_S.tolist()) == live, "running rows differ from rows that are owned"
        assert len(live) + self.rows.num_free == len(self.rows.sequences), "owned and free rows are not all rows"
        capacity = self.rows.num_pages_R[live] * self.rows.page_size
        assert (self.rows.num_computed_R[live] <= capacity).all(), "computed tokens lie outside of owned pages"
        self.pool.check(self.rows.pages(row).astype(np.int64) for row in live)

    def _admit(self, budget: int) -> list[Sequence]:
        """Give rows and pages to waiting sequences, in order, preempting those of lower priority if need be."""
        admitted: list[Sequence] = []
        held_back: list[Sequence] = []
        outlook = self._outlook() if self._waiting else None
        while outlook is not None and (sequence := self._waiting.first()) is not None:
            if self._num_wanted_before(sequence) >= budget:
                break
            match = self._cache.match(sequence)
            if self._cache.is_coming(sequence, len(match.pages)):
                held_back.append(self._waiting.pop())
                continue
            growth = self._growth(sequence, match)
            if not self._fits(sequence, match, outlook, growth):
                if not self._could_displace(sequence, match):
                    break
                self._preempt_last()
                outlook = self._outlook()
                continue
            self._waiting.pop()
            outlook.add(*growth)
            self._enter(sequence, match, self.pool.take(match, self._num_new(sequence, match)))
            admitted.append(sequence)
        for sequence in held_back:
            self._waiting.put_back(sequence)
        return admitted

    def _give(self, budget: int) -> tuple[IntArray, tuple[IntArray, IntArray]]:
        """Share the budget out in order; own the pages that it fills.

        Returns the tokens given to each running row, and which (rows, columns) of the page table were added.
        """
        rows, running_S = self.rows, self._running_S
        wanted_S = self._wanted(running_S)
        ahead_S = np.cumsum(wanted_S) - wanted_S
        given_S = np.clip(budget - ahead_S, 0, wanted_S)
        ends_S = rows.num_computed_R[running_S] + given_S
        new_S = np.maximum(-(-ends_S // rows.page_size) - rows.num_pages_R[running_S], 0)
        # Preempting the last leaves what those before it were given as it is.
        while new_S.sum() > self.pool.num_free:
            self._preempt_last()
            new_S = new_S[:-1]
        num_kept = len(new_S)
        running_S, given_S = running_S[:num_kept], given_S[:num_kept]
        table_rows = np.repeat(running_S, new_S)
        nth = np.arange(len(table_rows)) - np.repeat(np.cumsum(new_S) - new_S, new_S)
        table_columns = rows.num_pages_R[table_rows] + nth
        rows.page_table_RN[table_rows, table_columns] = self.pool.grow(len(table_rows))
        rows.num_pages_R[running_S] += new_S
        return given_S, (table_rows, table_columns)

    def _wanted(self, rows_S: IntArray) -> IntArray:
        """How many tokens each row has still to compute. The last token that a sequence draws is never computed."""
        rows = self.rows
        return np.minimum(rows.num_tokens_R[rows_S], rows.limit_R[rows_S] - 1) - rows.num_computed_R[rows_S]

    def _sharing(self, rows_S: IntArray, lengths_S: IntArray) -> tuple[Sharing | None, IntArray]:
        """What the rows share that compute one token, if it is worth it, and an order that has those rows first.

        Else the longest contexts are first, so that attention ends with short work and none is left to end alone.
        """
        one = np.flatnonzero(lengths_S == 1)
        num_full = self.rows.num_computed_R[rows_S[one]] // self.rows.page_size
        longest_first = np.lexsort((-self.rows.num_computed_R[rows_S], lengths_S != 1))
        if not self._shares or len(one) < 2:
            return None, longest_first
        sharing = find_sharing(self.rows.page_table_RN[rows_S[one], : num_full.max()], num_full)
        if sharing is None or sharing.num_spared * self.rows.page_size < len(sharing.levels) * self._min_spared_tokens:
            return None, longest_first
        return sharing, np.concatenate([one[sharing.order], np.flatnonzero(lengths_S != 1)])

    def _step_budget(self) -> int:
        """The most tokens of the next step."""
        most = self.max_tokens
        if self.expects_urgent:
            most = min(most, max(MOST_TOKENS_BESIDE_URGENT, 2 * self.num_running))
        ahead = self._waiting.ahead() if self._min_paced_tokens < self.max_tokens and self.num_running else None
        if ahead is None:
            return most
        num_wanted = int(self._wanted(self._running_S).sum())
        return paced_tokens(ahead, self._remaining(), num_wanted, least=min(self._min_paced_tokens, most), most=most)

    def _remaining(self) -> FloatArray:
        """The tokens that running sequences will probably still generate."""
        rows, running_S = self.rows, self._running_S
        num_tokens_S = rows.num_tokens_R[running_S]
        generated_S, most_S = num_tokens_S - rows.num_prompt_R[running_S], rows.limit_R[running_S] - num_tokens_S
        return self.forecast.remaining(generated_S, most_S, rows.may_end_early_R[running_S])

    def _expected(self, sequences: list[Sequence]) -> FloatArray:
        """The tokens that waiting sequences will probably still generate."""
        counts = [(len(s.tokens), s.num_prompt, s.limit) for s in sequences]
        num_tokens, num_prompt, limit = np.array(counts, np.int64).reshape(-1, 3).T
        may_end_early = np.array([s.may_end_early for s in sequences], np.bool_)
        return self.forecast.remaining(num_tokens - num_prompt, limit - num_tokens, may_end_early)

    def _outlook(self) -> Outlook:
        """What the running sequences will need, if they go on as others have."""
        rows, running_S = self.rows, self._running_S
        num_tokens_S, num_cached_S = rows.num_tokens_R[running_S], rows.num_cached_R[running_S]
        num_own = int((rows.num_pages_R[running_S] - num_cached_S).sum())
        return Outlook(
            self._remaining(),
            num_tokens_S / rows.page_size - num_cached_S + HALF_A_PAGE,
            shared_pages=self.pool.num_pages - self.pool.num_free - num_own,
            page_size=rows.page_size,
        )

    def _growth(self, sequence: Sequence, match: Match) -> tuple[float, float, int]:
        """A waiting sequence's entry in the outlook."""
        remaining = float(self._expected([sequence])[0])
        own_pages = len(sequence.tokens) / self.rows.page_size - len(match.pages) + HALF_A_PAGE
        return remaining, own_pages, match.num_unowned

    def _num_new(self, sequence: Sequence, match: Match) -> int:
        return -(-len(sequence.tokens) // self.rows.page_size) - len(match.pages)

    def _fits(self, sequence: Sequence, match: Match, outlook: Outlook, growth: tuple[float, float, int]) -> bool:
        needed = self._num_new(sequence, match) + match.num_unowned
        kept_rows = kept_pages = 0
        if self.expects_urgent and not sequence.is_urgent and self._runs_others:
            kept_rows = min(KEPT_ROWS, self.max_running // 16)
            kept_pages = min(KEPT_TOKENS // self.rows.page_size, self.pool.num_pages // 16)
        if self.num_running + kept_rows >= self.max_running or needed + kept_pages > self.pool.num_free:
            return False
        return self.num_running == 0 or outlook.peak_with(*growth) <= self.pool.num_pages

    @property
    def _runs_others(self) -> bool:
        """Whether any that is not urgent runs: where none does, nothing is held back from the first, however large."""
        return bool((self.rows.priority_R[self._running_S] >= URGENT).any())

    def _could_displace(self, sequence: Sequence, match: Match) -> bool:
        """Whether it would fit if all running sequences of lower priority were preempted."""
        lower = self.rows.priority_R[self._running_S] > sequence.request.priority
        if not lower.any():
            return False
        victims = self._running_S[lower].tolist()
        num_free = self.pool.num_free + self.pool.num_released(
            np.concatenate([self.rows.pages(row) for row in victims]).astype(np.int64)
        )
        needed = self._num_new(sequence, match) + match.num_unowned
        return needed + self.num_running - len(victims) <= num_free

    def _num_wanted_before(self, sequence: Sequence) -> int:
        """How many tokens running sequences of its priority or a higher one still have to compute."""
        before = self._running_S[self.rows.priority_R[self._running_S] <= sequence.request.priority]
        return int(self._wanted(before).sum())

    def _enter_beside(self, sequence: Sequence, match: Match, under_way: Collection[Plan]) -> bool:
        """Give a sequence a row and pages that no step under way has to do with, if there are such."""
        if self.num_running >= self.max_running or self._cache.is_coming(sequence, len(match.pages)):
            return False
        if not self.rows.set_aside(np.concatenate([plan.rows for plan in under_way])):
            return False
        written = np.concatenate([plan.written for plan in under_way])
        pages = self.pool.take_beside(match, self._num_new(sequence, match), written)
        if pages is None:
            return False
        self._waiting.pop()
        self._enter(sequence, match, pages)
        return True

    def _enter(self, sequence: Sequence, match: Match, pages: IntArray) -> None:
        row = self.rows.open(sequence, pages, len(match.pages))
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = len(match.pages) * self.rows.page_size
            self.num_prompt_tokens += sequence.num_prompt
            self.num_cached_tokens += sequence.num_cached_tokens
        self._cache.entered(sequence, len(match.pages))
        is_last = not self.num_running or self.rows.sequence(int(self._running_S[-1])).order < sequence.order
        self._running_S = np.append(self._running_S, row)
        if not is_last:
            keys = (self.rows.place_R[self._running_S], self.rows.priority_R[self._running_S])
            self._running_S = self._running_S[np.lexsort(keys)]

    def _preempt_last(self) -> None:
        self._preempt(int(self._running_S[-1]))

    def _preempt(self, row: int) -> None:
        sequence = self.rows.sequence(row)
        self._running_S = self._running_S[self._running_S != row]
        self._leave(sequence)
        self._cache.name(sequence, sequence.tokens)
        self._waiting.put_back(sequence)
        self.num_preemptions += 1

    def _leave(self, sequence: Sequence) -> int:
        """Release a running sequence's row and pages; returns the row."""
        row = sequence.row
        assert row is not None
        self._cache.leaves(sequence, row)
        self.pool.release(self.rows.pages(row).astype(np.int64))
        self.rows.close(sequence)
        return row
