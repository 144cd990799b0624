"""Text to token ids and back, with chat templates that what a user writes cannot break out of.

A template's own special tokens (`<|im_start|>`) must become those tokens; the same characters in a message must stay
plain text. So there is a second tokenizer in which every special token has a name nobody can guess: messages are
rendered with their special-looking text hidden, the template's special tokens are renamed, the hidden text is put back,
and the second tokenizer encodes the whole in one go, exactly as the first would have cut it.

Knows nothing of the engine. transformers is imported only when a tokenizer is loaded.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from .errors import EngineError, ModelUnsupported


class Tokenizer:
    """The tokenizer of a model's folder. Its methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        """Raises EngineError if the folder holds no tokenizer, ModelUnsupported if it is not a fast one."""
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as e:
            raise EngineError(f"{folder} holds no tokenizer that can be read: {e}") from e
        if not self._tokenizer.is_fast:
            raise ModelUnsupported(f"{folder}: only tokenizers with a tokenizer.json are supported")
        self._fast = FastTokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        self._fast.no_padding()
        self._fast.no_truncation()
        specials = [token.content for token in self._fast.get_added_tokens_decoder().values() if token.special]
        self._secret_names = {name: secrets.token_hex(16) for name in specials}
        self._hidden_names = {name: secrets.token_hex(16) for name in specials}
        self._secret = _renamed(self._fast, self._secret_names)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids: special tokens in the texts count as such; of whole prompts, the tokenizer adds its own."""
        encodings = self._fast.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def encode_chats(
        self,
        chats: Sequence[Sequence[Mapping[str, Any]]],
        *,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[list[int]]:
        """Token ids of conversations, rendered by the model's chat template; `options` are the template's own.

        Raises EngineError if there is no template, or if it does not accept the messages.
        """
        texts = [self._render(list(chat), add_generation_prompt, options) for chat in chats]
        return [encoding.ids for encoding in self._secret.encode_batch(texts, add_special_tokens=False)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._fast.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def _render(self, messages: list[Any], add_generation_prompt: bool, options: dict[str, Any]) -> str:
        """The conversation as text for the secret tokenizer."""
        from jinja2 import TemplateError

        if not self.has_chat_template:
            raise EngineError("the model has no chat template")
        hidden = _replaced_everywhere({"messages": messages, "options": options}, self._hidden_names)
        try:
            rendered = self._tokenizer.apply_chat_template(
                hidden["messages"],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **hidden["options"],
            )
        except (TemplateError, TypeError, KeyError, ValueError) as e:
            raise EngineError(f"the chat template does not accept these messages: {e}") from e
        text = _replaced(str(rendered), self._secret_names)
        return _replaced(text, {hidden_name: name for name, hidden_name in self._hidden_names.items()})


def _renamed(tokenizer: FastTokenizer, names: Mapping[str, str]) -> FastTokenizer:
    """A copy in which the special tokens have other names; ids and all else stay."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, dict):
        state["model"]["vocab"] = {names.get(name, name): id for name, id in vocabulary.items()}
    else:  # Unigram: a list of pieces with their scores
        state["model"]["vocab"] = [[names.get(name, name), score] for name, score in vocabulary]
    unknown = state["model"].get("unk_token")
    if unknown in names:
        state["model"]["unk_token"] = names[unknown]
    return FastTokenizer.from_str(json.dumps(state))


def _replaced_everywhere(value: Any, names: Mapping[str, str]) -> Any:
    """A copy of plain data with the names replaced in every string."""
    if isinstance(value, str):
        return _replaced(value, names)
    if isinstance(value, Mapping):
        pairs = value.items()
        return {_replaced_everywhere(key, names): _replaced_everywhere(inner, names) for key, inner in pairs}
    if isinstance(value, list | tuple):
        return [_replaced_everywhere(inner, names) for inner in value]
    return value


def _replaced(text: str, names: Mapping[str, str]) -> str:
    if not any(name in text for name in names):
        return text
    # Longer names first: one may be the beginning of another.
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(pattern, lambda match: names[match[0]], text)
