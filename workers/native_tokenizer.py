"""The native engine's tokenizer as a worker needs it: also the raw bytes of single tokens, for log-probabilities."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..engine.errors import EngineError
from ..engine.tokenizer import Tokenizer as EngineTokenizer
from .rendering import PLAINLY, Rendering

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class NativeTokenizer:
    """The tokenizer of a model's folder. Raises EngineError if there is none that can be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = EngineTokenizer(folder)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> Sequence[Sequence[int]]:
        return self._tokenizer.encode(texts, add_special_tokens=add_special_tokens)

    def encode_words(self, words: Sequence[str]) -> Sequence[Sequence[int]]:
        return self._tokenizer.encode(words, add_special_tokens=False)

    @property
    def chat_template(self) -> str:
        return self._tokenizer.chat_template

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._tokenizer.special_tokens

    def chat(self, messages: Sequence[dict[str, Any]], how: Rendering = PLAINLY) -> Sequence[int]:
        try:
            return self._tokenizer.encode_chats(
                [messages],
                template=how.template,
                add_generation_prompt=how.add_generation_prompt,
                continue_final_message=how.continue_final_message,
                add_special_tokens=how.add_special_tokens,
                tools=list(how.tools) or None,
                **how.options,
            )[0]
        except EngineError as error:
            raise ValueError(str(error)) from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, keep: Collection[int] = ()) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens, keep=keep)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes.get(token_id, b"")

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """What every token stands for. Built when first asked for: few requests want log-probabilities."""
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(self._folder).backend_tokenizer
        added = {id: token.content.encode() for id, token in backend.get_added_tokens_decoder().items()}
        byte_level = "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])
        to_bytes = _from_byte_level if byte_level else _from_piece
        return {id: to_bytes(token) for token, id in backend.get_vocab(with_added_tokens=False).items()} | added


def _from_piece(token: str) -> bytes:
    """SentencePiece's way: `▁` is a space, and a byte that is no text on its own is written `<0x0A>`."""
    byte = _BYTE_PIECE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _from_byte_level(token: str) -> bytes:
    """GPT-2's way: every byte is one printable character."""
    return b"".join(_BYTE_OF.get(char, char.encode()) for char in token)


def _bytes_by_character() -> dict[str, bytes]:
    """Bytes that are printable in Latin-1 stand for themselves; the others are counted up from U+0100."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    shifted = {chr(0x100 + place): bytes([byte]) for place, byte in enumerate(others)}
    return {chr(byte): bytes([byte]) for byte in plain} | shifted


_BYTE_OF = _bytes_by_character()
