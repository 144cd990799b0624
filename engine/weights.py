"""Weights from disk into their places, one tensor at a time; or made up, for benchmarks.

Knows nothing of any model: it fills slots. A file is opened anew for every tensor, because pages of a mapped file
count as this process's memory until it is closed, and the whole model would be there twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import WeightsError
from .linear import Slot

INDEX = "model.safetensors.index.json"
BODY, FIRST = "model.", "embed_tokens.weight"


def load_weights(folder: Path, slots: Iterable[Slot], is_ignorable: Callable[[str], bool]) -> None:
    """Fill every slot from the folder's *.safetensors.

    Names without the `model.` in front are those of a model that was saved without what draws from it, as many
    that are made for embeddings are. Raises WeightsError if a tensor is missing, has another shape, or has no slot and
    is not ignorable.
    """
    wanted = {slot.name: slot for slot in slots}
    stored = _files_by_tensor(folder)
    prefix = BODY if _is_bare(stored) else ""
    file_of = {prefix + name: path for name, path in stored.items()}
    missing = wanted.keys() - file_of.keys()
    if missing:
        raise WeightsError(f"{folder} lacks {_some(missing)}")
    unexpected = [name for name in file_of.keys() - wanted.keys() if not is_ignorable(name)]
    if unexpected:
        raise WeightsError(f"{folder} holds tensors that the model has no place for: {_some(unexpected)}")
    for name, slot in wanted.items():
        _load(file_of[name], name.removeprefix(prefix), slot)


def fill_randomly(slots: Iterable[Slot], seed: int) -> None:
    """Fill every slot with small normal numbers, the same for the same seed and device; norms with ones."""
    generator: torch.Generator | None = None
    for slot in slots:
        if generator is None:
            generator = torch.Generator(slot.into.device).manual_seed(seed)
        if slot.into.ndim == 1:
            slot.into.fill_(0.0 if slot.name.endswith(".bias") else 1.0)
        else:
            slot.into.normal_(0.0, 0.02, generator=generator)


def lacks_head(folder: Path) -> bool:
    """Whether the checkpoint is of a model that was saved without its head; one that is tied needs none."""
    return _is_bare(_files_by_tensor(folder))


def _is_bare(names: Collection[str]) -> bool:
    return FIRST in names and BODY + FIRST not in names


def _load(path: Path, stored_name: str, slot: Slot) -> None:
    with _opened(path) as file:
        shape = tuple(file.get_slice(stored_name).get_shape())
        if shape != slot.full_shape:
            raise WeightsError(f"{path}: {slot.name} has shape {shape}, the model needs {slot.full_shape}")
        slot.fill(file.get_tensor(stored_name))


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor, by the index if there is one."""
    if (folder / INDEX).exists():
        weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        file_of = {name: folder / file for name, file in weight_map.items()}
        for path in set(file_of.values()):
            _require_indexed(path, {name for name, file in file_of.items() if file == path})
        return file_of
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(path) as file:
            found.update(dict.fromkeys(file.keys(), path))
    if not found:
        raise WeightsError(f"{folder} holds no *.safetensors")
    return found


def _require_indexed(path: Path, names: set[str]) -> None:
    if not path.exists():
        raise WeightsError(f"{path} is named in {INDEX} but is not there")
    with _opened(path) as file:
        missing = names - set(file.keys())
    if missing:
        raise WeightsError(f"{path} lacks {_some(missing)}, which {INDEX} says it holds")


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"{path} cannot be read: {e}") from e


def _some(names: Iterable[str]) -> str:
    """At most five of the names, and how many more there are."""
    listed = sorted(names)
    rest = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + rest
