"""Which engine the settings name: how its process builds it, and how the tokenizer that goes with it is loaded.

Everything of the native engine is imported only where it is used, so that a worker with the stand-in needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..jobs.errors import SettingsError
from ..jobs.settings import Settings
from .echo_engine import ByteTokenizer, EchoFactory
from .engine_child import Engine
from .prompts import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeFactory:
    """Builds Pressrun's own engine in the engine's process."""

    settings: Settings
    model_dir: Path

    def __call__(self) -> Engine:
        from ..engine.config import EngineConfig
        from ..engine.engine import Engine as NativeEngine

        settings = self.settings
        config = EngineConfig(
            model=self.model_dir,
            load_format=settings.load_format,
            dtype=settings.dtype,
            device=settings.device,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            enforce_eager=settings.enforce_eager,
            enable_prefix_caching=settings.enable_prefix_caching,
            kv_cache_dtype=settings.kv_cache_dtype,
            kv_cache_gb=settings.kv_cache_gb,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            pooling=settings.pooling,
            seed=settings.seed,
        )
        return NativeEngine(config, decode=_decoder(self.model_dir))


def _decoder(folder: Path) -> Callable[[list[int]], str]:
    """Token ids to text, for stop strings, without the seconds that loading a whole chat tokenizer takes."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        from ..engine.tokenizer import Tokenizer as EngineTokenizer

        return EngineTokenizer(folder).decode
    from tokenizers import Tokenizer as FastTokenizer

    return FastTokenizer.from_file(str(file)).decode


def engine_of(settings: Settings, model_dir: Path | None) -> tuple[Callable[[], Engine], Callable[[], Tokenizer]]:
    """What builds the engine, and what loads its tokenizer. Raises SettingsError for a folder that holds no model."""
    if settings.engine == "echo":
        usual = EchoFactory()
        factory = EchoFactory(
            max_model_len=settings.max_model_len or usual.max_model_len,
            max_num_seqs=settings.max_num_seqs or usual.max_num_seqs,
        )
        return factory, ByteTokenizer
    if model_dir is None or not (model_dir / "config.json").is_file():
        raise SettingsError(f"PRESSRUN_MODEL={settings.model!r}: {model_dir} holds no model (no config.json)")

    def load_tokenizer() -> Tokenizer:
        from .native_tokenizer import NativeTokenizer

        return NativeTokenizer(model_dir)

    return NativeFactory(settings=settings, model_dir=model_dir), load_tokenizer
