"""Pressrun: an async, Redis-queue-backed batch processor for language models.

Importing this package is cheap: it loads neither torch nor any subpackage.
"""

__version__ = "0.1.0"
