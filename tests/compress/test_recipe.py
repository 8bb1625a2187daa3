"""Recipes: what they say of each layer, and their files: there and back, and what is wrong with a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.schema.errors import EXIT_BAD_INPUT, RecipeError
from renderkiln.worker.convert.compress.recipe import UNTOUCHED, WIDTHS, Recipe, of_layers, uniform
from renderkiln.worker.convert.compress.recipe_file import read_recipe, write_recipe

names = st.text(st.characters(exclude_categories=("Z", "C"), exclude_characters="*?["), min_size=1, max_size=40)
bits = st.sampled_from((*WIDTHS, UNTOUCHED))
patterns = st.builds(lambda start, end: f"{start}*{end}", names, names)
recipes = st.builds(
    Recipe,
    note=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=60),
    nbits=bits,
    layers=st.dictionaries(names | patterns, bits, max_size=10),
)


@given(recipes, st.sampled_from((".json", ".yaml", ".yml")))
def test_a_recipe_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("recipe") / f"recipe{suffix}"
    write_recipe(path, recipe)
    again = read_recipe(path)
    assert again == recipe
    assert list(again.layers) == list(recipe.layers)  # of several patterns the first counts, so order matters
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@given(st.dictionaries(names, bits, min_size=1, max_size=10), bits)
def test_each_layer_that_is_named_gets_its_bits_and_all_others_the_default(
    layers: dict[str, int], default: int
) -> None:
    recipe = Recipe.model_validate({"nbits": default, "layers": layers})
    assert recipe.assign([*layers, " another"]) == {**layers, " another": default}


@given(st.dictionaries(names, bits, min_size=1, max_size=10))
def test_a_planned_recipe_leaves_alone_what_it_does_not_name(layers: dict[str, int]) -> None:
    assert of_layers(layers).assign([*layers, " another"]) == {**layers, " another": UNTOUCHED}


def test_a_name_counts_before_patterns_and_the_first_pattern_counts() -> None:
    recipe = Recipe(nbits=2, layers={"*_attn_*": 4, "down_*": 6, "down_attn_k": 8})
    assert recipe.assign(["down_attn_k", "down_attn_q", "down_conv", "up_conv"]) == {
        "down_attn_k": 8,
        "down_attn_q": 4,
        "down_conv": 6,
        "up_conv": 2,
    }


def test_patterns_tell_capitals_apart_on_every_system() -> None:
    assert Recipe(layers={"Down_*": 4, "down_*": 6}).bits_of("down_conv") == 6


def test_a_default_that_is_given_takes_the_recipes_place_but_not_its_lines() -> None:
    recipe = Recipe(nbits=4, layers={"a": 8})
    assert recipe.assign(["a", "b"], nbits=2) == {"a": 8, "b": 2}


@pytest.mark.parametrize("line", ["down_cnov", "up_*"])
def test_a_line_that_names_no_layer_is_an_error(line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(layers={line: 4}).assign(["down_conv"])
    assert line in str(caught.value)
    assert caught.value.field == f"layers.{line}"


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'down_conv'"):
        Recipe(layers={"down_cnov": 4}).assign(["down_conv", "something_else"])


@pytest.mark.parametrize("nbits", [0, 5, 7, 16, -1])
def test_a_plain_width_that_no_palette_has_is_an_error(nbits: int) -> None:
    with pytest.raises(RecipeError, match="1, 2, 3, 4, 6 or 8"):
        uniform(nbits)


BAD = {
    "a width that there is not, JSON": ("r.json", '{\n "nbits": 4,\n "layers": {\n  "a": 5\n }\n}', 4, "layers.a"),
    "a width that there is not, YAML": ("r.yaml", "nbits: 4\nlayers:\n  a: 5\n", 3, "layers.a"),
    "a width that is no number": ("r.yaml", "layers:\n  a: four\n", 2, "layers.a"),
    "true for 1": ("r.json", '{"layers": {"a": true}}', 1, "layers.a"),
    "a fraction": ("r.json", '{"nbits": 4.5}', 1, "nbits"),
    "a whole number with a point": ("r.json", '{"nbits": 4.0}', 1, "nbits"),
    "an unknown field": ("r.yaml", "nbits: 4\nbits: 4\n", 2, "bits"),
    "layers as a list": ("r.yaml", "layers:\n- a\n", 1, "layers"),
    "an empty name": ("r.yaml", 'layers:\n  "": 4\n', 2, "layers."),
    "a name with a blank": ("r.yaml", "layers:\n  a b: 4\n", 2, "layers.a b"),
    "a name twice, JSON": ("r.json", '{"layers": {\n"a": 4,\n"a": 6}}', 3, "a"),
    "a name twice, YAML": ("r.yaml", "layers:\n  a: 4\n  a: 6\n", 3, "layers.a"),
    "another version": ("r.yaml", "version: 2\n", 1, "version"),
    "no JSON": ("r.json", '{\n"nbits": 4,\n}', 3, None),
    "no YAML": ("r.yaml", "nbits: 4\nlayers: {a: 4\n", 3, None),
    "an unquoted star": ("r.yaml", "layers:\n  *attn: 4\n", 2, None),
    "a tag": ("r.yaml", "nbits: !!python/object:os.system 4\n", 1, None),
    "a list": ("r.json", "[4]", None, None),
    "nothing": ("r.yaml", "", None, None),
    "nothing, JSON": ("r.json", "", 1, None),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_an_error_that_names_line_and_field(tmp_path: Path, case: str) -> None:
    name, text, line, field = BAD[case]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert caught.value.exit_code == EXIT_BAD_INPUT
    assert (caught.value.line, caught.value.field) == (line, field)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_missing_binary_huge_or_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(tmp_path / "none.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_recipe(binary)
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(RecipeError, match="no recipe"):
        read_recipe(huge)
    with pytest.raises(RecipeError, match=r"\.json, \.yaml or \.yml"):
        read_recipe(tmp_path / "recipe.txt")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    with pytest.raises(RecipeError, match="deeply"):
        read_recipe(deep)


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text("by hand")
    with pytest.raises(RecipeError, match="exists already"):
        write_recipe(path, Recipe())
    assert path.read_text() == "by hand"


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"nbits": 4}', encoding="utf-8-sig")
    assert read_recipe(path).nbits == 4
