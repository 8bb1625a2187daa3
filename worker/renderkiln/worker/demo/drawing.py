"""Draws the pictures that the demo model `shapes` is trained on, and that its judge is tested with.

Shapes are drawn large and shrunk, so their edges are smooth. Everything is measured in shares of the
side, so a drawing looks the same at any size.
"""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from .vocabulary import COLORS, POSITIONS, SIZES, Drawing

SUPERSAMPLING = 4
MARGIN = 0.02  # of the side, kept free around the shape

Point = tuple[float, float]


def draw(
    drawing: Drawing,
    size: int = 64,
    *,
    rng: random.Random | None = None,
    jitter: float = 1.0,
) -> Image.Image:
    """The picture of a complete drawing.

    With `rng`, place, radius and colours vary a little (`jitter` scales by how much); without it the
    picture is always the same.
    """
    if not drawing.is_complete:
        raise ValueError(f"cannot draw {drawing}: something is not said")
    radius = SIZES[str(drawing.size)]
    x, y = POSITIONS[str(drawing.position)]
    color, background = COLORS[str(drawing.color)], COLORS[str(drawing.background)]
    if rng is not None:
        radius *= 1 + rng.uniform(-0.07, 0.07) * jitter
        x += rng.uniform(-0.025, 0.025) * jitter
        y += rng.uniform(-0.025, 0.025) * jitter
        color = vary_color(color, rng, 5 * jitter)
        background = vary_color(background, rng, 5 * jitter)
    inside = (radius + MARGIN, 1 - radius - MARGIN)
    x, y = (min(max(value, inside[0]), inside[1]) for value in (x, y))
    mask = shape_mask(str(drawing.shape), size, x, y, radius)
    return Image.composite(Image.new("RGB", (size, size), color), Image.new("RGB", (size, size), background), mask)


def vary_color(color: tuple[int, int, int], rng: random.Random, amount: float) -> tuple[int, int, int]:
    """A colour near `color`: no channel moves by more than `amount`."""
    red, green, blue = (min(255, max(0, round(value + rng.uniform(-amount, amount)))) for value in color)
    return red, green, blue


def shape_mask(shape: str, size: int, x: float, y: float, radius: float, *, turn: float = 0.0) -> Image.Image:
    """Where the shape covers the picture, as an 8-bit grey image. `turn` rotates it (radians)."""
    side = size * SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)

    def place(points: list[Point]) -> list[Point]:
        cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
        return [((x + px * cos - py * sin) * side, (y + px * sin + py * cos) * side) for px, py in points]

    for fill, points in OUTLINES[shape]:
        pen.polygon(place(points), fill=fill)
    return mask.resize((size, size), Image.Resampling.BOX)


def _arc(radius: float, cx: float = 0.0, cy: float = 0.0, count: int = 72) -> list[Point]:
    angles = (2 * math.pi * index / count for index in range(count))
    return [(cx + radius * math.cos(angle), cy + radius * math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    points: list[Point] = []
    for index in range(10):
        radius = 1.05 if index % 2 == 0 else 0.43
        angle = math.pi * index / 5 - math.pi / 2
        points.append((radius * math.cos(angle), radius * math.sin(angle) + 0.06))
    return points


def _heart() -> list[Point]:
    points: list[Point] = []
    for index in range(80):
        angle = 2 * math.pi * index / 80
        px = 16 * math.sin(angle) ** 3
        py = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append((px / 16.5, -(py + 2.5) / 15.5))
    return points


def _cross(arm: float = 0.32, reach: float = 0.95) -> list[Point]:
    a, r = arm, reach
    return [
        (-a, -r),
        (a, -r),
        (a, -a),
        (r, -a),
        (r, a),
        (a, a),
        (a, r),
        (-a, r),
        (-a, a),
        (-r, a),
        (-r, -a),
        (-a, -a),
    ]


# Each shape is a list of polygons in a circle of radius 1, painted (255) or cut out (0) one after another.
OUTLINES: dict[str, list[tuple[int, list[Point]]]] = {
    "circle": [(255, _arc(0.95))],
    "square": [(255, [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])],
    "triangle": [(255, [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)])],
    "diamond": [(255, [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)])],
    "star": [(255, _star())],
    "heart": [(255, _heart())],
    "cross": [(255, _cross())],
    "ring": [(255, _arc(1.0)), (0, _arc(0.55))],
    "moon": [(255, _arc(1.0)), (0, _arc(0.85, 0.5, -0.15))],
}


def busy_picture(size: int, rng: random.Random) -> Image.Image:
    """A picture outside the vocabulary: gradients and several turned shapes in any colour.

    The autoencoder sees these too, so that a picture somebody brings along (image to image) survives it.
    """
    corners = np.array([[rng.randrange(256) for _ in range(3)] for _ in range(4)], dtype=np.float32)
    if rng.random() < 0.4:
        corners[:] = corners[0]
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    across, down = ramp[None, :, None], ramp[:, None, None]
    top = corners[0] * (1 - across) + corners[1] * across
    bottom = corners[2] * (1 - across) + corners[3] * across
    picture = Image.fromarray((top * (1 - down) + bottom * down).astype(np.uint8))
    for _ in range(rng.randint(1, 6)):
        color = COLORS[rng.choice(list(COLORS))]
        if rng.random() < 0.6:
            color = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        mask = shape_mask(
            rng.choice(list(OUTLINES)),
            size,
            rng.uniform(0.05, 0.95),
            rng.uniform(0.05, 0.95),
            rng.uniform(0.06, 0.35),
            turn=rng.uniform(0, 2 * math.pi),
        )
        picture.paste(color, (0, 0), mask)
    return picture


def crowded_picture(size: int, rng: random.Random) -> Image.Image:
    """Several upright, mostly small shapes in the vocabulary's colours on a plain ground.

    Where the autoencoder learns corners and points: there are more of them here than in a drawing.
    """
    ground = rng.choice(list(COLORS))
    picture = Image.new("RGB", (size, size), vary_color(COLORS[ground], rng, 8))
    for _ in range(rng.randint(3, 7)):
        color = rng.choice([name for name in COLORS if name != ground])
        radius = rng.uniform(0.11, 0.24)
        mask = shape_mask(rng.choice(list(OUTLINES)), size, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), radius)
        picture.paste(vary_color(COLORS[color], rng, 8), (0, 0), mask)
    return picture
