"""The judge: looks at the pixels of a picture and says which shape, in which colours, it shows.

It knows nothing about prompts or models when it looks. It takes the colour around the border for the
background, what differs from it for the shape, and lays every shape it knows over that, at the same
place and with the same area; the best overlap wins if it is good enough. A picture that is not one
clean shape on one clean background (noise, a blank, two shapes) has no shape, and says why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .drawing import shape_mask
from .vocabulary import COLORS, SHAPES, SIZES, Drawing, parse_prompt

Array = NDArray[np.float32]
Box = tuple[float, float, float, float]

WORKING_SIDE = 128  # larger pictures are shrunk to this; smaller ones are left alone
MIN_CONTRAST = 0.10  # between shape and background, in Oklab
MAX_COLOR_DISTANCE = 0.145  # from a colour's place in Oklab to what still goes by its name
MIN_AREA = 0.008  # of the picture
MAX_STRAY = 0.12  # of the shape's area, outside its largest piece
MAX_UNEVEN = 0.22  # share of pixels that are neither background, nor shape, nor a mix of the two
MIN_FIT = 0.74  # overlap (intersection over union) with the best shape
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Verdict:
    """What the judge sees. None where it cannot tell; `reason` then says why there is no shape."""

    shape: str | None
    color: str | None
    background: str | None
    size: str | None
    position: str | None
    fit: float = 0.0  # overlap with the named shape, 0..1
    runner_up: float = 0.0  # overlap with the next best shape
    sharpness: float = 0.0  # 1: edges as narrow as in a drawing; 0.5: twice as wide
    color_rgb: tuple[int, int, int] | None = None
    background_rgb: tuple[int, int, int] | None = None
    reason: str = ""

    @property
    def confidence(self) -> float:
        """How far the named shape is ahead of the next, as a share of its own overlap."""
        return 0.0 if self.shape is None else (self.fit - self.runner_up) / self.fit


@dataclass(frozen=True)
class Match:
    """A picture against a prompt, attribute by attribute. None: the prompt does not say."""

    shape: bool | None
    color: bool | None
    background: bool | None
    size: bool | None
    position: bool | None
    verdict: Verdict

    @property
    def colors(self) -> bool:
        """Neither colour that the prompt names is wrong."""
        return self.color is not False and self.background is not False

    @property
    def right(self) -> bool:
        """The shape and both colours are right: what the model is measured by."""
        return self.shape is not False and self.colors

    @property
    def everything(self) -> bool:
        """Size and position are right as well."""
        return self.right and self.size is not False and self.position is not False


@dataclass(frozen=True)
class Score:
    """How many of `n` pictures are right. The shares of size and position count prompts that name one."""

    n: int
    right: int
    shape: int
    colors: int
    color: int
    background: int
    everything: int
    size: float
    position: float
    sharpness: float

    @property
    def percent(self) -> float:
        """Pictures with the right shape and both right colours, of 100."""
        return 100 * self.right / self.n if self.n else 0.0

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"percent": self.percent}

    def __str__(self) -> str:
        return (
            f"{self.right}/{self.n} right ({self.percent:.1f} %): shape {self.shape}, color {self.color}, "
            f"background {self.background}; size {self.size:.0%}, position {self.position:.0%}, "
            f"everything {self.everything}; sharpness {self.sharpness:.2f}"
        )


def judge(image: Image.Image, box: Box = WHOLE) -> Verdict:
    """Look at a picture, or at a part of it (`box`: left, top, right, bottom as shares of its sides).

    Size and position are always those in the whole picture. Pictures are taken to be square.
    """
    side = min(WORKING_SIDE, image.width)
    picture = image.convert("RGB")
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BOX)
    left, top, right, bottom = (round(share * side) for share in box)
    rgb = np.asarray(picture, dtype=np.float32)[top:bottom, left:right]
    lab = oklab(rgb)
    edge = max(1, side // 64)
    border = np.ones(lab.shape[:2], dtype=bool)
    border[edge:-edge, edge:-edge] = False
    ground = np.median(lab[border], axis=0)
    background, background_rgb = name_color(ground), median_rgb(rgb[border])

    def nothing(reason: str) -> Verdict:
        return Verdict(None, None, background, None, None, background_rgb=background_rgb, reason=reason)

    far = np.linalg.norm(lab - ground, axis=2)
    if float(np.mean(far[border] > MIN_CONTRAST)) > 0.25:
        return nothing("no even background")
    reach = float(np.quantile(far, 1 - MIN_AREA / 2))
    if reach < MIN_CONTRAST:
        return nothing("nothing stands out from the background")
    figure = np.median(lab[far > 0.8 * reach], axis=0)
    # Edges mix the two colours in RGB, so that is where a pixel's share of the shape is measured.
    ground_rgb = np.median(rgb[far < 0.3 * reach], axis=0)
    figure_rgb = np.median(rgb[far > 0.8 * reach], axis=0)
    axis = figure_rgb - ground_rgb
    cover = np.clip(((rgb - ground_rgb) @ axis) / float(axis @ axis), 0, 1)
    off = np.linalg.norm(rgb - (ground_rgb + cover[..., None] * axis), axis=2)
    if float(np.mean(off > 0.5 * np.linalg.norm(axis))) > MAX_UNEVEN:
        return nothing("more than two colours")
    solid = largest_piece(cover > 0.5)
    area = int(solid.sum())
    if area < MIN_AREA * side * side:
        return nothing("too small")
    if int((cover > 0.5).sum()) - area > MAX_STRAY * area:
        return nothing("in pieces")
    # Keep the piece with its soft edge, and drop specks elsewhere.
    cover = np.where(grow(solid), cover, 0.0)
    canvas = np.zeros((side, side), dtype=np.float32)
    canvas[top:bottom, left:right] = cover
    fits = sorted(((fit_shape(shape, canvas), shape) for shape in SHAPES), reverse=True)
    (fit, x, y, radius), shape = fits[0]
    runner_up = fits[1][0][0]
    if fit < MIN_FIT:
        return nothing(f"no known shape; nearest is {shape} ({fit:.2f})")
    return Verdict(
        shape=shape,
        color=name_color(figure),
        background=background,
        size=min(SIZES, key=lambda name: abs(np.log(SIZES[name] / radius))),
        position=name_position(x, y),
        fit=fit,
        runner_up=runner_up,
        sharpness=sharpness(shape, canvas, x, y, radius),
        color_rgb=median_rgb(rgb[far > 0.8 * reach]),
        background_rgb=background_rgb,
    )


def matches(prompt: str | Drawing, image: Image.Image, box: Box = WHOLE) -> Match:
    """Whether a picture shows what a prompt asks for."""
    wanted = parse_prompt(prompt) if isinstance(prompt, str) else prompt
    seen = judge(image, box)

    def compare(name: str) -> bool | None:
        value = getattr(wanted, name)
        return None if value is None else bool(value == getattr(seen, name))

    return Match(compare("shape"), compare("color"), compare("background"), compare("size"), compare("position"), seen)


def score(pairs: Iterable[tuple[str | Drawing, Image.Image]]) -> Score:
    """Judge many pictures, each against its prompt."""
    return tally([matches(prompt, image) for prompt, image in pairs])


def tally(found: list[Match]) -> Score:
    """Add up matches."""

    def share(values: list[bool | None]) -> float:
        said = [value for value in values if value is not None]
        return sum(said) / len(said) if said else 1.0

    seen = [match.verdict.sharpness for match in found if match.verdict.shape]
    return Score(
        n=len(found),
        right=sum(match.right for match in found),
        shape=sum(match.shape is not False for match in found),
        colors=sum(match.colors for match in found),
        color=sum(match.color is not False for match in found),
        background=sum(match.background is not False for match in found),
        everything=sum(match.everything for match in found),
        size=share([match.size for match in found]),
        position=share([match.position for match in found]),
        sharpness=float(np.mean(seen)) if seen else 0.0,
    )


def oklab(rgb: NDArray[np.float32]) -> Array:
    """Colours (0..255, last axis) in Oklab, where equal distances look about equally far."""
    share = np.asarray(rgb, dtype=np.float32) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ np.array(_TO_CONES, dtype=np.float32).T)
    return np.asarray(cones @ np.array(_TO_LAB, dtype=np.float32).T, dtype=np.float32)


_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


@lru_cache
def _palette() -> Array:
    return oklab(np.array(list(COLORS.values()), dtype=np.float32))


def name_color(lab: Array) -> str | None:
    """The colour word for a point in Oklab, or None when it is far from all of them."""
    distances = np.linalg.norm(_palette() - lab, axis=1)
    nearest = int(np.argmin(distances))
    return list(COLORS)[nearest] if distances[nearest] <= MAX_COLOR_DISTANCE else None


def median_rgb(pixels: Array) -> tuple[int, int, int]:
    """The middle of some pixels, as a plain colour."""
    red, green, blue = (round(float(value)) for value in np.median(pixels, axis=0))
    return red, green, blue


def name_position(x: float, y: float) -> str:
    """The name of the place, from the centre of the shape as shares of the sides."""
    vertical = "top" if y < 0.42 else "bottom" if y > 0.58 else ""
    horizontal = "left" if x < 0.42 else "right" if x > 0.58 else ""
    return f"{vertical} {horizontal}".strip() or "center"


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest set of pixels in the mask that hang together by their sides."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    height, width = mask.shape
    best, best_count, label = 0, 0, 0
    for row, column in zip(*np.nonzero(mask), strict=True):
        if labels[row, column]:
            continue
        label += 1
        labels[row, column] = label
        queue, count = deque([(int(row), int(column))]), 0
        while queue:
            y, x = queue.popleft()
            count += 1
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < height and 0 <= nx < width and mask[ny, nx] and not labels[ny, nx]:
                    labels[ny, nx] = label
                    queue.append((ny, nx))
        if count > best_count:
            best, best_count = label, count
    return labels == best if best_count else np.zeros(mask.shape, dtype=bool)


def grow(mask: NDArray[np.bool_], by: int = 2) -> NDArray[np.bool_]:
    """The mask, `by` pixels wider."""
    for _ in range(by):
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        mask = wider
    return mask


@lru_cache
def _moments(shape: str) -> tuple[float, float, float]:
    """The area and the centroid of a shape of radius 1."""
    side, radius = 256, 0.4
    mask = np.asarray(shape_mask(shape, side, 0.5, 0.5, radius), dtype=np.float64) / 255
    ys, xs = np.mgrid[:side, :side] + 0.5
    total = float(mask.sum())
    x, y = float((mask * xs).sum()) / total / side, float((mask * ys).sum()) / total / side
    return total / side**2 / radius**2, (x - 0.5) / radius, (y - 0.5) / radius


def fit_shape(shape: str, cover: Array) -> tuple[float, float, float, float]:
    """Lay a shape over the cover, with the same area and centroid: overlap, and centre and radius."""
    side = cover.shape[0]
    total = float(cover.sum())
    ys, xs = np.mgrid[:side, :side] + 0.5
    area, dx, dy = _moments(shape)
    radius = float(np.sqrt(total / side**2 / area))
    x = float((cover * xs).sum()) / total / side - dx * radius
    y = float((cover * ys).sum()) / total / side - dy * radius
    mask = np.asarray(shape_mask(shape, side, x, y, radius), dtype=np.float32) / 255
    union = float(np.maximum(mask, cover).sum())
    return float(np.minimum(mask, cover).sum()) / union, x, y, radius


def sharpness(shape: str, cover: Array, x: float, y: float, radius: float) -> float:
    """The number of half-covered pixels along the edge in a drawing, over that in this picture."""
    mask = np.asarray(shape_mask(shape, cover.shape[0], x, y, radius), dtype=np.float32) / 255
    ideal, seen = (int(((values > 0.15) & (values < 0.85)).sum()) for values in (mask, cover))
    return min(1.0, (ideal + 1) / (seen + 1))
