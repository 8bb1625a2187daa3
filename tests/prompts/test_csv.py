from __future__ import annotations

from pathlib import Path

import pytest

from .helpers import asked, refused, texts


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "list.csv"


def test_columns_are_fields_and_empty_cells_leave_them_open(table: Path) -> None:
    table.write_bytes(
        b"\xef\xbb\xbfprompt, seed ,guidance_scale,labels.project,safety_checker\r\n"
        b'"a ""red"" hat,\r\ntall",7, 3,hats,false\r\n\r\nb,,,,\r\n'
    )
    first, second = asked(table, defaults={"guidance_scale": 5, "seed": 4})
    assert first.spec.prompt == 'a "red" hat,\r\ntall'
    assert (first.spec.seed, first.spec.guidance_scale, first.spec.safety_checker) == (7, 3, False)
    assert first.options.labels == {"project": "hats"}
    assert (second.spec.seed, second.spec.guidance_scale, second.options.labels) == (4, 5, {})
    assert (first.where.line, second.where.line) == (2, 5)


def test_a_lone_cell_of_spaces_is_a_prompt_in_quotes_and_a_blank_line_without(table: Path) -> None:
    table.write_text('prompt\n"  "\n  \n\n"a\n"\n""\n')
    assert texts(table) == ["  ", "a\n"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators(table: Path, mark: str) -> None:
    table.write_text(f"prompt{mark}seed\na, b{mark}3\n")
    assert texts(table) == ["a, b"]


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("prompt,seed\na,1\nb,-1\n", "3:2", "seed = '-1'"),
        ('prompt,seed\n"a\n\nb",1\nc,x\n', "5:2", "(column 'seed')"),
        ("\n\nprompt,seed\na,x\n", "4:2", "(column 'seed')"),
        ("prompt,sed\na,1\n", "1:2", "Did you mean 'seed'"),
        ("prompt,steps\na,1\n", "1:2", "Here it is called 'num_inference_steps'"),
        ("prompt,,seed\n", "1:2", "no name"),
        ("prompt,prompt\n", "1:2", "twice"),
        ("prompt,labels\n", "1:2", "labels.NAME"),
        ("prompt,labels.\n", "1:2", "unknown field"),
        ("prompt,seed\na\n", "2:2", "expected 2 cells (prompt, seed), found 1"),
        ("prompt,seed\na,1,2\n", "2:3", "found 3"),
        ('prompt,seed\n"a,1\nb,2\n', "2:1", "expected a CSV record"),
        ('prompt,seed\n"a"x,1\n', "2:1", "expected a CSV record"),
        ("prompt,labels.a\nx," + "y" * 300, "2:2", "at most 200"),
        ("seed\n3\n", "2:1", "'prompt' is missing"),
        ("prompt,strength\na,0.3\n", "2:1", "strength needs an init_image"),
        ("a red hat\n", "1:1", "names the field of each column"),
        ("prompt\n", "", "no prompts"),
        ("", "", "no prompts"),
    ],
)
def test_errors_name_line_and_cell(table: Path, text: str, place: str, said: str) -> None:
    table.write_text(text)
    error = refused(table)
    assert str(error).startswith(f"{table}:{place}: " if place else f"{table}: "), error
    assert said in str(error)
