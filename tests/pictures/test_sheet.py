"""Contact sheets: every entry has its tile, pages are bounded, and equal entries give equal bytes."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from renderkiln.home.pictures.sheet import MAX_TILES, SheetEntry, contact_sheet, contact_sheets
from renderkiln.home.pictures.words import font, plain, wrap

from .specs import picture


def flat(color: str, size: tuple[int, int] = (64, 64), image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, image_format)
    return file.getvalue()


def opened(page: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(page))
    assert image.format == "PNG"
    return image.convert("RGB")


def share(image: Image.Image, color: tuple[int, int, int]) -> int:
    """Pixels of exactly this colour."""
    return sum(count for count, found in image.getcolors(1 << 24) or [] if found == color)


def test_pictures_are_on_the_sheet_and_enlarged_by_a_whole_factor() -> None:
    sheet = opened(contact_sheet([SheetEntry(flat("red"), "a red one", seed=1), SheetEntry(flat("blue"), "b")]))
    # 192², less the rounded corners.
    assert 192 * 192 - 60 < share(sheet, (255, 0, 0)) <= 192 * 192
    assert 192 * 192 - 60 < share(sheet, (0, 0, 255)) <= 192 * 192


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(flat("lime", (1024, 512), "JPEG"))
    sheet = opened(contact_sheet([SheetEntry(path, "a"), SheetEntry(flat("red", (512, 1024)), "b")]))
    assert 256 * 128 - 60 < share(sheet, (255, 0, 0)) <= 256 * 128
    assert sheet.width < 700


def test_failed_and_unreadable_pictures_have_tiles_that_say_so() -> None:
    entries = [
        SheetEntry(None, "a", "out_of_memory: no room"),
        SheetEntry(b"junk", "b"),
        SheetEntry(None, "c"),
        SheetEntry("/nowhere/at/all.png", "d"),
        SheetEntry(picture()[:-40], "e"),
    ]
    sheet = opened(contact_sheet(entries, columns=5))
    assert share(sheet, (0xE5, 0x87, 0x7D)) > 5 * 20


def test_the_same_entries_give_the_same_bytes() -> None:
    entries = [SheetEntry(flat("red"), "äöü 猫 🙂\n\n and\tmore", seed=2**32 - 1)] * 3
    assert contact_sheet(entries, title="t") == contact_sheet(iter(entries), title="t")


def test_there_is_a_sheet_of_nothing() -> None:
    assert opened(contact_sheet([])).width > 100
    assert opened(contact_sheet([], title="x" * 500)).width > 100


def test_pages_are_bounded_and_lose_nothing() -> None:
    entries = [SheetEntry(None, str(number)) for number in range(2 * MAX_TILES + 1)]
    pages = [opened(page).size for page in contact_sheets(entries, tile=32, columns=20, title="many")]
    assert len(pages) == 3
    assert pages[0] == pages[1]
    assert pages[2][1] < pages[0][1]
    assert len(list(contact_sheets(entries[:MAX_TILES], tile=32))) == 1
    with pytest.raises(ValueError, match="use contact_sheets"):
        contact_sheet(entries, tile=32)


def test_memory_does_not_grow_with_the_pages() -> None:
    one = flat("red")

    def entries(count: int) -> Iterator[SheetEntry]:
        for number in range(count):
            yield SheetEntry(one + bytes(20_000), f"picture {number}")  # each of its own bytes

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in contact_sheets(entries(count), tile=32, columns=20):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4 * MAX_TILES) < 1.5 * peak(MAX_TILES) + 500_000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, Łódź – “so”", 'Grusse, Lodz - "so"'),
        ("赤い円 on white", "[…] on white"),
        ("猫 🙂 cat", "[…] cat"),
        ("a\nb\t c\x1b[31m", "a b c[…][31m"),
    ],
)
def test_text_that_the_font_has_no_shapes_for(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(text=st.text(max_size=300), width=st.integers(20, 300), lines=st.integers(1, 4))
def test_lines_fit(text: str, width: int, lines: int) -> None:
    wrapped = wrap(plain(text), font(13), width, lines)
    assert 1 <= len(wrapped) <= lines
    assert all(font(13).getlength(line) <= width for line in wrapped)
