"""Contact sheets: all pictures of a batch at a glance, with prompt and seed, and a tile for each that failed.

Pictures are shrunk as they come, so memory holds one page, never the batch. Equal entries give equal bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin

from renderkiln.schema.errors import ImageInputError

from .opening import WRITTEN_FORMATS, open_picture, quiet, read_limited
from .read import MAX_FILE
from .words import font, plain, wrap

#: Tiles of one page: what a person can still scroll through, about 25 megapixels.
MAX_TILES = 200
MAX_COLUMNS = 10
#: Sides of a tile's picture in pixels: small ones grow towards the first, large ones shrink to the second.
_SMALL_TILE, _LARGE_TILE = 192, 256
_LIMIT_TILE = (32, 1024)
_MAX_PIXELS = 64_000_000

_GROUND, _CARD, _EDGE, _TEXT, _FAINT, _FAILED = (
    "#17181c",
    "#23252b",
    "#32353d",
    "#ececf0",
    "#8f949f",
    "#e5877d",
)
_MARGIN, _GAP, _PADDING, _RADIUS = 32, 16, 10, 10
_CAPTION, _CAPTION_LINE, _NOTE, _TITLE = 13, 18, 11, 22
_SHARP = 4


@dataclass(frozen=True)
class SheetEntry:
    """One tile."""

    #: The picture's file, as bytes or as a path; None where there is none.
    image: bytes | str | Path | None
    #: The prompt, as a rule; two lines of it are shown.
    caption: str
    #: Why there is no picture; the tile says so.
    failed: str | None = None
    seed: int | None = None


def contact_sheet(
    entries: Iterable[SheetEntry], *, columns: int | None = None, tile: int | None = None, title: str = ""
) -> bytes:
    """One page with all entries, as a PNG.

    `columns` and `tile` (the side of a tile's picture, in pixels) are chosen by the pictures' number and size
    where they are not given.

    Raises:
        ValueError: more entries than MAX_TILES; use `contact_sheets`.
    """
    pages = contact_sheets(entries, columns=columns, tile=tile, title=title)
    page = next(pages)
    if next(pages, None) is not None:
        raise ValueError(f"a page has at most {MAX_TILES} tiles; use contact_sheets")
    return page


def contact_sheets(
    entries: Iterable[SheetEntry], *, columns: int | None = None, tile: int | None = None, title: str = ""
) -> Iterator[bytes]:
    """Pages of at most MAX_TILES entries, each a PNG; at least one, also where there are no entries."""
    if tile is not None:
        tile = min(max(tile, _LIMIT_TILE[0]), _LIMIT_TILE[1])
    remaining = iter(entries)
    number = 1
    ahead: list[SheetEntry] = list(islice(remaining, 1))
    while ahead or number == 1:
        page = islice(chain(ahead, remaining), MAX_TILES)
        tiles: list[tuple[Image.Image | None, SheetEntry]] = []
        for entry in page:
            picture, entry = _fitted(entry, tile)
            if tile is None and picture is not None:
                # The first picture decides, for this and all later pages.
                tile = max(picture.size) if max(picture.size) >= _SMALL_TILE // 2 else _SMALL_TILE
            tiles.append((picture, entry))
        ahead = list(islice(remaining, 1))
        is_single = number == 1 and not ahead
        heading = title if is_single else f"{title} · page {number}".removeprefix(" · ")
        yield _page(tiles, tile or _LARGE_TILE, columns, heading)
        number += 1


def _fitted(entry: SheetEntry, tile: int | None) -> tuple[Image.Image | None, SheetEntry]:
    """The entry's picture in the size of a tile; one that cannot be read becomes a failed tile."""
    if entry.image is None or entry.failed:
        return None, entry
    try:
        name = "it"
        data = entry.image if isinstance(entry.image, bytes) else read_limited(Path(entry.image), MAX_FILE)
        with open_picture(data, name, WRITTEN_FORMATS) as opened, quiet():
            if opened.width * opened.height > _MAX_PIXELS:
                raise ImageInputError(f"{name} has more than {_MAX_PIXELS // 1_000_000} megapixels")
            side = tile or (_SMALL_TILE if max(opened.size) <= _SMALL_TILE else _LARGE_TILE)
            opened.draft("RGB", (side * 2, side * 2))  # lets a large JPEG be decoded at a fraction
            picture = opened.convert("RGB")
    except (ImageInputError, OSError, ValueError, SyntaxError) as error:
        return None, SheetEntry(None, entry.caption, f"cannot be read: {error}", entry.seed)
    longest = max(picture.size)
    if longest > side:
        scale = side / longest
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), entry
    factor = max(1, side // longest)
    if factor > 1:
        # By a whole factor, and smooth: squares of pixels would be seen before the picture.
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    return picture, entry


def _page(tiles: list[tuple[Image.Image | None, SheetEntry]], tile: int, columns: int | None, title: str) -> bytes:
    across = columns or min(MAX_COLUMNS, math.ceil(math.sqrt(len(tiles) * 1.5)))
    across = max(1, min(across, MAX_TILES, len(tiles) or 1))
    down = math.ceil(len(tiles) / across)
    card_width = tile + 2 * _PADDING
    card_height = tile + 3 * _PADDING + 2 * _CAPTION_LINE + _NOTE + 6
    top = _MARGIN + (_TITLE + 20 if title else 0)
    width = 2 * _MARGIN + across * card_width + (across - 1) * _GAP
    width = max(width, 2 * _MARGIN + 320)
    height = top + _MARGIN + (down * card_height + (down - 1) * _GAP if tiles else 60)
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        line = wrap(plain(title), font(_TITLE), width - 2 * _MARGIN, 1)[0]
        draw.text((_MARGIN, _MARGIN - 4), line, font=font(_TITLE), fill=_TEXT)
    if not tiles:
        draw.text((_MARGIN, top), "No pictures.", font=font(_CAPTION), fill=_FAINT)
    card = _card(card_width, card_height)
    for place, (picture, entry) in enumerate(tiles):
        x = _MARGIN + place % across * (card_width + _GAP)
        y = top + place // across * (card_height + _GAP)
        sheet.paste(card, (x, y))
        _fill(sheet, draw, x + _PADDING, y + _PADDING, tile, picture, entry)
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=3, pnginfo=PngImagePlugin.PngInfo())
    return file.getvalue()


