"""`python -m pressrun.cli` is `pressrun`."""

from .main import app

app()
