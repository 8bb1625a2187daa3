from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from renderkiln.producer.prompts import ListOptions, is_list, read
from renderkiln.schema.errors import InvalidSpecError, PromptListError

from .helpers import refused, texts


def prompts(source: str, text: str | bytes, **options: object) -> list[str]:
    stdin = io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()))
    opened = read(source, ListOptions(**options), stdin=stdin)
    first = [item.fields["prompt"] for item in opened]
    assert first == [item.fields["prompt"] for item in opened]
    return first


def test_what_is_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hats").write_text("a\n")
    for source in ("-", "hats", str(tmp_path), "missing.txt", "missing.YAML", "a.csv", "b.jsonl"):
        assert is_list(source), source
    for source in (
        "a red hat",
        "",
        " ",
        "x" * 5000,
        "nul\0",
        "version 1.5",
        "a hat, 8k. sharp",
        "--prompt x",
    ):
        assert not is_list(source), source


def test_a_prompt_as_it_is() -> None:
    assert texts("  # a red hat\nof felt ") == ["  # a red hat\nof felt "]
    assert read("A Réd Hat!").name == "a-red-hat"
    assert read("帽子").name == "untitled"
    assert len(read("hat-" * 50).name) <= 40
    assert "NUL" in str(refused("a\0b"))


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    assert str(refused(tmp_path)) == f"{tmp_path}: is a folder; expected a file with a list of prompts"
    error = refused(tmp_path / "no.txt")
    assert "no such file" in str(error)
    assert error.exit_code == 2


def test_a_file_that_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG")
    assert ".png is no form of list; expected .txt, .csv" in str(refused(path))
    with pytest.raises(InvalidSpecError, match="Did you mean 'jsonl'"):
        read(str(path), ListOptions(format="json"))


def test_the_form_of_a_file_without_suffix(tmp_path: Path) -> None:
    path = tmp_path / "hats"
    path.write_text('\n {"prompt": "a"}\n')
    assert texts(path) == ["a"]
    path.write_text("{red|red} hat\n")
    assert texts(path) == ["red hat"]
    path.write_text("prompt\nb\n")
    assert texts(path, format="csv") == ["b"]
    path.write_text("")
    assert "no prompts" in str(refused(path))


def test_standard_input_can_be_read_twice() -> None:
    assert prompts("-", "a\n# no\nb\n") == ["a", "b"]
    assert prompts("-", '{"prompt": "a"}\n{"prompt": "b"}') == ["a", "b"]
    assert prompts("-", "- a\n- b\n", format="yaml") == ["a", "b"]
    assert prompts("-", "prompt\na\n", format="csv") == ["a"]
    with pytest.raises(PromptListError, match=r"^-:2:3: byte 0xff"):
        prompts("-", b"ok\nab\xff")


def test_standard_input_of_text_alone() -> None:
    opened = read("-", stdin=io.StringIO("a\nb\n"))
    assert opened.name == "stdin"
    assert [item.fields["prompt"] for item in opened] == ["a", "b"]


def test_the_copy_goes_with_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = read("-", stdin=io.StringIO("a\n"))
    assert len(list(tmp_path.iterdir())) == 1
    del opened
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("renderkiln.producer.prompts.source.MAX_COPY", 100)
    with pytest.raises(PromptListError, match="put so long a list into a file"):
        read("-", stdin=io.StringIO("a" * 101))
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_read_once_and_kept(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a\nb\n",))
    writer.start()
    opened = read(str(pipe))
    writer.join()
    assert [item.fields["prompt"] for item in opened] == ["a", "b"]
    assert [item.fields["prompt"] for item in opened] == ["a", "b"]


def test_a_list_that_changes_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a\nb\n")
    opened = read(str(path))
    assert len(list(opened)) == 2
    path.write_text("a\nb\nc\n")
    with pytest.raises(PromptListError, match="changed while it was being read"):
        list(opened)
    opened = read(str(path))
    replacement = tmp_path / "new"
    replacement.write_text("x\ny\nz\n")
    replacement.replace(path)
    with pytest.raises(PromptListError, match="changed while it was being read"):
        list(opened)
    opened = read(str(path))
    path.unlink()
    with pytest.raises(PromptListError, match="cannot be read"):
        list(opened)


def test_a_list_that_changes_in_mid_read_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a\n" * 10)
    passing = iter(read(str(path)))
    next(passing)
    path.write_text("b\n" * 11)
    with pytest.raises(PromptListError, match="changed while it was being read"):
        list(passing)


def test_two_passes_may_run_at_once(tmp_path: Path) -> None:
    opened = read("-", stdin=io.StringIO("a\nb\nc\n"))
    assert [(x.fields["prompt"], y.fields["prompt"]) for x, y in zip(opened, opened, strict=True)] == [
        (c, c) for c in "abc"
    ]
