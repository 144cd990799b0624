"""Grammars made ready to be followed, by llguidance, beside the steps: compiling may take as long as some of them.

A grammar is compiled once and kept while it is asked for; every sequence gets a copy, its matcher, that has read
nothing yet. Sequences wait here until theirs is made. Knows nothing of steps, of rows or of devices.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GrammarRefused

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from .sequence import Sequence  # It brings numpy, which a worker that only judges grammars does not need.

MOST_KEPT = 64
# A state takes up to 2 KB, and a unit of fuel some 20 ns: no grammar takes all memory, or a thread for long.
MOST_LEXER_STATES, MOST_LEXER_FUEL, MOST_SYMBOLS = 30_000, 2_000_000, 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A sequence whose grammar is ready, or why it cannot be followed."""

    sequence: Sequence
    fault: str | None


class Grammars:
    """`compile` a sequence's grammar, and take it back from `compiled` with its matcher."""

    def __init__(self, folder: Path, eos_token_ids: tuple[int, ...]) -> None:
        self._folder, self._eos_token_ids = folder, eos_token_ids
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._waiting: dict[Sequence, Future[LLMatcher]] = {}

    def __len__(self) -> int:
        """How many sequences wait."""
        return len(self._waiting)

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer, for whoever has a matcher already."""
        assert self._tokenizer is not None
        return self._tokenizer.vocab_size

    def compile(self, sequence: Sequence) -> None:
        """Begin, unless the same grammar is known; the sequence waits here."""
        grammar = sequence.request.params.grammar
        assert grammar is not None
        if grammar not in self._kept:
            self._kept[grammar] = self._thread.submit(self._compile, grammar)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar)
        self._waiting[sequence] = self._kept[grammar]

    def compiled(self, *, block: bool) -> list[Compiled]:
        """Those that are ready, in order of arrival; with `block` at least one, if any waits."""
        if block and self._waiting:
            wait([next(iter(self._waiting.values()))])
        ready = [(sequence, future) for sequence, future in self._waiting.items() if future.done()]
        self.forget(sequence for sequence, _ in ready)
        return [_equipped(sequence, future) for sequence, future in ready]

    def forget(self, sequences: Iterable[Sequence]) -> set[Sequence]:
        """Let go of those that wait here, and say which did."""
        return {sequence for sequence in sequences if self._waiting.pop(sequence, None) is not None}

    def _compile(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer_of(self._folder, self._eos_token_ids)
        return compile_grammar(grammar, self._tokenizer)


def _equipped(sequence: Sequence, future: Future[LLMatcher]) -> Compiled:
    try:
        sequence.matcher = future.result().deep_copy()
    except GrammarRefused as refusal:
        return Compiled(sequence=sequence, fault=f"grammar: {refusal}")
    return Compiled(sequence=sequence, fault=None)


def compile_grammar(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of a text. Raises GrammarRefused with llguidance's words."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_lexer_states=MOST_LEXER_STATES,
        initial_lexer_fuel=MOST_LEXER_FUEL,
        max_grammar_size=MOST_SYMBOLS,
        verbose_errors=False,
    )
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    matcher.compute_bitmask()  # Once for all copies: they share what is found out about the tokens.
    if matcher.is_error():
        raise GrammarRefused(fault_of(matcher))
    return matcher


def fault_of(matcher: LLMatcher) -> str:
    """What is wrong with a matcher, in one line."""
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:500]


@functools.cache
def byte_tokenizer() -> LLTokenizer:
    """A tokenizer of bytes, with which grammars can be judged where there is no model. Raises GrammarRefused."""
    try:
        from llguidance import LLTokenizer
    except ImportError as e:
        raise GrammarRefused("the package llguidance is missing here: pip install 'pressrun[engine]'") from e
    return LLTokenizer("byte")


def _tokenizer_of(folder: Path, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
    """The model's tokenizer as llguidance reads it. Raises GrammarRefused."""
    byte_tokenizer()  # Says what is missing.
    from llguidance import LLTokenizer

    if not eos_token_ids:
        raise GrammarRefused("to follow one takes a token that ends a text, and the model's config.json names none")
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise GrammarRefused("to follow one takes a tokenizer.json in the model's folder, and there is none")
    try:
        return LLTokenizer(file.read_text(), eos_token=list(eos_token_ids))
    except ValueError as e:
        raise GrammarRefused(f"the model's tokenizer.json is not understood: {e}") from e
