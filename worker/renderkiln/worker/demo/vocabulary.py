"""The words that the demo model `shapes` knows, and what each of them means in a picture.

A `Drawing` names one picture: a shape in a colour and a size, at a position, on a background.
`prompt_of` says it in English, `parse_prompt` reads it back (what is not said stays None).
The combinations (shape, colour, background) that training never sees are chosen here as well, by a
fixed hash, so that training, tests and benchmarks agree on the split without sharing a file.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "heart",
    "cross",
    "ring",
    "moon",
)

# Chosen to stay apart even when guidance pushes them away from grey: a channel is close to an end of
# its range, or close to the middle, where a push does not move it to another colour's place.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "orange": (255, 135, 10),
    "yellow": (255, 225, 30),
    "green": (30, 165, 55),
    "cyan": (45, 210, 235),
    "blue": (30, 65, 220),
    "purple": (130, 40, 175),
    "pink": (255, 135, 190),
    "white": (250, 250, 250),
    "black": (15, 15, 18),
}

# The radius of the circle around the shape, as a share of the picture's side.
SIZES: dict[str, float] = {"small": 0.16, "medium": 0.23, "large": 0.32}

# The centre of the shape as shares of width and height. A large shape is moved inwards to stay whole.
POSITIONS: dict[str, tuple[float, float]] = {
    "center": (0.50, 0.50),
    "left": (0.27, 0.50),
    "right": (0.73, 0.50),
    "top": (0.50, 0.27),
    "bottom": (0.50, 0.73),
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
}

POSITION_PHRASES: dict[str, str] = {
    "center": "in the center",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "top left": "in the top left corner",
    "top right": "in the top right corner",
    "bottom left": "in the bottom left corner",
    "bottom right": "in the bottom right corner",
}

HELD_OUT_SHARE = 8  # one combination in eight


@dataclass(frozen=True)
class Drawing:
    """One picture in words. None means "not said": any value will do."""

    shape: str | None
    color: str | None
    background: str | None
    size: str | None = None
    position: str | None = None

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.shape, SHAPES, "shape"),
            (self.color, COLORS, "color"),
            (self.background, COLORS, "background"),
            (self.size, SIZES, "size"),
            (self.position, POSITIONS, "position"),
        ):
            if value is not None and value not in known:
                raise ValueError(f"{value!r} is not a {what}; known: {', '.join(known)}")

    @property
    def is_complete(self) -> bool:
        """Whether everything is said, so that the drawing can be drawn."""
        return None not in (self.shape, self.color, self.background, self.size, self.position)


def prompt_of(drawing: Drawing) -> str:
    """The plain prompt for a drawing: "a small red heart on the left on a cyan background"."""
    words = [word for word in (drawing.size, drawing.color, drawing.shape or "shape") if word]
    parts = [with_article(" ".join(words))]
    if drawing.position:
        parts.append(POSITION_PHRASES[drawing.position])
    if drawing.background:
        parts.append(f"on {with_article(drawing.background + ' background')}")
    return " ".join(parts)


def with_article(words: str) -> str:
    """The words with "a" or "an" in front, whichever they need."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def parse_prompt(prompt: str) -> Drawing:
    """Read a prompt back. Word order is free; a colour after "on" or before "background" is the ground's."""
    words = re.findall(r"[a-z]+", prompt.lower())
    shape = color = background = size = None
    sides: set[str] = set()
    centered = False
    for index, word in enumerate(words):
        before = [w for w in words[max(0, index - 2) : index] if w not in ("a", "an", "the")]
        after = words[index + 1] if index + 1 < len(words) else ""
        if word in SHAPES and shape is None:
            shape = word
        elif word in SIZES and size is None:
            size = word
        elif word == "big" and size is None:
            size = "large"
        elif word in ("left", "right", "top", "bottom"):
            sides.add(word)
        elif word in ("center", "centre", "middle"):
            centered = True
        elif word in COLORS:
            # "red on blue": what stands on something comes first, what it stands on comes after "on".
            if after == "background" or (before and before[-1] == "on"):
                background = background or word
            else:
                color = color or word
    return Drawing(shape, color, background, size, _position(sides, centered))


def _position(sides: set[str], centered: bool) -> str | None:
    """The position that a set of side words names; contradictions ("left right") name none."""
    vertical = sides & {"top", "bottom"}
    horizontal = sides & {"left", "right"}
    if len(vertical) > 1 or len(horizontal) > 1:
        return None
    name = " ".join([*vertical, *horizontal])
    return name or ("center" if centered else None)


def combinations() -> Iterator[tuple[str, str, str]]:
    """Every (shape, colour, background) in which the shape can be seen against the background."""
    for shape in SHAPES:
        for color in COLORS:
            for background in COLORS:
                if color != background:
                    yield shape, color, background


def is_held_out(shape: str, color: str, background: str) -> bool:
    """Whether this combination is kept from training, to be asked for in tests only."""
    digest = hashlib.sha256(f"shapes/{shape}/{color}/{background}".encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def held_out_drawings(count: int, seed: int = 0) -> list[Drawing]:
    """`count` different drawings of held-out combinations, spread evenly over the combinations.

    Half say a size and half say a position, independently, as people would.
    """
    combos = [combo for combo in combinations() if is_held_out(*combo)]
    rng = random.Random(seed)
    drawings: dict[Drawing, None] = {}
    while len(drawings) < count:
        rng.shuffle(combos)
        for shape, color, background in combos:
            size = rng.choice((*SIZES, None, None, None))
            position = rng.choice(tuple(POSITIONS)) if rng.random() < 0.5 else None
            drawings.setdefault(Drawing(shape, color, background, size, position))
    return list(drawings)[:count]


def held_out_prompts(count: int, seed: int = 0) -> list[str]:
    """The prompts of `held_out_drawings`, in the same order."""
    return [prompt_of(drawing) for drawing in held_out_drawings(count, seed)]
