from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.producer.prompts import ListOptions, read

from .helpers import asked


def seeds(*sources: str | Path, **options: object) -> list[int]:
    return [request.spec.seed for request in asked(*sources, **options)]


def test_seeds_come_from_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a\nb\na\na\n")
    first = seeds(path)
    assert first == seeds(path)
    assert len(set(first)) == 4
    path.write_text("c\na\na\nb\n")
    assert seeds(path)[1:] == [first[0], first[2], first[1]]


def test_seeds_do_not_change_from_one_release_to_the_next() -> None:
    assert seeds("a red hat") == [802250893]
    assert seeds("a red hat", defaults={"num_inference_steps": 30, "guidance_scale": 5.5}) == [4029747838]


def test_how_a_value_is_written_does_not_count(tmp_path: Path) -> None:
    written = {
        "txt": '--prompt "a" --steps 30 --cfg_scale 7 --sampler_name "Euler a"',
        "csv": "scheduler,prompt,guidance_scale,num_inference_steps\nk_euler_a,a,7.00,30\n",
        "jsonl": '{"num_inference_steps": 30.0, "prompt": "a", "scheduler": "euler_a", "guidance_scale": 7}',
        "yaml": "- {prompt: a, scheduler: Euler Ancestral, num_inference_steps: 30, guidance_scale: 7.0}\n",
    }
    found = set()
    for suffix, text in written.items():
        path = tmp_path / f"list.{suffix}"
        path.write_text(text)
        found |= {request.spec for request in asked(path)}
    assert len(found) == 1


def test_what_does_not_change_the_pixels_does_not_change_the_seed() -> None:
    plain = seeds("a")
    assert seeds("a", defaults={"priority": "high", "num_images": 4, "labels": {"x": "y"}}) == plain
    assert seeds("a", defaults={"num_inference_steps": 20}) == plain
    assert seeds("a", defaults={"num_inference_steps": 21}) != plain


def test_equal_prompts_of_several_lists_are_counted_together() -> None:
    first, second = seeds("a", "a")
    assert first != second
    assert [first] == seeds("a")


def test_a_given_seed_stays(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a", "seed": 0}\n{"prompt": "a"}\n')
    assert seeds(path, random_seeds=True)[0] == 0
    assert seeds(path, defaults={"seed": 5}) == [0, 5]


def test_random_seeds_are_new_for_each_read_and_the_same_for_each_pass(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("{a|b}\n" * 40)
    options = ListOptions(random_seeds=True)
    opened = read(str(path), options)
    first = [item.fields for item in opened]
    assert first == [item.fields for item in opened]
    other = [item.fields for item in read(str(path), options)]
    assert not {item["seed"] for item in first} & {item["seed"] for item in other}
    assert [item["prompt"] for item in first] != [item["prompt"] for item in other]


@given(st.text("abc {}|", max_size=8))
@settings(max_examples=100, deadline=None)
def test_seeds_are_in_range(text: str) -> None:
    (seed,) = seeds("x " + text, expand=False)
    assert 0 <= seed < 2**32
