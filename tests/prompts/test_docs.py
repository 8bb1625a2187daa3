"""The examples of docs/prompt-lists.md are read as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from renderkiln.producer.prompts import SUFFIXES, parse_sweep
from renderkiln.producer.prompts.fields import KNOWN

from .helpers import PICTURE, asked, refused

PAGE = (Path(__file__).parents[2] / "docs" / "prompt-lists.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
EXAMPLES = [(form, said, text) for form, said, text in FENCES if "jobs=" in said]
ERRORS = [(form, text, FENCES[k + 1][2].strip()) for k, (form, said, text) in enumerate(FENCES) if said == "error"]
SWEEPS = re.findall(r"^\| `(\w+=[^`]+)` \| (.*) \|$", PAGE, re.MULTILINE)


def test_there_are_examples_of_every_form() -> None:
    assert {form for form, _, _ in EXAMPLES} == {"txt", "csv", "jsonl", "yaml"}
    assert len(ERRORS) >= 5
    assert len(SWEEPS) >= 5


@pytest.mark.parametrize(("form", "said", "text"), EXAMPLES)
def test_examples(tmp_path: Path, form: str, said: str, text: str) -> None:
    path = tmp_path / f"list.{form}"
    path.write_text(text)
    promised = dict(part.split("=") for part in said.split())
    found = asked(path, resolve=lambda picture, folder: PICTURE)
    assert len(found) == int(promised["jobs"])
    assert sum(request.options.num_images for request in found) == int(promised.get("images", len(found)))


@pytest.mark.parametrize(("form", "text", "message"), ERRORS)
def test_errors(tmp_path: Path, form: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"list.{form}").write_text(text)
    assert str(refused(f"list.{form}")).startswith(message)


@pytest.mark.parametrize(("text", "values"), SWEEPS)
def test_sweeps(text: str, values: str) -> None:
    assert ", ".join(str(value) for value in parse_sweep(text).values) == values


def test_every_field_and_suffix_is_named() -> None:
    for name in (*KNOWN, *SUFFIXES):
        assert f"`{name}`" in PAGE, name
