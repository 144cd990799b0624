"""A device of which nobody knows how far it has come, for machines that have none.

Without a GPU all that is launched is done at once. Here it counts as done some looks later, in order, or when it is
waited for.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from pressrun.engine import parts, runner
from pressrun.engine.transfer import Array, Download


class SlowDevice:
    """Places in what was launched are numbers; a look may find that it has come further than at the one before."""

    def __init__(self, draw: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self._draw = draw
        self._launched = self._reached = 0
        monkeypatch.setattr(runner, "Download", lambda tensors: _SlowDownload(self, tensors))
        monkeypatch.setattr(parts, "Mark", lambda: _SlowMark(self))

    def place(self) -> int:
        self._launched += 1
        return self._launched

    def is_reached(self, place: int) -> bool:
        if self._draw.random() < 0.7:
            self._reached = min(self._launched, self._reached + self._draw.randint(1, 3))
        return place <= self._reached

    def wait(self, place: int) -> None:
        self._reached = max(self._reached, place)


class _SlowMark:
    def __init__(self, device: SlowDevice) -> None:
        self._device, self._place = device, device.place()

    @property
    def is_reached(self) -> bool:
        return self._device.is_reached(self._place)


class _SlowDownload(Download):
    def __init__(self, device: SlowDevice, tensors: list[Any]) -> None:
        super().__init__(tensors)
        self._device, self._place = device, device.place()

    @property
    def is_there(self) -> bool:
        return self._device.is_reached(self._place)

    def wait(self) -> list[Array]:
        self._device.wait(self._place)
        return super().wait()
