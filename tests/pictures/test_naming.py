"""Names of files and folders: safe whatever the prompt, sorted, told apart."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.home.pictures.naming import batch_folder, file_name, slug
from renderkiln.schema.errors import BadInputError

DIGEST = "1f2e3d4c" * 8


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A small red heart, on the left!", "a-small-red-heart-on-the-left"),
        ("Grüße aus Łódź", "grusse-aus-odz"),
        ("../../etc/passwd", "etc-passwd"),
        ("赤い円 🙂", "untitled"),
        ("", "untitled"),
        ("x" * 200, "x" * 60),
        ("word " * 40, "-".join(["word"] * 12)),
        ("é" * 10, "e" * 10),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


@given(prompt=st.text(max_size=2000), index=st.integers(0, 10**9), seed=st.integers(0, 2**32 - 1))
def test_a_file_name_is_safe_on_every_file_system(prompt: str, index: int, seed: int) -> None:
    name = file_name(index, seed, DIGEST, prompt, "jpeg")
    assert re.fullmatch(r"[0-9]{5,10}-[0-9]{1,10}-[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{8}\.jpg", name)
    assert len(name) <= 100


def test_names_sort_by_place_in_the_batch() -> None:
    names = [file_name(index, 99 - index, DIGEST, "b", "png") for index in range(99)]
    assert names == sorted(names)
    assert names[12] == "00012-87-b-1f2e3d4c.png"


batch_ids = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,79}", fullmatch=True)


@given(batch_id=batch_ids)
def test_a_batch_folder_is_one_safe_name(batch_id: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9._-]*[a-z0-9_-])?", batch_folder(batch_id))


def test_batch_folders_of_different_batches_differ() -> None:
    ids = ["a", "a.", "a..", "con", "con-1", "con.txt", "nul", "b-2026.11"]
    folders = [batch_folder(batch_id) for batch_id in ids]
    assert len(set(folders)) == len(ids)
    assert folders[0] == "a"
    assert folders[-1] == "b-2026.11"
    assert not any(re.fullmatch(r"(con|nul)(\..*)?", folder) for folder in folders)


@pytest.mark.parametrize("batch_id", ["", "..", "/etc", "a/b", "A", ".hidden", "a\n", "x" * 81])
def test_what_is_no_batch_id_is_refused(batch_id: str) -> None:
    with pytest.raises(BadInputError, match="not a batch id"):
        batch_folder(batch_id)
