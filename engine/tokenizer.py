"""Text to token ids and back, with chat templates that what a user writes cannot break out of.

A template's own special tokens (`<|im_start|>`) must become those tokens; the same characters in a message must stay
plain text. So there is a second tokenizer in which every special token has a name nobody can guess: messages are
rendered with their special-looking text hidden, the template's special tokens are renamed, the hidden text is put back,
and the second tokenizer encodes the whole in one go, exactly as the first would have cut it. A text that ends like the
beginning of a special token gets a secret joint there, so that none is put together out of two texts.

Knows nothing of the engine. transformers is imported only when a tokenizer is loaded.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
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
        added = self._fast.get_added_tokens_decoder()
        self.special_tokens = {token.content: id for id, token in added.items() if token.special}
        self._special_ids = frozenset(self.special_tokens.values())
        self._secret_names = {name: secrets.token_hex(16) for name in self.special_tokens}
        self._hidden_names = {name: secrets.token_hex(16) for name in self.special_tokens}
        self._joint = secrets.token_hex(16)
        self._beginnings = _beginnings(self.special_tokens)
        self._firsts = frozenset(name[0] for name in self.special_tokens)
        self._secret = _renamed(self._fast, self._secret_names)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def chat_template(self) -> str:
        """The source of the chat template; of several that of all of them, and "" of none."""
        template = self._tokenizer.chat_template or ""
        return template if isinstance(template, str) else "\n".join(template.values())

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids: special tokens in the texts count as such; of whole prompts, the tokenizer adds its own."""
        encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def encode_chats(
        self,
        chats: Sequence[Sequence[Mapping[str, Any]]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        **options: Any,
    ) -> list[list[int]]:
        """Token ids of conversations, by the model's chat template or another; `options` are what the template is told.

        Raises EngineError if there is no template, or if it does not accept the messages.
        """
        how = {
            "chat_template": template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        texts = [self._render(list(chat), how, options) for chat in chats]
        encodings = self._secret.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, keep: Collection[int] = ()) -> str:
        """The text of tokens; of special ones, if they are skipped, only those in `keep`."""
        ids = list(token_ids)
        if skip_special_tokens and keep:
            skip_special_tokens = False
            ids = [id for id in ids if id in keep or id not in self._special_ids]
        text: str = self._fast.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def _render(self, messages: list[Any], how: dict[str, Any], options: dict[str, Any]) -> str:
        """The conversation as text for the secret tokenizer."""
        from jinja2 import TemplateError

        if not self.has_chat_template and how["chat_template"] is None:
            raise EngineError("the model has no chat template")
        hidden = _everywhere({"messages": messages, "options": options}, self._hidden)
        try:
            rendered = self._tokenizer.apply_chat_template(
                hidden["messages"], tokenize=False, **how, **hidden["options"]
            )
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as e:
            raise EngineError(f"the chat template does not accept these messages: {self._shown(str(e))}") from e
        return self._shown(_replaced(str(rendered), self._secret_names))

    def _hidden(self, text: str) -> str:
        """A client's text as a template sees it."""
        if not any(first in text for first in self._firsts):
            return text  # Nearly every text of many short ones, such as tools are made of.
        text = _replaced(text, self._hidden_names)
        end = text.rstrip()
        return end + self._joint + text[len(end) :] if end.endswith(self._beginnings) else text

    def _shown(self, text: str) -> str:
        """The same with the client's text as it was."""
        text = text.replace(self._joint, "")
        return _replaced(text, {hidden_name: name for name, hidden_name in self._hidden_names.items()})


def _beginnings(names: Collection[str]) -> tuple[str, ...]:
    """What special tokens begin with, but for those that begin as words do: words are not to be taken apart."""
    marked = [name for name in names if not name[0].isalnum()]
    return tuple({name[:size] for name in marked for size in range(1, len(name))})


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


def _everywhere(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of plain data with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_everywhere(key, change): _everywhere(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_everywhere(inner, change) for inner in value]
    return value


def _replaced(text: str, names: Mapping[str, str]) -> str:
    if not any(name in text for name in names):
        return text
    # Longer names first: one may be the beginning of another.
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(pattern, lambda match: names[match[0]], text)
