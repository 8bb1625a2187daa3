from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.producer.prompts import ListOptions, parse_sweep
from renderkiln.schema.errors import InvalidSpecError, PromptListError

from .helpers import asked, refused


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("guidance_scale=5,7.5,10", "guidance_scale", (5.0, 7.5, 10.0)),
        ("seed=1..8", "seed", tuple(range(1, 9))),
        ("seed=1..9..2", "seed", (1, 3, 5, 7, 9)),
        ("seed=1..2, 7,20..30..5", "seed", (1, 2, 7, 20, 25, 30)),
        ("guidance_scale=0.1..0.5..0.1", "guidance_scale", (0.1, 0.2, 0.3, 0.4, 0.5)),
        ("strength=.5..1..0.25", "strength", (0.5, 0.75, 1.0)),
        ("scheduler=\"euler a\",'DDIM', k_euler", "scheduler", ("euler a", "ddim", "euler")),
        ('prompt="a, b",c d,"say ""x""",\'it\\\'s\',""', "prompt", ("a, b", "c d", 'say "x"', "it's", "")),
        ("prompt=1..3", "prompt", ("1..3",)),
        ("num-inference-steps = 4, 8", "num_inference_steps", (4, 8)),
        ("safety_checker=true,false", "safety_checker", (True, False)),
        ("init_image=a.png,b.png", "init_image", ("a.png", "b.png")),
    ],
)
def test_what_a_sweep_may_say(text: str, field: str, values: tuple[object, ...]) -> None:
    sweep = parse_sweep(text)
    assert (sweep.field, sweep.values) == (field, values)


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("seed", 1, "FIELD=VALUE"),
        ("", 1, "FIELD=VALUE"),
        ("gidance=3", 1, "Did you mean 'guidance_scale'"),
        ("cfg_scale=3", 1, "Here it is called 'guidance_scale'"),
        ("labels=3", 1, "cannot be swept"),
        ("seed=", 6, "expected a value"),
        ("seed=1,,2", 8, "a comma too many"),
        ("seed=1,2,", 10, "a comma too many"),
        ("seed=1,x", 8, "seed = 'x'"),
        ("seed=-1..3", 6, "seed = -1"),
        ("seed=1..x", 9, "range of numbers"),
        ("seed=1..8..y", 12, "range of numbers"),
        ("seed=1..8..0", 12, "more than 0"),
        ("seed=1..8..-1", 12, "more than 0"),
        ("seed=8..1", 9, "before it starts"),
        ("seed=1..2.5", 9, "whole numbers"),
        ("seed=1..nan", 9, "range of numbers"),
        ("seed=1..1e99", 9, "range of numbers"),
        ("seed=0..4294967295", 6, "more than 1,000,000"),
        ("seed=3,1..4", 8, "3 is given twice"),
        ("width=64,65", 10, "multiple of 8"),
        ('scheduler="euler a",nope', 21, "unknown scheduler"),
        ('scheduler="euler', 11, "not closed"),
        ('scheduler="euler" a', 19, "expected a comma"),
    ],
)
def test_errors_point_into_the_sweep(text: str, column: int, said: str) -> None:
    with pytest.raises(PromptListError) as caught:
        parse_sweep(text)
    assert caught.value.column == column, caught.value
    assert said in str(caught.value)


def test_the_first_sweep_is_slowest_and_wins_over_the_list(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a", "seed": 99}\n{"prompt": "b"}\n')
    sweeps = (parse_sweep("guidance_scale=5,7"), parse_sweep("seed=1..2"))
    specs = [request.spec for request in asked(path, sweeps=sweeps, defaults={"guidance_scale": 3})]
    points = [(5, 1), (5, 2), (7, 1), (7, 2)]
    assert [(spec.prompt, spec.guidance_scale, spec.seed) for spec in specs] == [
        (prompt, *point) for prompt in "ab" for point in points
    ]


def test_points_of_a_sweep_share_seed_and_draw() -> None:
    sweeps = (parse_sweep("guidance_scale=1..20"),)
    specs = [request.spec for request in asked("a {red|green|blue|pink} hat", sweeps=sweeps)]
    assert len({(spec.prompt, spec.seed) for spec in specs}) == 1
    drawn = [r.spec.prompt for r in asked("a {red|green|blue|pink} hat", sweeps=(parse_sweep("seed=1..20"),))]
    assert len(set(drawn)) == 4


def test_sweeps_are_bounded_together() -> None:
    with pytest.raises(InvalidSpecError, match="at most 1,000,000"):
        ListOptions(sweeps=(parse_sweep("seed=0..1000"), parse_sweep("num_inference_steps=1..1000")))
    with pytest.raises(InvalidSpecError, match="swept twice"):
        ListOptions(sweeps=(parse_sweep("seed=1"), parse_sweep("seed=2")))


def test_a_sweep_that_does_not_fit_the_list_is_said() -> None:
    assert "strength needs an init_image" in str(refused("a", sweeps=(parse_sweep("strength=0.5"),)))


@given(st.integers(0, 10_000), st.integers(0, 300), st.integers(1, 50), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_sizes(first: int, length: int, step: int, others: int) -> None:
    seeds = parse_sweep(f"seed={first}..{first + length}..{step}")
    assert len(seeds.values) == length // step + 1
    scales = parse_sweep("guidance_scale=" + ",".join(str(k) for k in range(others)))
    found = asked("a", sweeps=(seeds, scales))
    assert len(found) == math.prod((len(seeds.values), others))
    assert len({request.spec.digest for request in found}) == len(found)
