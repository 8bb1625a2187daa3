"""Words a drawing in many ways, so that the model learns what is meant and not one phrasing."""

from __future__ import annotations

import random

from renderkiln.worker.demo.vocabulary import (
    COLORS,
    POSITION_PHRASES,
    SHAPES,
    SIZES,
    Drawing,
    with_article,
)

# Each of these is one token; anything else falls apart into letters.
WORDS: list[str] = [
    *SHAPES,
    *COLORS,
    *SIZES,
    *("big", "left", "right", "top", "bottom", "center", "centre", "middle", "corner", "side"),
    *("a", "an", "the", "on", "in", "at", "of", "with", "and", "to", "is", "background", "shape"),
    *("picture", "image", "drawing", "photo"),
]

OTHER_PHRASES: dict[str, tuple[str, ...]] = {
    "center": ("in the centre", "in the middle", "at the center", "center"),
    "left": ("at the left", "to the left", "on the left side", "left"),
    "right": ("at the right", "to the right", "on the right side", "right"),
    "top": ("on top", "in the top", "top"),
    "bottom": ("on the bottom", "in the bottom", "bottom"),
    "top left": ("at the top left", "top left", "in the top left"),
    "top right": ("at the top right", "top right", "in the top right"),
    "bottom left": ("at the bottom left", "bottom left", "in the bottom left"),
    "bottom right": ("at the bottom right", "bottom right", "in the bottom right"),
}


def word(drawing: Drawing, rng: random.Random) -> str:
    """One prompt for a drawing. Size, position and background are left out now and then, which
    teaches that they are free; shape and colour seldom are."""
    size = drawing.size if rng.random() < (0.5 if drawing.size != "medium" else 0.3) else None
    if size == "large" and rng.random() < 0.5:
        size = "big"
    color = drawing.color if rng.random() < 0.95 else None
    shape = drawing.shape if rng.random() < 0.97 else "shape"
    noun = " ".join(part for part in (size, color, shape) if part)
    parts = [with_article(noun) if rng.random() < 0.8 else noun]
    tail: list[str] = []
    assert drawing.position
    if rng.random() < 0.6:
        plain = POSITION_PHRASES[drawing.position]
        tail.append(plain if rng.random() < 0.6 else rng.choice(OTHER_PHRASES[drawing.position]))
    if rng.random() < 0.88:
        tail.append(_background(f"{drawing.background}", rng))
        if rng.random() < 0.15:
            tail.reverse()
    text = (", " if rng.random() < 0.08 else " ").join([*parts, *tail])
    if rng.random() < 0.05:
        text = rng.choice(("a picture of ", "an image of ", "a drawing of ")) + text
    if rng.random() < 0.05:
        text += "."
    return text


def _background(color: str, rng: random.Random) -> str:
    choice = rng.random()
    if choice < 0.7:
        return f"on {with_article(color + ' background')}"
    if choice < 0.85:
        return f"on {color}"
    if choice < 0.95:
        return f"on {color} background"
    return f"with {with_article(color + ' background')}"
