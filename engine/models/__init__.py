"""Model families: one file a family and a line in the registry."""

from .registry import REGISTRY

__all__ = ["REGISTRY"]
