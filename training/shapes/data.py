"""Makes the training pictures: drawings of the vocabulary that are not held out, and busy pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from renderkiln.worker.demo.drawing import busy_picture, crowded_picture, draw
from renderkiln.worker.demo.vocabulary import (
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    Drawing,
    combinations,
    is_held_out,
)

SIDE = 64
BUSY_SHARE = 0.2  # of the autoencoder's pictures
CROWDED_SHARE = 0.3

# How a drawing is stored as five small numbers.
FIELDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("shape", SHAPES),
    ("color", tuple(COLORS)),
    ("background", tuple(COLORS)),
    ("size", tuple(SIZES)),
    ("position", tuple(POSITIONS)),
)


def training_combinations() -> list[tuple[str, str, str]]:
    """The combinations (shape, colour, background) that may be seen in training."""
    return [combo for combo in combinations() if not is_held_out(*combo)]


def random_drawings(count: int, seed: int) -> Iterator[Drawing]:
    """`count` drawings, every training combination about equally often."""
    rng = random.Random(seed)
    combos = training_combinations()
    for index in range(count):
        if index % len(combos) == 0:
            rng.shuffle(combos)
        shape, color, background = combos[index % len(combos)]
        yield Drawing(shape, color, background, rng.choice(tuple(SIZES)), rng.choice(tuple(POSITIONS)))


def encode(drawing: Drawing) -> list[int]:
    """The drawing as indices into FIELDS."""
    return [values.index(getattr(drawing, name)) for name, values in FIELDS]


def decode(indices: list[int]) -> Drawing:
    """The drawing of `encode`'s indices."""
    return Drawing(**{name: values[index] for (name, values), index in zip(FIELDS, indices, strict=True)})


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures as one batch in -1..1, channels first."""
    array = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def vae_batches(batch: int, seed: int) -> Iterator[torch.Tensor]:
    """An endless stream of batches for the autoencoder: drawings, and crowded and busy pictures."""
    rng = random.Random(seed)
    drawings = random_drawings(10**9, seed)
    while True:
        pictures = []
        for _ in range(batch):
            kind = rng.random()
            if kind < BUSY_SHARE:
                pictures.append(busy_picture(SIDE, rng))
            elif kind < BUSY_SHARE + CROWDED_SHARE:
                pictures.append(crowded_picture(SIDE, rng))
            else:
                pictures.append(draw(next(drawings), SIDE, rng=rng, jitter=rng.choice((1.0, 1.0, 4.0))))
        yield to_tensor(pictures)


def sample_sheet(seed: int, columns: int = 16, rows: int = 10) -> Image.Image:
    """Some training pictures side by side; the last rows are busy ones."""
    rng = random.Random(seed)
    drawings = random_drawings(columns * rows, seed)
    step = SIDE + 4
    sheet = Image.new("RGB", (columns * step, rows * step), (128, 128, 128))
    for row in range(rows):
        for column in range(columns):
            busy = row >= rows * (1 - BUSY_SHARE)
            picture = busy_picture(SIDE, rng) if busy else draw(next(drawings), SIDE, rng=rng)
            sheet.paste(picture, (column * step + 2, row * step + 2))
    return sheet