def _fill(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    tile: int,
    picture: Image.Image | None,
    entry: SheetEntry,
) -> None:
    if picture is not None:
        at = (x + (tile - picture.width) // 2, y + (tile - picture.height) // 2)
        sheet.paste(picture, at, _round_mask(*picture.size, _RADIUS - 4))
    else:
        said = wrap(plain(entry.failed or "no picture"), font(_NOTE), tile - 32, 6)
        middle = y + tile // 2 - (len(said) * 15 + 24) // 2
        draw.text((x + 16, middle), "Failed" if entry.failed else "Missing", font=font(16), fill=_FAILED)
        for number, line in enumerate(said):
            draw.text((x + 16, middle + 24 + number * 15), line, font=font(_NOTE), fill=_FAINT)
    below = y + tile + _PADDING
    for number, line in enumerate(wrap(plain(entry.caption), font(_CAPTION), tile, 2)):
        draw.text((x, below + number * _CAPTION_LINE), line, font=font(_CAPTION), fill=_TEXT)
    if entry.seed is not None:
        at = (x, below + 2 * _CAPTION_LINE + 2)
        draw.text(at, f"seed {entry.seed}", font=font(_NOTE), fill=_FAINT)


@lru_cache(maxsize=4)
def _card(width: int, height: int) -> Image.Image:
    card = Image.new("RGB", (width, height), _GROUND)
    card.paste(_EDGE, (0, 0, width, height), _round_mask(width, height, _RADIUS))
    inner = _round_mask(width - 2, height - 2, _RADIUS - 1)
    card.paste(_CARD, (1, 1, width - 1, height - 1), inner)
    return card


@lru_cache(maxsize=16)
def _round_mask(width: int, height: int, radius: int) -> Image.Image:
    """A rectangle with smooth round corners: drawn larger and shrunk, as Pillow covers pixels wholly."""
    large = Image.new("L", (width * _SHARP, height * _SHARP), 0)
    box = (0, 0, width * _SHARP - 1, height * _SHARP - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, radius * _SHARP, fill=255)
    return large.resize((width, height), Image.Resampling.BOX)
