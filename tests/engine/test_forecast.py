"""How long sequences are expected to grow, and the pages they will need at the height of it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pressrun.engine.forecast import FIRST_GUESS, NUM_REMEMBERED, LengthForecast, Outlook


def remaining(forecast: LengthForecast, generated: int, most: int = 10**6, *, may_end_early: bool = True) -> float:
    return float(forecast.remaining(np.array([generated]), np.array([most]), np.array([may_end_early]))[0])


def test_nobody_is_expected_to_outgrow_its_limit() -> None:
    forecast = LengthForecast()
    assert remaining(forecast, 0) == FIRST_GUESS
    assert remaining(forecast, 0, most=7) == 7
    assert remaining(forecast, 0, most=900, may_end_early=False) == 900


def test_a_sequence_is_expected_to_be_as_long_as_those_that_were_longer() -> None:
    forecast = LengthForecast()
    forecast.learn(np.array([10, 20, 60, 100]))
    assert remaining(forecast, 0) == pytest.approx(47.5)
    assert remaining(forecast, 10) == pytest.approx(60 - 10)
    assert remaining(forecast, 59) == pytest.approx(80 - 59)
    assert remaining(forecast, 100) == 100


def test_only_the_latest_lengths_count() -> None:
    forecast = LengthForecast()
    forecast.learn(np.full(NUM_REMEMBERED, 5000))
    forecast.learn(np.full(NUM_REMEMBERED, 8))
    assert remaining(forecast, 0) == 8


@pytest.mark.parametrize("seed", range(20))
def test_the_peak_is_that_of_playing_it_out(seed: int) -> None:
    draw = random.Random(seed)
    page_size = draw.choice([1, 4, 16])
    lengths = [draw.randint(1, 50) for _ in range(draw.randint(1, 30))]
    own = [float(draw.randint(1, 20)) for _ in lengths]
    outlook = Outlook(np.array(lengths[:-1], float), np.array(own[:-1]), shared_pages=3, page_size=page_size)
    peak = outlook.peak_with(lengths[-1], own[-1], 2)
    played = max(
        sum(pages + step / page_size for pages, length in zip(own, lengths, strict=True) if length >= step)
        for step in range(max(lengths) + 1)
    )
    # Between two ends nobody gives anything back, so the peak is at an end.
    assert peak == pytest.approx(played + 5)
    outlook.add(lengths[-1], own[-1], 2)
    assert outlook.peak_with(0, 0, 0) == pytest.approx(peak)
