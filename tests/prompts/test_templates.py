from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.producer.prompts import escape, parse_sweep
from renderkiln.producer.prompts.templates import TemplateError, parse

from .helpers import asked, refused, texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wildcards"
    (folder / "trees").mkdir(parents=True)
    (folder / "colors.txt").write_text("# warm first\nred\n\norange\r\n  green  \n\\#fff\n")
    (folder / "trees" / "oak.txt").write_text("{old|young} oak\n__colors__ oak\n")
    return folder


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("a {red|green} hat", ["a red hat", "a green hat"]),
        ("{a|b}{1|2}", ["a1", "a2", "b1", "b2"]),
        ("{a|{b|c} d|}", ["a", "b d", "c d", ""]),
        ("{a}", ["a"]),
        ("{}", [""]),
        ("__colors__ hat", ["red hat", "orange hat", "green hat", "#fff hat"]),
        ("__trees/oak__", ["old oak", "young oak", "red oak", "orange oak", "green oak", "#fff oak"]),
        ("{__colors__|no} x", ["red x", "orange x", "green x", "#fff x", "no x"]),
        ("(word:1.2) [a|b] a|b <lora:x:1>", ["(word:1.2) [a|b] a|b <lora:x:1>"]),
        (r"\{a\|b\} \__colors__ \(c\) \\", [r"{a|b} __colors__ \(c\) \\"]),
        ("a __ b __ c, __, ____", ["a __ b __ c, __, ____"]),
    ],
)
def test_all_combinations(folder: Path, template: str, prompts: list[str]) -> None:
    assert texts(template, wildcards=folder, combinations=True) == prompts
    assert texts(template, wildcards=folder)[0] in prompts
    assert texts(template, expand=False) == [template]


def test_combinations_of_both_prompts_and_sweeps(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("prompt,negative_prompt\n{a|b},{c|d}\n")
    found = asked(path, combinations=True, sweeps=(parse_sweep("guidance_scale=1,2"),))
    points = [(r.spec.guidance_scale, r.spec.prompt, r.spec.negative_prompt) for r in found]
    assert points == list(product((1, 2), "ab", "cd"))
    seeds = {(r.spec.prompt, r.spec.negative_prompt): r.spec.seed for r in found}
    assert [r.spec.seed for r in found] == [*seeds.values()] * 2
    assert len(set(seeds.values())) == 4


def test_equal_combinations_are_two_pictures() -> None:
    first, second = asked("{a|a} hat", combinations=True)
    assert first.spec.prompt == second.spec.prompt
    assert first.spec.seed != second.spec.seed


def test_draws_are_the_same_each_time_and_differ_between_equal_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a {red|green|blue|pink} hat\n" * 60)
    drawn = texts(path)
    assert drawn == texts(path)
    assert len(set(drawn)) == 4
    assert min(drawn.count(prompt) for prompt in set(drawn)) >= 5
    shorter = tmp_path / "shorter.txt"
    shorter.write_text("another\n" + "a {red|green|blue|pink} hat\n" * 20)
    assert texts(shorter)[1:] == drawn[:20]


def test_draws_do_not_change_from_one_release_to_the_next() -> None:
    found = [(r.spec.prompt, r.spec.seed) for r in asked(*["a {red|green|blue|pink} hat"] * 3)]
    assert found == [("a green hat", 1942834489), ("a red hat", 802250893), ("a green hat", 77496541)]


def test_a_draw_is_checked_after_it_is_made() -> None:
    assert "longer than 10,000" in str(refused("x" * 9_999 + "{ab|cd}"))
    assert "longer than 10,000" in str(refused("{" + "x" * 10_001 + "}"))
    assert "choices" in str(refused("{}" * 10_001))
    assert len(texts("{" + "x" * 9_000 + "|" + "y" * 9_000 + "}")[0]) == 9_000


@pytest.mark.parametrize(
    ("prompt", "column", "said"),
    [
        ("a {b", 3, "not closed"),
        ("a {b|{c|d}", 3, "not closed"),
        ("a b}", 4, "without a '{'"),
        ("{2$$a|b}", 2, "choosing several"),
        ("{a|3::b}", 4, "weights"),
        ("${x}", 2, "variables"),
        ("{" * 40 + "}" * 40, 33, "nested"),
        ("a __color__ hat", 3, "Did you mean 'colors'"),
        ("__oak__", 1, "Did you mean 'trees/oak'"),
        ("a __../colors__", 3, "expected the name of a file"),
        ("a __/etc/passwd__", 3, "expected the name of a file"),
        ("a __trees/../colors__", 3, "expected the name of a file"),
        ("a __trees\\oak__", 3, "expected the name of a file"),
        ("a __~root__", 3, "expected the name of a file"),
        ("a __c*__", 3, "patterns are not read"),
        ("a __trees__", 3, "no file"),
        ("__link__", 1, "leads out"),
        ("__loop__", 1, "cannot be read"),
        ("__empty__", 1, "no entries"),
        ("__large__", 1, "larger than 4 MiB"),
        ("__folder__", 1, "is not a file"),
    ],
)
def test_errors_point_into_the_prompt(folder: Path, tmp_path: Path, prompt: str, column: int, said: str) -> None:
    (tmp_path / "secret.txt").write_text("secret\n")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "large.txt").write_bytes(b"word\n" * (1 << 20))
    (folder / "folder.txt").mkdir()
    error = refused(prompt, wildcards=folder)
    assert (error.source, error.line, error.column) == ("prompt", 1, column), error
    assert said in str(error)


