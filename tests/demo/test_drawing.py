"""Tests of the drawings that the demo model learns from."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.worker.demo.drawing import busy_picture, draw, shape_mask, vary_color
from renderkiln.worker.demo.vocabulary import COLORS, POSITIONS, SHAPES, SIZES, Drawing

shapes = st.sampled_from(SHAPES)
colors = st.sampled_from(sorted(COLORS))
drawings = st.builds(
    Drawing,
    shapes,
    colors,
    colors,
    size=st.sampled_from(sorted(SIZES)),
    position=st.sampled_from(sorted(POSITIONS)),
)


@given(drawings, st.integers(0, 2**32))
def test_the_whole_shape_is_inside_the_picture(drawing: Drawing, seed: int) -> None:
    pixels = np.asarray(draw(drawing, 64, rng=random.Random(seed)))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == border[0]).all()


@given(drawings, st.integers(0, 2**32))
def test_a_seed_fixes_the_picture(drawing: Drawing, seed: int) -> None:
    first, second = (draw(drawing, 32, rng=random.Random(seed)) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_without_jitter_the_colours_are_the_vocabularys() -> None:
    picture = draw(Drawing("circle", "red", "cyan", "medium", "right"), 64)
    assert picture.getpixel((2, 2)) == COLORS["cyan"]
    assert picture.getpixel((round(0.73 * 64), 32)) == COLORS["red"]


@pytest.mark.parametrize("side", [32, 64, 256])
def test_shares_not_pixels(side: int) -> None:
    """The same part of the picture is covered at every size."""
    for shape in SHAPES:
        covered = np.asarray(shape_mask(shape, side, 0.5, 0.5, 0.3)).mean()
        reference = np.asarray(shape_mask(shape, 128, 0.5, 0.5, 0.3)).mean()
        assert covered == pytest.approx(reference, rel=0.06), shape


def test_edges_are_smooth() -> None:
    values = np.unique(np.asarray(shape_mask("circle", 64, 0.5, 0.5, 0.3)))
    assert len(values) > 8


def test_something_unsaid_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="not said"):
        draw(Drawing("circle", "red", None))


@given(colors, st.integers(0, 2**32))
def test_a_varied_colour_stays_near(name: str, seed: int) -> None:
    varied = vary_color(COLORS[name], random.Random(seed), 5)
    assert all(0 <= a <= 255 and abs(a - b) <= 5 for a, b in zip(varied, COLORS[name], strict=True))


def test_busy_pictures_differ() -> None:
    rng = random.Random(0)
    assert len({busy_picture(32, rng).tobytes() for _ in range(20)}) == 20
