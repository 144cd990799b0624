"""Several choices of one prompt: as many requests, which share the prompt's cached pages."""

from __future__ import annotations

from dataclasses import replace

from .request import Request, SamplingParams

# Odd, so that the derived seeds of one request differ; large, so that they are not the seeds a user tries next.
STRIDE = 0x9E3779B97F4A7C15


def expand(request: Request, n: int, *, first: int = 0) -> list[Request]:
    """Return `n` requests with the ids "{id}.{first}", …; if the request has a seed, each has its own.

    The first keeps the request's seed, so that n=1 draws what the request alone would, and it alone scores the prompt.
    """
    return [replace(request, id=f"{request.id}.{first + i}", params=_own_params(request, i)) for i in range(n)]


def _own_params(request: Request, i: int) -> SamplingParams:
    params = request.params
    if i and params.prompt_logprobs is not None:
        params = replace(params, prompt_logprobs=None)
    if params.seed is None:
        return params
    return replace(params, seed=(params.seed + i * STRIDE) % (1 << 64))
