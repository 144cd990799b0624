"""The engines that ours is measured beside, used as their documentation shows for many prompts at once.

None of them is imported before it is asked for: most machines have one or none.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from .tasks import Run, Task
from .workloads import Item


class Vllm:
    """vLLM's LLM class with its defaults, whatever they are in the version that is installed."""

    def __init__(self, task: Task) -> None:
        vllm: Any = import_module("vllm")
        settings: dict[str, Any] = {
            "load_format": "dummy" if task.is_dummy else "auto",
            "max_model_len": task.max_model_len,
            "enable_prefix_caching": True,
            "dtype": task.dtype,
            "skip_tokenizer_init": True,
        }
        self.version = str(vllm.__version__)
        self._params: Any = vllm.SamplingParams
        self._llm: Any = vllm.LLM(model=task.model, **settings | task.vllm_options)

    def run(self, items: list[Item]) -> Run:
        prompts = [{"prompt_token_ids": item.prompt} for item in items]
        params = [
            self._params(temperature=0.0, ignore_eos=True, max_tokens=item.num_output, detokenize=False)
            for item in items
        ]
        start = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        return Run(seconds=seconds, tokens=[list(output.outputs[0].token_ids) for output in outputs])

    def forget(self) -> None:
        self._llm.reset_prefix_cache()

    def profile(self, items: list[Item], run: Run) -> None:
        return None


class Transformers:
    """`generate` on left-padded static batches in the given order, each as long as its longest request needs.

    It has no prefix cache. Tokens beyond what a request asked for cost time and are dropped.
    """

    def __init__(self, task: Task) -> None:
        import torch
        import transformers

        loader: Any = transformers.AutoModelForCausalLM
        config: Any = transformers.AutoConfig.from_pretrained(task.model)
        dtype = getattr(torch, task.dtype) if task.dtype != "auto" else config.dtype
        self.version = str(transformers.__version__)
        if task.is_dummy:
            with torch.device(task.device):
                model = loader.from_config(config, dtype=dtype, attn_implementation="sdpa")
        else:
            model = loader.from_pretrained(task.model, dtype=dtype, attn_implementation="sdpa")
        self._model = model.to(task.device).eval()
        self._batch, self._device = task.transformers_batch, task.device

    def run(self, items: list[Item]) -> Run:
        tokens: list[list[int]] = []
        start = time.perf_counter()
        for i in range(0, len(items), self._batch):
            tokens += self._generate(items[i : i + self._batch])
        return Run(seconds=time.perf_counter() - start, tokens=tokens)

    def forget(self) -> None:
        pass

    def profile(self, items: list[Item], run: Run) -> None:
        return None

    def _generate(self, items: list[Item]) -> list[list[int]]:
        import torch

        width = max(len(item.prompt) for item in items)
        longest = max(item.num_output for item in items)
        padding = [width - len(item.prompt) for item in items]
        ids = [[0] * pad + item.prompt for pad, item in zip(padding, items, strict=True)]
        mask = [[0] * pad + [1] * len(item.prompt) for pad, item in zip(padding, items, strict=True)]
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                do_sample=False,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )
        rows: list[list[int]] = out[:, width:].tolist()
        return [row[: item.num_output] for row, item in zip(rows, items, strict=True)]
