"""What holds for every list: what was written is what is read, and nothing but our own errors comes out."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.producer.prompts import FORMATS, ListOptions, escape, parse_sweep, read, requests
from renderkiln.schema import parse_request
from renderkiln.schema.errors import InvalidSpecError, PromptListError

from .helpers import PICTURE, asked, texts

#: Any text that is a prompt: no NUL, no half of a surrogate pair.
PROMPTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
#: A prompt that fits on a line of its own.
LINES = PROMPTS.map(lambda text: " ".join(text.replace("\r", "").split("\n")).strip()).filter(bool)
ROWS = st.fixed_dictionaries(
    {"prompt": PROMPTS},
    optional={
        "negative_prompt": PROMPTS,
        "seed": st.integers(0, 2**32 - 1),
        "num_inference_steps": st.integers(1, 1000),
        "guidance_scale": st.floats(0, 50),
        "width": st.integers(1, 512).map(lambda k: 8 * k),
        "scheduler": st.sampled_from(["euler a", "ddim", "DDIMScheduler"]),
        "safety_checker": st.booleans(),
        "num_images": st.integers(1, 10_000),
        "priority": st.sampled_from(["high", "low"]),
    },
)

#: What ends a line for YAML, which counts more than the others do.
LINE_ENDS = (b"\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")


def as_txt(rows: list[dict[str, object]]) -> str:
    return "\n".join(re.sub(r"^(\\*(?:#|--))", r"\\\1", str(row["prompt"])) for row in rows)


def as_csv(rows: list[dict[str, object]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, sorted({name for row in rows for name in row}), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_yaml(rows: list[dict[str, object]]) -> str:
    return yaml.safe_dump([row["prompt"] if len(row) == 1 else row for row in rows])


WRITERS: dict[str, Callable[[list[dict[str, object]]], str]] = {
    "csv": as_csv,
    "jsonl": as_jsonl,
    "yaml": as_yaml,
}


@pytest.mark.parametrize("form", WRITERS)
@given(rows=st.lists(ROWS, min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_read(form: str, rows: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"list.{form}"
        path.write_bytes(WRITERS[form](rows).encode())
        found = asked(path, expand=False)
        escaped = [{**row, **{k: escape(str(row[k])) for k in row if k.endswith("prompt")}} for row in rows]
        path.write_bytes(WRITERS[form](escaped).encode())
        again = asked(path)
    expected = asked_directly(rows)
    assert [{**r.spec.model_dump(), **r.options.model_dump()} for r in found] == expected
    assert [(r.spec, r.options) for r in again] == [(r.spec, r.options) for r in found]


def asked_directly(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    seeds = iter(asked_seeds(rows))
    pairs = [parse_request({"seed": next(seeds), **row}) for row in rows]
    return [{**spec.model_dump(), **options.model_dump()} for spec, options in pairs]


def asked_seeds(rows: list[dict[str, object]]) -> list[int]:
    """The seeds that the same rows have as JSON lines on standard input."""
    opened = read("-", ListOptions(expand=False, format="jsonl"), stdin=io.StringIO(as_jsonl(rows)))
    return [item.fields["seed"] for item in opened]


@given(prompts=st.lists(LINES, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_lines_are_read_as_they_are_written(prompts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        path.write_bytes(as_txt([{"prompt": prompt} for prompt in prompts]).encode())
        assert texts(path, expand=False) == prompts


@pytest.mark.parametrize("form", FORMATS)
@given(
    data=st.one_of(
        st.binary(max_size=80),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text("ab \"'\\#-{}[]|_:,&*!<>?%@~\n\r\t0.", max_size=60).map(str.encode),
        st.lists(
            st.sampled_from(
                [
                    "prompt",
                    "seed",
                    "{",
                    "}",
                    '"',
                    ":",
                    ",",
                    "\n",
                    "- ",
                    "--",
                    "a",
                    "1",
                    "&a ",
                    "*a",
                    "labels",
                    "|",
                    "__a__",
                ]
            ),
            max_size=25,
        ).map(lambda parts: "".join(parts).encode()),
    )
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_list_or_a_clear_error(form: str, data: bytes) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(data))
    for options in (ListOptions(format=form), ListOptions(format=form, combinations=True)):
        stdin.buffer.seek(0)
        try:
            opened = read("-", options, stdin=stdin)
            first = [(item.fields, item.where) for item in opened]
            assert first == [(item.fields, item.where) for item in opened]
        except PromptListError as error:
            place = (error.source, error.line or 1, error.column or 1)
            str(error).encode()
        else:
            place = ("-", 1, 1)
        assert place[0] == "-"
        assert 1 <= place[1] <= sum(data.count(mark) for mark in LINE_ENDS) + 2
        assert 1 <= place[2] <= len(data) + 2


@given(st.one_of(st.text(max_size=30), st.text("seed=.,\"'123- ", max_size=20).map(lambda text: "seed=" + text)))
@settings(max_examples=400, deadline=None)
def test_any_sweep_is_one_or_a_clear_error(text: str) -> None:
    try:
        sweep = parse_sweep(text)
    except PromptListError as error:
        column = error.column or 0
    else:
        column = 1
        assert len(set(sweep.values)) == len(sweep.values) > 0
    assert 1 <= column <= len(text) + 1


NAMES = st.sampled_from(["prompt", "seed", "width", "labels", "x", "init_image"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


@given(st.dictionaries(NAMES, st.one_of(SCALARS, st.lists(SCALARS, max_size=2))))
@settings(max_examples=200, deadline=None)
def test_any_defaults_are_some_or_a_clear_error(defaults: dict[str, object]) -> None:
    with suppress(PromptListError, InvalidSpecError):
        list(requests([read("a", ListOptions(defaults=defaults))], lambda path, folder: PICTURE))
