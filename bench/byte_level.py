"""A tokenizer of any size, for models with random weights: bytes, and longer tokens made of them at random.

What a tokenizer costs depends on how many tokens it has and how alike they begin, not on which texts it was made for.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# As GPT-2's tokenizer writes bytes: these characters as themselves, and a space as this.
SPACE = "Ġ"
JSON_PAIRS = ('{"', '":', '",', '"}', '["', '"]', "},", "],", f"{SPACE}{{", f"{SPACE}[", f'{SPACE}"', f":{SPACE}")
CHARACTERS = SPACE + string.ascii_letters + string.digits + '{}[]",:.-_'


def write_tokenizer(folder: Path, vocab_size: int, specials: Mapping[int, str]) -> None:
    """Write tokenizer.json with so many tokens, the special ones under the ids they are given."""
    bytes_and_longer = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = _merges(vocab_size - len(specials) - len(bytes_and_longer))
    bytes_and_longer += [left + right for left, right in merges]
    ids = [id for id in range(vocab_size) if id not in specials]
    vocab = dict(zip(bytes_and_longer, ids, strict=True)) | {name: id for id, name in specials.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([specials[id] for id in sorted(specials)])
    tokenizer.save(str(folder / "tokenizer.json"))


def widen_tokenizer(folder: Path, vocab_size: int) -> None:
    """Give every id below `vocab_size` a text, with tokens that no text is encoded to.

    A model with random weights draws any id, and a token that says nothing is not sent: who waits for the first token
    of a stream would wait for one of those that the tokenizer knows.
    """
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    vocab = state["model"]["vocab"]
    known = {*vocab.values(), *(token["id"] for token in state["added_tokens"])}
    vocab |= {f"{SPACE}{id}": id for id in range(vocab_size) if id not in known}
    path.write_text(json.dumps(state))


def _merges(number: int) -> list[tuple[str, str]]:
    """So many different tokens, as the two that each is made of: JSON's pairs, then words that grow."""
    draw = random.Random(0)
    found = {pair: (pair[0], pair[1]) for pair in JSON_PAIRS[:number]}
    words = [*CHARACTERS]
    while len(found) < number:
        left, right = draw.choice(words), draw.choice(CHARACTERS)
        if left + right not in found and len(left) < 12:
            found[left + right] = (left, right)
            words.append(left + right)
    return list(found.values())
