"""Every error that the engine raises on purpose.

EngineError
├── ModelUnsupported     the model's architecture or one of its configuration fields is not served
├── WeightsError         the weights on disk do not fit the model: missing, unexpected or misshapen tensors
├── GrammarRefused       a grammar cannot be followed; refuses the requests that ask for it, and no other
└── OutOfMemory          a setting asks for more memory than there is; the message names it

A single bad request never raises: it is answered by an output with `finish_reason` "error".
"""

from __future__ import annotations


class EngineError(Exception):
    """The root: catch it to catch all that the engine raises on purpose."""


class ModelUnsupported(EngineError):
    """The model's architecture, or a field of its config.json, is not served."""


class WeightsError(EngineError):
    """The weights on disk do not fit the model."""


class GrammarRefused(EngineError):
    """A grammar cannot be followed."""


class OutOfMemory(EngineError):
    """A setting asks for more memory than there is."""
