from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.producer.prompts import Where
from renderkiln.producer.prompts.a1111 import _words
from renderkiln.schema.errors import PromptListError

from .helpers import asked, refused, texts


@pytest.fixture
def txt(tmp_path: Path) -> Path:
    return tmp_path / "list.txt"


def test_one_prompt_a_line_without_blanks_and_comments(txt: Path) -> None:
    txt.write_bytes(b"\xef\xbb\xbf# hats\r\n\r\n  a red hat  \r\n\t\n#green\na (green:1.2) [hat|cap]")
    assert texts(txt) == ["a red hat", "a (green:1.2) [hat|cap]"]
    assert [str(request.where) for request in asked(txt)] == [f"{txt}:3:3", f"{txt}:6:1"]


def test_a_backslash_saves_what_starts_like_a_comment_or_an_option(txt: Path) -> None:
    txt.write_text("\\#1 of 3\n\\--- a line\n\\\\#x\n\\(round\\)")
    assert texts(txt) == ["#1 of 3", "--- a line", "\\#x", "\\(round\\)"]


@pytest.mark.parametrize(
    ("data", "place", "said"),
    [
        (b"ok\na\0b", "2:2", "NUL"),
        ("ok\nhé".encode() + b"\xff", "2:3", "byte 0xff is not UTF-8"),
        (b"caf\xe9 au lait", "1:4", "byte 0xe9 is not UTF-8"),
        ("ok".encode("utf-16"), "1:1", "UTF-16"),
        (b"a" * ((1 << 20) + 1), "1:1", "longer than 1 MiB"),
        (b"one\rtwo\n", "1:4", "carriage return"),
        (b"x" * 10_001, "1:1", "at most 10000 characters"),
        (b"a\n  a {red hat", "2:5", "'{' is not closed"),
        (b"a } b", "1:3", "without a '{'"),
    ],
)
def test_what_is_no_text_is_refused_where_it_stands(txt: Path, data: bytes, place: str, said: str) -> None:
    txt.write_bytes(data)
    error = refused(txt)
    assert str(error).startswith(f"{txt}:{place}: ")
    assert said in str(error)
    assert error.exit_code == 2


def test_an_empty_list_is_refused(txt: Path) -> None:
    txt.write_text("# nothing\n")
    assert "no prompts" in str(refused(txt))


def test_the_line_of_automatic1111(txt: Path) -> None:
    txt.write_text(
        '--prompt "a red hat, \\(felt\\)" --negative_prompt blurry, dark --steps 30 --cfg_scale 7 --seed 1 '
        '--sampler_name "DPM++ 2M Karras" --width 64 --height 128 --batch_size 2 --n_iter 3\n'
        "--prompt plain words --seed -1 --tiling false --do_not_save_grid true --num-inference-steps 5\n"
    )
    first, second = asked(txt)
    assert first.spec.model_dump(exclude_defaults=True) == {
        "prompt": "a red hat, \\(felt\\)",
        "negative_prompt": "blurry, dark",
        "num_inference_steps": 30,
        "guidance_scale": 7.0,
        "seed": 1,
        "scheduler": "dpm++ 2m karras",
        "width": 64,
        "height": 128,
    }
    assert first.options.num_images == 6
    assert (second.spec.prompt, second.spec.num_inference_steps) == ("plain words", 5)
    assert second.spec.seed == asked(txt)[1].spec.seed > 0


@pytest.mark.parametrize(
    ("line", "column", "said"),
    [
        ("--prompt a --stepz 3", 12, "Did you mean '--steps'"),
        ("--prompt a --tiling true", 21, "tiling pictures are not made"),
        ("--prompt a --tiling maybe", 21, "expected true or false"),
        ("--prompt a --outpath_samples x", 12, "--out of the command"),
        ("--prompt a --sd_model x", 12, "--model"),
        ("--prompt a --steps", 12, "has no value"),
        ("--prompt a --steps --seed 3", 12, "has no value"),
        ("--prompt a --steps x", 20, "num_inference_steps = 'x'"),
        ("--prompt a --steps 0", 20, "greater than or equal to 1"),
        ("--prompt a --seed -2", 19, "seed"),
        ("--prompt a --steps 3 --steps 4", 22, "given twice"),
        ("--prompt a --steps 3 --num_inference_steps 4", 22, "given twice"),
        ("--prompt a --steps 3 4", 22, "expected an option"),
        ("--prompt a --n_iter 0", 21, "n_iter"),
        ("--prompt a --n_iter 200 --batch_size 200", 1, "batch_size × n_iter"),
        ("--prompt a --n_iter 2 --num_images 3", 36, "give one of them"),
        ("--prompt 'a --steps 3", 10, "not closed"),
        ("--prompt a\\", 11, "backslash"),
        ("--prompt a --sampler_name eulr", 27, "Did you mean 'euler'"),
        ("--steps 3", 1, "'prompt' is missing"),
        ('--prompt "a {b"', 10, "(character 3 of prompt)"),
    ],
)
def test_options_that_cannot_be_meant(txt: Path, line: str, column: int, said: str) -> None:
    txt.write_text(f"fine\n{line}\n")
    error = refused(txt)
    assert (error.line, error.column) == (2, column), error
    assert said in str(error)


@given(st.text("ab '\"\\-\t", max_size=20))
@settings(max_examples=300, deadline=None)
def test_words_are_split_as_a_shell_splits_them(text: str) -> None:
    try:
        expected = shlex.split(text)
    except ValueError:
        with pytest.raises(PromptListError):
            list(_words(text, Where("list")))
        return
    assert [word.text for word in _words(text, Where("list"))] == expected
