"""Which captured step serves a step."""

from __future__ import annotations

import random

from pressrun.engine.shapes import MIXED_ROWS, MOST_PADDING, TIMES_BEFORE_CAPTURE, Shape, Shapes


def test_every_step_fits_its_shape_and_wastes_little() -> None:
    draw = random.Random(0)
    for max_rows in (1, 7, 48, 300, 1792, 2048):
        shapes = Shapes(max_rows, 2048)
        assert shapes.sizes == sorted(set(shapes.sizes))
        for _ in range(500):
            num_rows = draw.randint(1, max_rows)
            decodes = shapes.exact(num_rows, num_rows, 0)
            assert decodes is not None
            assert num_rows <= decodes.num_rows == decodes.num_tokens <= max_rows
            assert decodes.num_tokens <= max(2 * num_rows, 1)
            num_tokens = draw.randint(num_rows + 1, num_rows + 2048)
            mixed = shapes.exact(num_tokens, num_rows, 2)
            assert (mixed is None) == (num_tokens > 2048)
            if mixed is not None:
                assert num_tokens <= mixed.num_tokens <= max(num_tokens * 9 / 8 + 1, num_tokens + 127)
                assert num_rows <= mixed.num_rows <= max_rows
                assert (mixed.mixed, mixed.num_levels) == (True, 2)
                assert mixed.num_tokens <= shapes.max_tokens


def test_sizes_that_were_dropped_are_served_by_larger_ones() -> None:
    shapes = Shapes(512, 1024)
    shapes.sizes = [64, 256, 512]
    assert [shapes.decodes(rows).num_rows for rows in (1, 64, 65, 257)] == [64, 64, 256, 512]


def test_a_larger_captured_shape_serves_until_a_shape_has_come_often() -> None:
    shapes = Shapes(1024, 2048)
    exact, larger = shapes.decodes(300), shapes.decodes(1000)
    others = {shapes.decodes(1000, 1), Shape(1024, 1024, 0, mixed=True), shapes.decodes(200)}
    served = [shapes.serving(exact, {larger, *others}) for _ in range(TIMES_BEFORE_CAPTURE + 2)]
    assert served == [larger] * TIMES_BEFORE_CAPTURE + [exact] * 2


def test_no_shape_serves_where_padding_would_cost_too_much() -> None:
    shapes = Shapes(1024, 2048)
    exact = shapes.decodes(32)
    assert shapes.serving(exact, {shapes.decodes(MOST_PADDING * 32 + 1)}) == exact
    mixed = shapes.exact(500, 10, 0)
    assert mixed is not None
    assert shapes.serving(mixed, {Shape(512, MIXED_ROWS[-1], 0, mixed=True)}) == mixed
    assert shapes.serving(mixed, {Shape(1024, 64, 0, mixed=True)}) == Shape(1024, 64, 0, mixed=True)


def test_shapes_of_paced_steps_are_those_that_their_steps_would_choose() -> None:
    shapes = Shapes(1792, 2500)
    paced = shapes.paced(512)
    assert {shape.num_tokens for shape in paced} == {512, 768, 1024}
    assert {shape.num_rows for shape in paced if shape.num_tokens == 1024} == {128, 256, 384, 512, 768}
    assert all(shapes.exact(shape.num_tokens, shape.num_rows, 0) == shape for shape in paced)
    assert Shapes(100, 512).paced(512) == [Shape(512, 64, 0, mixed=True)]
    assert Shapes(100, 500).paced(512) == []
