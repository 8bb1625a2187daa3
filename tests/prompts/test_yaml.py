from __future__ import annotations

from pathlib import Path

import pytest

from .helpers import asked, refused, texts


@pytest.fixture
def yml(tmp_path: Path) -> Path:
    return tmp_path / "list.yaml"


def test_a_list_of_prompts_and_mappings(yml: Path) -> None:
    yml.write_text(
        "- a red hat\n- no\n- 1984\n- |\n  two\n  lines\n"
        '- {prompt: b, seed: 007, labels: {x: yes}, safety_checker: off, scheduler: ~}\n- &p "q: r"\n- *p\n'
    )
    assert texts(yml) == ["a red hat", "no", "1984", "two\nlines\n", "b", "q: r", "q: r"]
    mapping = asked(yml)[4]
    assert (mapping.spec.seed, mapping.spec.safety_checker, mapping.spec.scheduler) == (7, False, None)
    assert (mapping.options.labels, mapping.where.line) == ({"x": "yes"}, 7)


def test_defaults_lie_between_the_flags_and_the_entries(yml: Path) -> None:
    yml.write_text("defaults: &d\n  guidance_scale: 3\n  seed: 1\nprompts:\n- a\n- {prompt: b, seed: 2}\n")
    first, second = asked(yml, defaults={"guidance_scale": 9, "num_inference_steps": 5})
    assert (first.spec.guidance_scale, first.spec.seed, first.spec.num_inference_steps) == (3, 1, 5)
    assert (second.spec.guidance_scale, second.spec.seed) == (3, 2)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("- a\n- {prompt: b, sed: 3}\n", "2:15", "Did you mean 'seed'"),
        ("- a\n- prompt: b\n  seed: -1\n", "3:3", "seed = '-1'"),
        ("- {prompt: 😀, seed: x}\n", "1:15", "seed"),
        ("defaults: {steps: 3}\nprompts: [a]\n", "1:12", "num_inference_steps"),
        ("prompts: [a]\ndefaults: {seed: 3}\n", "2:1", "before 'prompts:'"),
        ("prompts: a\n", "1:10", "expected a list"),
        ("prompt: a\n", "1:1", "'- ' missing"),
        ("promts: [a]\n", "1:1", "Did you mean 'prompts'"),
        ("prompts: [a]\nprompts: [b]\n", "2:1", "twice"),
        ("a red hat\n", "1:1", "expected a list"),
        ("- a\n-\n", "2:2", "empty entry"),
        ("- [a, b]\n", "1:3", "a list inside a list"),
        ("- {prompt: [a]}\n", "1:12", "takes one value"),
        ("- {prompt: {a: b}}\n", "1:12", "takes one value"),
        ("- &m {prompt: a}\n- {prompt: *m}\n", "2:12", "takes one value"),
        ("- {prompt: a, prompt: b}\n", "1:15", "twice"),
        ("- {prompt: a, <<: {seed: 3}}\n", "1:15", "merge keys"),
        ("- {prompt: a, ? [b] : c}\n", "1:17", "name of a field"),
        ("- *nothing\n", "1:3", "anchored"),
        ("- !!python/object/apply:os.system [ls]\n", "1:3", "list inside a list"),
        ("- !!python/object/apply:os.system ls\n", "1:3", "tag"),
        ("- a\n--- \n- b\n", "2:1", "second document"),
        ("- 'a\n", "2:1", "not YAML"),
        ("- {prompt: a: b}\n", "1:13", "not YAML"),
        ("- a hat: red\n", "1:3", "goes into quotes"),
        ("- a\n- b\x07c\n", "2:4", "printable"),
        ("- " + "[" * 50_000, "1:3", "a list inside a list"),
        ("- " + "{a: " * 50_000, "", ""),
        ("[]", "", "no prompts"),
        ("", "", "no prompts"),
        ("# only this\n", "", "no prompts"),
        ("prompts: []\n", "", "no prompts"),
    ],
)
def test_errors_name_line_and_column(yml: Path, text: str, place: str, said: str) -> None:
    yml.write_text(text)
    error = refused(yml)
    assert str(error).startswith(f"{yml}:{place}: " if place else f"{yml}:"), error
    assert said in str(error)


def test_aliases_do_not_multiply(yml: Path) -> None:
    bomb = "- &a0 {prompt: x}\n" + "".join(f"- &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10))
    yml.write_text(bomb)
    assert refused(yml).line == 2


def test_a_file_too_large_for_memory_is_refused(yml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("renderkiln.producer.prompts.yamls.MAX_YAML", 1 << 20)
    yml.write_text("- a\n" * 300_000)
    assert "1 MiB; a list that long is better a .jsonl" in str(refused(yml))
