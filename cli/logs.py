"""One log format for all processes, on stderr."""

from __future__ import annotations

import logging

from ..jobs.settings import Settings

# Libraries that tell at "info" what only their own makers want to know.
QUIET = ("httpx", "httpcore", "asyncio", "urllib3", "filelock", "rq", "uvicorn")


def configure_logging(settings: Settings) -> None:
    """Log at the level that the settings name; libraries only from warnings on, except when debugging."""
    level = getattr(logging, settings.log_level.upper())
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for name in QUIET if level > logging.DEBUG else ():
        logging.getLogger(name).setLevel(logging.WARNING)