def test_a_wildcard_without_a_folder() -> None:
    assert "--wildcards FOLDER" in str(refused("a __color__"))


@pytest.mark.parametrize(
    ("entry", "column", "said"),
    [
        ("__b__", 1, "no file"),
        ("x {y", 3, "not closed"),
        ("__a__", 1, "refers to itself: a → a"),
        ("x __c__", 3, "refers to itself: a → c → a"),
    ],
)
def test_errors_in_files_point_there_even_when_not_drawn(tmp_path: Path, entry: str, column: int, said: str) -> None:
    (tmp_path / "a.txt").write_text("fine\n" * 50 + entry + "\n")
    (tmp_path / "c.txt").write_text("{no|__a__}\n")
    error = refused("__a__", wildcards=tmp_path)
    assert said in str(error)
    assert error.source.startswith(str(tmp_path))
    if "c →" not in said:
        assert (error.line, error.column) == (51, column) or "a → c" in said


def test_files_that_grow_without_end_are_bounded(tmp_path: Path) -> None:
    for k in range(20):
        (tmp_path / f"f{k}.txt").write_text(f"__f{k + 1}____f{k + 1}__\n")
    (tmp_path / "f20.txt").write_text("{a|b}\n")
    assert "choices" in str(refused("__f0__", wildcards=tmp_path))
    assert "1,000,000" in str(refused("__f0__", wildcards=tmp_path, combinations=True))
    for text, said in (("one\n", "longer than 10,000"), ("{}\n", "choices")):
        (tmp_path / "f20.txt").write_text(text)
        assert said in str(refused("__f0__", wildcards=tmp_path, combinations=True))
    for k in range(20, 40):
        (tmp_path / f"f{k}.txt").write_text(f"__f{k + 1}__\n")
    assert "refer to one another" in str(refused("__f0__", wildcards=tmp_path))


def test_wildcard_files_may_be_linked_within_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "again.txt").symlink_to("colors.txt")
    (tmp_path / "linked").symlink_to(folder)
    assert len(texts("__again__", wildcards=tmp_path / "linked", combinations=True)) == 4


@given(st.text("a{}|_\\/ ", max_size=30))
@settings(max_examples=500, deadline=None)
def test_an_escaped_text_stands_for_itself(text: str) -> None:
    assert "".join(str(part) for part in parse(escape(text))) == text


@given(st.text("ab{}|_\\$:2 ", max_size=30))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_template_or_an_error_inside_it(text: str) -> None:
    try:
        parse(text)
    except TemplateError as error:
        at = error.at
    else:
        at = 0
    assert 0 <= at <= len(text)


@given(st.lists(st.lists(st.text("abc", max_size=3), min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_combinations_are_the_product(groups: list[list[str]]) -> None:
    template = " ".join("{" + "|".join(group) + "}" for group in groups)
    expected = [" ".join(chosen) for chosen in product(*groups)]
    assert texts(template, combinations=True) == expected
    assert texts(template)[0] in expected
