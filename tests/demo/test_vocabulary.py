"""Tests of the words of the demo model: prompts say what they mean and can be read back."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.worker.demo.vocabulary import (
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    Drawing,
    combinations,
    held_out_drawings,
    held_out_prompts,
    is_held_out,
    parse_prompt,
    prompt_of,
)


def maybe(values: object) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from(sorted(values))  # type: ignore[call-overload]


drawings = st.builds(Drawing, maybe(SHAPES), maybe(COLORS), maybe(COLORS), size=maybe(SIZES), position=maybe(POSITIONS))


@given(drawings)
def test_a_prompt_reads_back_as_what_it_was_made_from(drawing: Drawing) -> None:
    assert parse_prompt(prompt_of(drawing)) == drawing


@given(drawings)
def test_case_does_not_matter(drawing: Drawing) -> None:
    assert parse_prompt(prompt_of(drawing).upper()) == drawing


@given(st.text(max_size=80))
def test_any_text_can_be_parsed(text: str) -> None:
    parse_prompt(text)


def test_the_example_prompt() -> None:
    drawing = Drawing("heart", "red", "cyan", "small", "left")
    assert prompt_of(drawing) == "a small red heart on the left on a cyan background"


@pytest.mark.parametrize(
    ("prompt", "drawing"),
    [
        ("red circle on blue", Drawing("circle", "red", "blue")),
        (
            "A BIG green star, at the top, with a white background.",
            Drawing("star", "green", "white", "large", "top"),
        ),
        ("on a black background an orange ring", Drawing("ring", "orange", "black")),
        ("a pink moon in the top left corner", Drawing("moon", "pink", None, None, "top left")),
        (
            "cyan cross in the middle on an orange background",
            Drawing("cross", "cyan", "orange", None, "center"),
        ),
        ("a cat", Drawing(None, None, None)),
        ("", Drawing(None, None, None)),
        ("a red circle left and right", Drawing("circle", "red", None)),
    ],
)
def test_other_wordings(prompt: str, drawing: Drawing) -> None:
    assert parse_prompt(prompt) == drawing


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="'mauve' is not a color"):
        Drawing("circle", "mauve", "white")


def test_the_split_is_fixed_and_leaves_every_pair_to_training() -> None:
    combos = list(combinations())
    held_out = [combo for combo in combos if is_held_out(*combo)]
    # The trained weights depend on this split: if it changes, "never seen in training" is a lie.
    assert (len(combos), len(held_out)) == (810, 104)
    seen = [combo for combo in combos if not is_held_out(*combo)]
    for shape, color in product(SHAPES, COLORS):
        assert any(combo[:2] == (shape, color) for combo in seen)
    for color, background in product(COLORS, COLORS):
        assert color == background or any(combo[1:] == (color, background) for combo in seen)


def test_held_out_prompts_are_held_out_different_and_repeatable() -> None:
    drawings = held_out_drawings(200)
    assert len(set(drawings)) == 200
    for drawing in drawings:
        assert is_held_out(str(drawing.shape), str(drawing.color), str(drawing.background))
    assert held_out_prompts(200) == [prompt_of(drawing) for drawing in drawings]
    assert held_out_prompts(20) == held_out_prompts(200)[:20]
    assert held_out_prompts(20, seed=1) != held_out_prompts(20)
