"""The command line of bench/throughput.py. Its engine flags are whatever fields EngineConfig has."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from pressrun.engine.config import EngineConfig

from .shapes import SHAPES
from .workloads import WORKLOADS

# Each with the module that must be there for it to be measured.
ENGINES = {"pressrun": "pressrun.engine", "vllm": "vllm", "transformers": "transformers"}
# These follow from --model.
NOT_FLAGS = {"model", "load_format"}


def engine_kinds() -> dict[str, Any]:
    """EngineConfig's fields that are flags here, with their types; `None` as a choice is left out."""
    hints = typing.get_type_hints(EngineConfig)
    return {f.name: _without_none(hints[f.name]) for f in dataclasses.fields(EngineConfig) if f.name not in NOT_FLAGS}


def parse(description: str, arguments: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and apart from them the engine flags that were given."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help=f"{', '.join(SHAPES)}, or a model's folder")
    parser.add_argument("--workload", type=_names_of(WORKLOADS), default=["uniform"], help=", ".join(WORKLOADS))
    parser.add_argument("--engines", type=_names_of(ENGINES), default=list(ENGINES), help=", ".join(ENGINES))
    parser.add_argument("--num-requests", type=int, help="of each workload, instead of its own number")
    parser.add_argument("--repeat", type=int, default=1, help="measured runs of each workload; the median is reported")
    parser.add_argument("--num-warm-up", type=int, default=64, help="requests of the warm-up run before all others")
    parser.add_argument("--profile", action="store_true", help="our engine's kernels in 30 steps of one more run")
    parser.add_argument("--attention-tflops", type=float, help="the attention's ceiling, which is not measured")
    parser.add_argument("--transformers-batch", type=int, default=64, help="requests a static batch of transformers")
    parser.add_argument("--vllm-args", type=json.loads, default={}, help="JSON object of more arguments for vLLM's LLM")
    add_engine_flags(parser, "EngineConfig's fields; but for max_model_len, dtype and device for us alone")
    options = parser.parse_args(arguments)
    for name in ("num_requests", "repeat", "num_warm_up", "transformers_batch"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.model not in SHAPES and not (Path(options.model) / "config.json").is_file():
        parser.error(f"--model {options.model} is neither one of {', '.join(SHAPES)} nor a folder with a config.json")
    return options, engine_flags(options)


def add_engine_flags(parser: argparse.ArgumentParser, title: str) -> None:
    """A flag for each of EngineConfig's fields, as a group of its own."""
    flags = parser.add_argument_group(title)
    for name, kind in engine_kinds().items():
        flags.add_argument(f"--{name.replace('_', '-')}", dest=name, default=argparse.SUPPRESS, **_reading(kind))


def engine_flags(options: argparse.Namespace) -> dict[str, Any]:
    """The engine flags that were given."""
    return {name: getattr(options, name) for name in engine_kinds() if hasattr(options, name)}


def _names_of(known: typing.Collection[str]) -> typing.Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return text.split(",")

    return names


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    return next(one for one in typing.get_args(kind) if one is not types.NoneType)


def _reading(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is typing.Literal:
        return {"choices": typing.get_args(kind)}
    return {"type": kind if kind in (int, float) else str}
