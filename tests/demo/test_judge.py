"""Tests of the judge: it must be right about true drawings, and must not be fooled by anything else."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from renderkiln.worker.demo.drawing import busy_picture, draw, shape_mask
from renderkiln.worker.demo.judge import judge, matches, score
from renderkiln.worker.demo.vocabulary import (
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    Drawing,
    combinations,
    prompt_of,
)

EVERYTHING = [
    Drawing(*combo, size=size, position=position) for combo, size, position in product(combinations(), SIZES, POSITIONS)
]


def sample(count: int, seed: int) -> list[Drawing]:
    return random.Random(seed).sample(EVERYTHING, count)


def test_every_combination() -> None:
    """Shape, colours, size and position of true drawings: all of them, none wrong."""
    rng = random.Random(0)
    sizes, positions = list(SIZES), list(POSITIONS)
    wrong = []
    for index, combo in enumerate(combinations()):
        drawing = Drawing(*combo, size=sizes[index % 3], position=positions[index // 3 % 9])
        if not matches(drawing, draw(drawing, 64, rng=rng)).everything:
            wrong.append(drawing)
    assert not wrong


@pytest.mark.parametrize("side", [48, 64, 100, 128, 512, 1024])
def test_any_size_of_picture(side: int) -> None:
    for drawing in sample(12, seed=side):
        found = matches(drawing, draw(drawing, side))
        assert found.everything, (drawing, found)
        assert found.verdict.fit > 0.9


def jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    return Image.open(buffer)


def noisy(picture: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 12, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(picture.width / 64 * 0.8))


def tinted(picture: Image.Image) -> Image.Image:
    """A little more contrast, as too much guidance gives."""
    return Image.fromarray(np.clip((np.asarray(picture, dtype=float) - 128) * 1.12 + 128, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("damage", "enough"),
    [(jpeg, 0.97), (noisy, 0.99), (blurred, 0.99), (tinted, 0.99)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_slight_damage_is_forgiven(damage: Callable[[Image.Image], Image.Image], enough: float) -> None:
    drawings = sample(150, seed=3)
    result = score([(drawing, damage(draw(drawing, 64))) for drawing in drawings])
    assert result.everything >= enough * len(drawings), str(result)


def test_no_shape_is_ever_taken_for_another() -> None:
    """The confusion table, with all the damage: off the diagonal there is nothing."""
    for drawing in sample(120, seed=5):
        for damage in (jpeg, noisy, blurred):
            seen = judge(damage(draw(drawing, 64, rng=random.Random(1))))
            assert seen.shape in (drawing.shape, None), (drawing, seen)


@given(st.sampled_from(EVERYTHING), st.sampled_from(EVERYTHING))
@settings(max_examples=60, deadline=None)
def test_a_picture_matches_a_prompt_only_where_they_agree(shown: Drawing, asked: Drawing) -> None:
    found = matches(prompt_of(asked), draw(shown, 64))
    assert found.shape == (shown.shape == asked.shape)
    assert found.color == (shown.color == asked.color)
    assert found.background == (shown.background == asked.background)
    assert found.size == (shown.size == asked.size)
    assert found.position == (shown.position == asked.position)


def test_what_the_prompt_does_not_say_is_not_asked() -> None:
    picture = draw(Drawing("circle", "red", "cyan", "small", "left"), 64)
    found = matches("a circle", picture)
    assert (found.shape, found.color, found.background, found.size, found.position) == (
        True,
        None,
        None,
        None,
        None,
    )
    assert found.everything


@pytest.mark.parametrize("color", [*COLORS.values(), (128, 128, 128)])
def test_a_blank_picture_shows_nothing(color: tuple[int, int, int]) -> None:
    seen = judge(Image.new("RGB", (64, 64), color))
    assert seen.shape is None
    assert seen.color is None
    assert seen.reason == "nothing stands out from the background"


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize("spread", [10, 40, 120])
def test_noise_shows_nothing(side: int, spread: float) -> None:
    for seed in range(5):
        values = np.random.default_rng(seed).normal(128, spread, (side, side, 3))
        assert judge(Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))).shape is None


def test_smooth_noise_shows_nothing() -> None:
    """Clouds, as a diffusion model that is not trained yet paints them."""
    for seed in range(20):
        values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
        assert judge(Image.fromarray(values).resize((64, 64), Image.Resampling.BICUBIC)).shape is None


def test_gradients_and_stripes_show_nothing() -> None:
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    stripes = np.tile(np.repeat(np.array([0, 255], dtype=np.uint8), 8), (64, 4))
    for values in (ramp, ramp.T, stripes, stripes.T):
        assert judge(Image.fromarray(np.stack([values] * 3, axis=2))).shape is None


def two_shapes() -> Image.Image:
    picture = draw(Drawing("circle", "red", "cyan", "small", "left"), 64)
    picture.paste(COLORS["red"], (0, 0), shape_mask("star", 64, 0.73, 0.5, 0.15))
    return picture


def test_two_shapes_are_not_one() -> None:
    assert judge(two_shapes()).shape is None


def test_a_part_of_a_picture_can_be_judged() -> None:
    left, right = judge(two_shapes(), (0, 0, 0.5, 1)), judge(two_shapes(), (0.5, 0, 1, 1))
    assert (left.shape, left.position, left.size) == ("circle", "left", "small")
    assert (right.shape, right.position, right.size) == ("star", "right", "small")


def test_a_half_drawn_shape_is_not_that_shape() -> None:
    for shape in SHAPES:
        picture = draw(Drawing(shape, "black", "white", "large", "center"), 64)
        picture.paste(COLORS["white"], (32, 0, 64, 64))
        assert judge(picture).shape != shape


def test_colours_between_two_words_have_none() -> None:
    picture = Image.new("RGB", (64, 64), (128, 128, 128))
    picture.paste(COLORS["red"], (0, 0), shape_mask("heart", 64, 0.5, 0.5, 0.3))
    seen = judge(picture)
    assert (seen.shape, seen.color, seen.background) == ("heart", "red", None)


def test_sharpness_falls_with_blur() -> None:
    picture = draw(Drawing("square", "blue", "yellow", "large", "center"), 64)
    sharp, soft = judge(picture), judge(blurred(picture))
    assert sharp.sharpness > 0.9
    assert soft.sharpness < 0.6


def test_busy_pictures_are_seldom_taken_for_a_drawing() -> None:
    """A single shape on a plain ground can turn up among them, so not never."""
    rng = random.Random(2)
    found = [judge(busy_picture(64, rng)) for _ in range(60)]
    assert sum(seen.shape is not None and seen.background is not None for seen in found) <= 9


def test_scores_add_up() -> None:
    right = draw(Drawing("circle", "red", "cyan", "small", "left"), 64)
    blank = Image.new("RGB", (64, 64))
    result = score([("a small red circle on the left on a cyan background", right), ("a red circle", blank)])
    assert (result.n, result.right, result.shape, result.everything) == (2, 1, 1, 1)
    assert (result.size, result.position, result.percent) == (1.0, 1.0, 50.0)
    assert result.as_dict()["percent"] == 50.0
