"""Penalties in an engine and by row: what is noted of a sequence's tokens, by whom, and what it takes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from pressrun.engine import sequence
from pressrun.engine.allowed import Allowed
from pressrun.engine.penalties import Penalties, mark_bytes
from pressrun.engine.request import Request, SamplingParams
from pressrun.engine.sampling import Drawing, Drawn, Sampler
from pressrun.kernels.compiling import compiling

EOS = 5
ASKED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.6, "frequency_penalty": 0.2},
    {"repetition_penalty": 0.8, "frequency_penalty": -0.5, "logprobs": 2},
    {"repetition_penalty": 1.2, "bad_words_token_ids": ((7, 8), (9,))},
    {"presence_penalty": 1.0, "logit_bias": ((3, 1.5),), "min_tokens": 50},
    {"min_tokens": 50, "frequency_penalty": 0.7},
    {"min_tokens": 50},
    {"allowed_token_ids": (20, 21, 22)},
    {},
]


def opened(
    sampler: Sampler, asked: list[dict[str, Any]], prompt: list[int], generated: list[int]
) -> np.ndarray[Any, Any]:
    """A row for each, with the same tokens."""
    sequences = []
    for row, fields in enumerate(asked):
        params = SamplingParams(**{"max_tokens": 99, "temperature": 0.0, **fields})
        request = Request(id=str(row), prompt=prompt, params=params)
        made = sequence.Sequence(request=request, seed=row, tokens=np.array(prompt + generated, np.int32))
        made.row = row
        sequences.append(made)
    sampler.open(sequences)
    return np.arange(len(asked))


def step(sampler: Sampler, logits_SV: Tensor, rows: np.ndarray[Any, Any], allowed: Allowed | None = None) -> Tensor:
    device = logits_SV.device
    positions = np.full(len(rows), 12)
    tokens_S = sampler.draw(logits_SV, torch.from_numpy(rows).to(device), torch.from_numpy(positions).to(device))
    drawing = Drawing(lines_D=np.arange(len(rows)), rows_D=rows, positions_D=positions)
    sampler.amend(Drawn(logits_SV=logits_SV, tokens_S=tokens_S), drawing, allowed)
    return tokens_S


def sampler_for(num_rows: int, vocab_size: int, device: str = "cpu", max_len: int = 99) -> Sampler:
    return Sampler(num_rows, vocab_size, max_len, (EOS,), torch.device(device))


def words(lines: list[list[int]], vocab_size: int) -> Tensor:
    """The bits of some tokens for each line."""
    bits = np.zeros((len(lines), -(-vocab_size // 32) * 32), np.uint8)
    for line, tokens in enumerate(lines):
        bits[line, tokens] = 1
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32))


def test_repetition_in_a_crowded_engine_is_as_in_transformers(tiny: Path, make_engine: Any, ask: Any) -> None:
    """Preempted and admitted again: what was noted before is noted again."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    draw = random.Random(3)
    requests = [
        ask(
            [draw.randrange(3, 256) for _ in range(draw.choice([3, 20, 40]))],
            id=str(i),
            max_tokens=40,
            ignore_eos=True,
            repetition_penalty=(1.05, 1.7, 0.9)[i % 3],
        )
        for i in range(12)
    ]
    engine = make_engine(tiny, page_size=4, num_pages=60, crowded=True)
    outputs = engine.finish(requests)
    assert engine.load().num_preemptions > 0
    for request in requests:
        theirs = model.generate(
            torch.tensor([request.prompt]),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=request.params.repetition_penalty,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert outputs[request.id].token_ids == theirs[0, len(request.prompt) :].tolist()


def test_rows_that_ask_for_all_sorts_of_things_draw_in_one_step_what_they_draw_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    together, allowed_by = sampler_for(2 * len(ASKED), 40), [[i, i + 9, 23] for i in range(len(ASKED))]
    rows = opened(together, ASKED + ASKED, [7, 20, 30], [7, 11, 11])
    alone = [sampler_for(1, 40) for _ in ASKED + ASKED]
    for sampler, fields in zip(alone, ASKED + ASKED, strict=True):
        opened(sampler, [fields], [7, 20, 30], [7, 11, 11])
    # The second half follows grammars, where they leave something to draw.
    strict = [row for row in rows.tolist() if row >= len(ASKED) and "allowed_token_ids" not in (ASKED + ASKED)[row]]
    bits = {row: words([allowed_by[row - len(ASKED)]], 40) for row in strict}
    for _ in range(15):
        logits_SV = torch.randn(len(rows), 40, generator=generator)
        allowed = Allowed(indices_n=np.array(strict), words_nW=torch.cat(list(bits.values())))
        tokens_S = step(together, logits_SV.clone(), rows, allowed)
        for row, sampler in enumerate(alone):
            mine = Allowed(indices_n=np.zeros(1, np.int64), words_nW=bits[row]) if row in bits else None
            assert step(sampler, logits_SV[row : row + 1].clone(), np.zeros(1, np.int64), mine) == tokens_S[row], row


def test_a_step_by_itself_draws_nothing_for_rows_that_are_drawn_behind_it() -> None:
    sampler = sampler_for(2, 10)
    opened(sampler, [{"repetition_penalty": 1.1}, {}], [1], [])
    logits_SV = torch.arange(10.0).repeat(2, 1)
    assert sampler.draw(logits_SV, torch.arange(2), torch.tensor([1, 1])).tolist() == [0, 9]


@pytest.mark.parametrize(("max_len", "dtype"), [(32767, torch.int16), (40000, torch.int32)])
def test_counts_are_exact_up_to_the_longest_sequence(max_len: int, dtype: torch.dtype) -> None:
    sampler = sampler_for(1, 10, max_len=max_len)
    num_times = max_len - 3
    rows = opened(sampler, [{"frequency_penalty": 0.125}], [1], [4] * num_times)
    assert sampler._penalties.rows.counts_CV.dtype == dtype
    for more in range(2):
        # The other token is likelier by less than what one count more takes.
        logits_SV = torch.zeros(1, 10)
        logits_SV[0, 4] = 0.125 * (num_times + more) + 0.0625
        assert step(sampler, logits_SV, rows).tolist() == [4]
    logits_SV[0, 4] = 0.125 * (num_times + 2) - 0.0625
    assert step(sampler, logits_SV, rows).tolist() == [0]


def test_only_frequency_takes_counts_and_gives_them_back() -> None:
    penalties = Penalties(6, 1000, 99, torch.device("cpu"))
    assert penalties.rows.marks_RM.nbytes == 7 * mark_bytes(1000)

    def open(row: int, **fields: float) -> None:
        request = Request(id="a", prompt=[1], params=SamplingParams(max_tokens=9, **fields))  # type: ignore[arg-type]
        made = sequence.Sequence(request=request, seed=0, tokens=np.array([1, 2], np.int32))
        made.row = row
        penalties.open(made, row)

    for row in range(6):
        open(row, repetition_penalty=1.1, presence_penalty=1.0)
    assert len(penalties.rows.counts_CV) == 0
    for _ in range(3):
        for row in range(6):
            open(row, frequency_penalty=1.0)
    assert len(penalties.rows.counts_CV) == 6
    assert sorted(penalties.rows.slots_R[:6].tolist()) == list(range(6))
    open(2)
    assert penalties.rows.slots_R[2] == -1
    assert penalties.rows.strengths_R3[2].tolist() == [0, 0, 1]


@pytest.mark.parametrize("most", [4, 6])
def test_counts_of_who_has_left_serve_others_where_there_is_no_memory_for_more(
    most: int, tiny: Path, make_engine: Callable[..., Any], ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow = Penalties._grow

    def grow_a_little(self: Penalties, more: int) -> None:
        if len(self.rows.counts_CV) + more > most:
            raise torch.OutOfMemoryError("no memory for more counts")
        grow(self, more)

    monkeypatch.setattr(Penalties, "_grow", grow_a_little)
    monkeypatch.setattr("pressrun.engine.penalties.FEW_SLOTS", most // 2)
    engine = make_engine(tiny, page_size=4, num_pages=256, max_num_seqs=8)
    options = {"max_tokens": 3, "ignore_eos": True, "frequency_penalty": 0.5}
    first = [ask([5 + i, 6, 7], id=f"first{i}", **options) for i in range(most)]
    plain = [ask([50 + i, 6, 7], id=f"plain{i}", max_tokens=12, ignore_eos=True) for i in range(8 - most)]
    engine.finish([*first, *plain])
    sizes = engine.load().num_rows
    assert len(engine.finish([ask([9, 8, 7], id=f"last{i}", **options) for i in range(most)])) == most
    assert engine.load().num_rows == sizes
    # One more at a time than there are counts for: fewer run at once from then on, and all are answered.
    assert len(engine.finish([ask([9, 8, 7], id=f"more{i}", **options) for i in range(8)])) == 8
    assert engine.load().num_rows <= most


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run on a machine with one")
    return "cuda"


@pytest.mark.gpu
def test_on_a_gpu_penalties_are_the_same_and_wait_for_nothing(cuda: str) -> None:
    generator = torch.Generator().manual_seed(2)
    here, there = sampler_for(len(ASKED), 1000), sampler_for(len(ASKED), 1000, cuda)
    rows = opened(here, ASKED, [7, 20, 30], [7, 11, 11])
    logits = [torch.randn(len(ASKED), 1000, generator=generator) for _ in range(20)]
    on_gpu = [x.cuda() for x in logits]
    opened(there, ASKED, [1], [2])
    rows_S, positions_S = torch.arange(len(ASKED)).cuda(), torch.full((len(ASKED),), 12).cuda()
    drawing, found = Drawing(lines_D=rows, rows_D=rows, positions_D=np.full(len(rows), 12)), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That it does not find every wait.
        torch.cuda.set_sync_debug_mode("error")
    try:
        opened(there, ASKED, [7, 20, 30], [7, 11, 11])
        for logits_SV in on_gpu:
            drawn = Drawn(logits_SV=logits_SV, tokens_S=there.draw(logits_SV, rows_S, positions_S))
            there.amend(drawn, drawing)
            found.append(drawn.tokens_S)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for logits_SV, tokens_S in zip(logits, found, strict=True):
        assert tokens_S.tolist() == step(here, logits_SV, rows).tolist()


@pytest.fixture
def compiled() -> Iterator[list[object]]:
    """What Triton compiles."""
    triton = pytest.importorskip("triton", reason="triton has no build for this platform")
    found: list[object] = []
    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = lambda **what: found.append(what["src"])
    yield found
    triton.knobs.compilation.listener = before


@pytest.mark.gpu
def test_all_that_rows_can_ask_for_is_compiled_ahead(cuda: str, compiled: list[object]) -> None:
    vocab_size = 1234
    sampler = sampler_for(len(ASKED), vocab_size, cuda)
    with compiling(torch.device(cuda)):
        sampler.warm_up(torch.bfloat16)
    logits_SV = torch.zeros(len(ASKED), vocab_size, dtype=torch.bfloat16, device=cuda)
    rows = opened(sampler, ASKED, [7], [])
    rows_S, positions_S = (torch.arange(len(ASKED), dtype=torch.int32, device=cuda) for _ in range(2))
    tokens_S = sampler.draw(logits_SV, rows_S, positions_S)
    num_before = len(compiled)
    assert num_before == 6  # Draws again, and the step's own draw.
    drawing = Drawing(lines_D=rows, rows_D=rows, positions_D=np.full(len(rows), 3))
    # Allowed ids leave nothing beside a grammar.
    strict = np.flatnonzero(["allowed_token_ids" not in fields for fields in ASKED])
    some = Allowed(indices_n=strict, words_nW=words([list(range(30))] * len(strict), vocab_size).cuda())
    for allowed in (None, some):
        sampler.amend(Drawn(logits_SV=logits_SV, tokens_S=tokens_S), drawing, allowed)
    assert len(compiled) == num_before
