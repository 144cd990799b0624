"""The engine: requests in, steps, outputs out.

    plan = scheduler.schedule()
    flight = runner.launch(plan)
    flight.draw(matching.allowed(plan))
    results = flight.results()
    live = scheduler.record(plan, results.tokens)
    outputs, ended = reporter.report(rows, live, results)

With asynchronous scheduling the last three are done while the next step already runs: the device never waits for this
process. A sequence that has drawn its end is then found out one step late, and that step's token of it is dropped.
Where rows follow grammars, a step draws only after the one before has ended: what is allowed depends on what that drew,
and is found out while this step's layers are computed.

While urgent requests come, a step is launched in parts and others' first steps in between (`interludes.py`).

Knows nothing of text but what `decode` tells it for stop strings, and nothing of where requests come from.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable

import numpy as np
import torch

from .config import EngineConfig
from .errors import OutOfMemory
from .grammars import Grammars
from .interludes import LOOK_S, Interludes
from .lifetimes import note_admitted, note_first_tokens
from .loading import load
from .matching import Matching
from .memory import choose_sizes, make_pages
from .pages import IntArray, PagePool
from .parts import Between, Mark
from .plan import Plan
from .pooling import find_pooling
from .prompt_logprobs import PromptLogprobs
from .refusals import HEADLESS, embedding_fault, find_fault
from .reports import Ending, Reporter
from .request import Attend, Load, ModelInfo, Output, Request
from .rows import Rows
from .runner import Flight, Runner
from .sampling import Sampler
from .scheduler import Scheduler
from .sequence import Sequence
from .stops import Decode

log = logging.getLogger(__name__)


class Engine:
    """`add` requests at any time, call `step` while `has_work`, and take the outputs as they come.

    One thread at a time. A request that cannot be served is answered by an output at the next step, alone.
    """

    def __init__(self, config: EngineConfig, decode: Decode | None = None) -> None:
        loaded = load(config)
        self._config, self._decode = config, decode
        self._pooling = find_pooling(config.model, config.pooling)
        self._takes_means = self._pooling is not None and self._pooling.kind == "mean"
        sizes = choose_sizes(config, loaded)
        kv = make_pages(config, loaded, sizes)
        num_rows = sizes.num_rows
        max_len, vocab_size = loaded.max_model_len, loaded.config.vocab_size
        sampler = Sampler(num_rows, vocab_size, max_len, loaded.eos_token_ids, loaded.device)
        self._rows = Rows(num_rows, loaded.max_model_len, sizes.page_size)
        self._runner = Runner(
            model=loaded.model,
            kv=kv,
            sampler=sampler,
            num_rows=num_rows,
            max_len=loaded.max_model_len,
            page_size=sizes.page_size,
            device=loaded.device,
            num_graphed_tokens=sizes.num_graphed_tokens,
            num_urgent_tokens=sizes.num_urgent_tokens,
            pooling=self._pooling,
        )
        on_gpu, windowed = loaded.device.type == "cuda", any(loaded.config.windows)
        shares_reading = config.enable_prefix_caching and on_gpu and not windowed
        try:
            self._runner.warm_up(num_paced_tokens=sizes.num_paced_tokens, shares_reading=shares_reading)
        except torch.OutOfMemoryError as e:
            raise OutOfMemory(
                f"captured steps do not fit beside the KV cache: lower gpu_memory_utilization "
                f"({config.gpu_memory_utilization:g}) or max_num_seqs ({num_rows}), or set enforce_eager"
            ) from e
        self._scheduler = Scheduler(
            pool=PagePool(len(kv.keys[0])),
            rows=self._rows,
            max_num_batched_tokens=sizes.num_step_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
            shares_reading=shares_reading,
            min_spared_tokens=self._runner.spared_tokens_worth_sharing(),
            min_paced_tokens=sizes.num_paced_tokens,
        )
        self._grammars = Grammars(config.model, loaded.eos_token_ids)
        self._matching = Matching(self._grammars, self._rows, loaded.device)
        self._prompt_logprobs = PromptLogprobs(self._rows)
        self._reporter = Reporter(self._rows, loaded.eos_token_ids, decode, self._pooling)
        self._is_async = loaded.device.type == "cuda" if config.async_scheduling is None else config.async_scheduling
        self._interludes = Interludes(self._scheduler, launch=self._launch_urgent, land=self._land)
        self._flying: tuple[Plan, Flight] | None = None
        self._live: dict[str, Sequence] = {}
        self._due: list[Output] = []
        self._num_arrivals = 0
        self.info = ModelInfo(
            max_model_len=loaded.max_model_len,
            vocab_size=loaded.config.vocab_size,
            eos_token_ids=loaded.eos_token_ids,
            num_parameters=loaded.num_parameters,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            embedding_size=loaded.config.hidden_size if self._pooling else 0,
            generates=loaded.generates,
        )

    def add(self, requests: Iterable[Request]) -> None:
        """Take requests in. Their ids must differ from all that are live."""
        requests = list(requests)
        self._interludes.note(requests)
        for request in requests:
            prompt = _token_ids(request.prompt)
            refusal = self._refusal(request, prompt)
            if prompt is None or refusal is not None:
                self._due.append(Output(id=request.id, token_ids=[], finish_reason="error", error=refusal))
                continue
            self._num_arrivals += 1
            sequence = Sequence(
                request=request,
                seed=self._seed(request),
                tokens=prompt.astype(np.int32),
                # A mean is of all tokens, and the cache keeps no hidden states.
                avoids_cache=request.embedding is not None and self._takes_means,
            )
            self._live[request.id] = sequence
            if request.params.grammar is None:
                self._scheduler.add(sequence)
            else:
                self._grammars.compile(sequence)

    def step(self, attend: Attend | None = None) -> list[Output]:
        """Start one step and end one; return what is due: finished sequences, new tokens of streams, refusals, aborts.

        The step that ends is the one before, if scheduling is asynchronous and there was one. While urgent requests
        are expected, `attend` is called again and again with what is due by then; it may add and abort requests.
        """
        self._take_compiled(block=self._only_compiles)
        self._scheduler.expects_urgent = attend is not None and self._interludes.expected
        outputs, self._due = self._due + self._interludes.ended(), []
        plan = self._scheduler.schedule()
        launched = None
        if plan is not None:
            watches = attend is not None and self._interludes.expected
            launched = self._launch(plan, self._watch(plan, attend) if attend is not None and watches else None)
        flying, self._flying = self._flying, launched
        if flying is not None:
            flying[1].wait()
            outputs += self._interludes.ended() + self._land(*flying)
        if launched is not None and not launched[1].draws:
            launched = self._flying = self._draw(*launched)
        if not self._is_async and launched is not None:
            self._flying = None
            outputs += self._land(*launched)
        return outputs

    def abort(self, ids: Iterable[str]) -> None:
        """End requests; each is answered at the next step with what it has. Unknown ids are ignored: they ended."""
        aborted = [self._live[id] for id in set(ids) if id in self._live]
        self._due += [self._reporter.output(sequence, Ending(finish="abort")) for sequence in aborted]
        self._forget(aborted, ended=False)

    def has_work(self) -> bool:
        """Whether a step would do or report anything."""
        return bool(self._live or self._due or self._flying or self._interludes)

    def load(self) -> Load:
        pool = self._scheduler.pool
        return Load(
            num_rows=self._scheduler.max_running,
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + len(self._grammars),
            num_free_pages=pool.num_free,
            num_pages=pool.num_pages,
            page_size=self._rows.page_size,
            num_preemptions=self._scheduler.num_preemptions,
            num_prompt_tokens=self._scheduler.num_prompt_tokens,
            num_cached_tokens=self._scheduler.num_cached_tokens,
            num_generated_tokens=self._scheduler.num_generated_tokens,
        )

    def reset_prefix_cache(self) -> None:
        """Forget the pages that no live sequence owns, so that nothing computed before is reused."""
        self._scheduler.pool.forget_idle()

    def check(self) -> None:
        """Raise AssertionError unless the page pool's books agree with the rows. For tests, after every step."""
        self._scheduler.check()

    def _watch(self, plan: Plan, attend: Attend) -> Between:
        """What to do between the parts of a step: take in the one before, attend, and play who is urgent."""

        def between(mark: Mark) -> None:
            reached = False
            while not reached:
                reached = mark.is_reached
                due, self._due = self._due + self._interludes.ended(), []
                if self._flying is not None and self._flying[1].is_done:
                    flying, self._flying = self._flying, None
                    due += self._land(*flying)
                attend(due)
                self._take_compiled()
                steps = [plan, *([] if self._flying is None else [self._flying[0]])]
                if not self._interludes.play(steps) and not reached:
                    time.sleep(LOOK_S)

        return between

    def _launch_urgent(self, plan: Plan) -> tuple[Plan, Flight] | None:
        """Start a step in the middle of another; None if there is no memory for it, and none is tried again."""
        note_admitted(plan.admitted)
        scoring = self._prompt_logprobs.wanted(plan)
        try:
            flight = self._runner.launch(plan, scoring, urgent=True)
            flight.draw(self._matching.allowed(plan))
        except OutOfMemory as e:
            log.warning("out of memory; from now on urgent requests wait for the next step: %s", e)
            self._scheduler.withdraw(plan)
            self._interludes.forgo()
            return None
        return plan, flight

    def _launch(self, plan: Plan, between: Between | None = None) -> tuple[Plan, Flight] | None:
        """Start a step; None if there is no memory for it, and fewer sequences have to run from now on."""
        note_admitted(plan.admitted)
        scoring = self._prompt_logprobs.wanted(plan)
        try:
            flight = self._runner.launch(plan, scoring, between=between)
            if not self._matching.concerns(plan):
                flight.draw()
        except OutOfMemory as e:
            self._make_do(len(plan.token_ids), len(plan.rows), e)
            return None
        return plan, flight

    def _draw(self, plan: Plan, flight: Flight) -> tuple[Plan, Flight] | None:
        """Have a step draw that had to wait for the one before; None if there is no memory for it."""
        try:
            flight.draw(self._matching.allowed(plan))
        except OutOfMemory as e:
            self._make_do(len(plan.token_ids), len(plan.rows), e)
            return None
        return plan, flight

    @property
    def _only_compiles(self) -> bool:
        """Whether there is nothing to do before a grammar is ready."""
        others = len(self._live) > len(self._grammars) or self._due or self._flying or self._interludes
        return len(self._grammars) > 0 and not others

    def _take_compiled(self, *, block: bool = False) -> None:
        """Take in sequences whose grammars are ready; with `block` wait for one."""
        for compiled in self._grammars.compiled(block=block):
            sequence = compiled.sequence
            if compiled.fault is None:
                self._scheduler.add(sequence)
                continue
            self._due.append(self._reporter.output(sequence, Ending(finish="error", error=compiled.fault)))
            del self._live[sequence.request.id]

    def _make_do(self, num_tokens: int, num_rows: int, error: OutOfMemory) -> None:
        """Have steps of half as many sequences and tokens from now on; raise if that is no step any more."""
        advice = (
            f"lower gpu_memory_utilization ({self._config.gpu_memory_utilization:g}), max_num_seqs "
            f"({len(self._rows.sequences)}) or max_num_batched_tokens"
        )
        if num_tokens == 1:
            raise OutOfMemory(f"not even one token fits beside the KV cache: {advice}; {error}") from error
        max_running, max_tokens = max(1, num_rows // 2), num_tokens // 2
        log.warning(
            "out of memory; from now on a step has at most %d sequences and %d tokens: %s; %s",
            *(max_running, max_tokens, advice, error),
        )
        self._scheduler.start_over(max_running=max_running, max_tokens=max_tokens)

    def _land(self, plan: Plan, flight: Flight) -> list[Output]:
        """Take in what a step drew."""
        results = flight.results()
        if flight.scoring is not None:
            self._prompt_logprobs.take(plan, flight.scoring, results.scores)
        live_D = self._scheduler.record(plan, results.tokens)
        note_first_tokens(self._rows, plan.rows[plan.draws][live_D])
        faults = self._matching.advance(plan, live_D, results.tokens)
        outputs, ended = self._reporter.report(plan.rows[plan.draws], live_D, results, faults)
        self._forget(ended, ended=True)
        return outputs

    def _forget(self, sequences: list[Sequence], *, ended: bool) -> None:
        known = set(sequences) - self._grammars.forget(sequences)
        if known:
            self._scheduler.close(known, ended=ended)
        for sequence in sequences:
            del self._live[sequence.request.id]

    def _seed(self, request: Request) -> int:
        """The request's own, or one of the engine's for this arrival."""
        if request.params.seed is not None:
            return request.params.seed
        name = f"{self._config.seed}:{self._num_arrivals}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())

    def _refusal(self, request: Request, prompt: IntArray | None) -> str | None:
        """Why a request cannot be served, in words; None if it can."""
        params, num_prompt = request.params, len(request.prompt)
        limit = num_prompt + max(1, params.max_tokens)
        if request.id in self._live:
            return f"a request with the id {request.id!r} is running"
        if prompt is None or (num_prompt and not 0 <= prompt.min() <= prompt.max() < self.info.vocab_size):
            return f"the prompt holds something else than token ids from 0 to {self.info.vocab_size - 1}"
        if num_prompt == 0:
            return "the prompt is empty"
        if params.max_tokens < 0:
            return f"max_tokens must be at least 0, not {params.max_tokens}"
        if limit > self.info.max_model_len:
            return (
                f"the prompt's {num_prompt} tokens and max_tokens {params.max_tokens} exceed "
                f"the context length of {self.info.max_model_len}"
            )
        # The last token drawn is never computed.
        pool, page_size = self._scheduler.pool, self._rows.page_size
        if -(-(limit - 1) // page_size) > pool.num_pages:
            return (
                f"the prompt's {num_prompt} tokens and max_tokens {params.max_tokens} exceed "
                f"the KV cache of {pool.num_pages * page_size} tokens"
            )
        if params.stop and self._decode is None:
            return "stop strings need a tokenizer, and the engine was built without one"
        if request.embedding is not None and (why := embedding_fault(request.embedding, self.info)) is not None:
            return why
        if request.embedding is None and not self.info.generates:
            return HEADLESS
        fault = find_fault(params, self.info)
        return None if fault is None else f"{fault.field}: {fault.reason}"


def _token_ids(prompt: Iterable[int]) -> IntArray | None:
    """The prompt as an array; None if it is no list of integers."""
    try:
        array = np.array(prompt)
    except (TypeError, ValueError, OverflowError):
        return None
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        return None
    return array.astype(np.int64)
