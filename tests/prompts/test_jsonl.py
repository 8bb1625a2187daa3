from __future__ import annotations

import json
from pathlib import Path

import pytest

from .helpers import asked, refused


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return tmp_path / "list.jsonl"


def test_one_object_a_line(jsonl: Path) -> None:
    jsonl.write_text('{"prompt": "a", "seed": 3, "labels": {"x": "y"}, "scheduler": null}\n\n{"prompt": "b"}\r\n')
    first, second = asked(jsonl)
    assert (first.spec.prompt, first.spec.seed, first.options.labels) == ("a", 3, {"x": "y"})
    assert second.where == (str(jsonl), 3, 1)


def test_an_unknown_field_in_line_7_is_said_there(jsonl: Path) -> None:
    lines = [json.dumps({"prompt": f"hat {k}"}) for k in range(9)]
    lines[6] = '{"prompt": "hat 6", "guidance_scal": 3}'
    jsonl.write_text("\n".join(lines))
    error = refused(jsonl)
    assert str(error).startswith(f"{jsonl}:7:21: unknown field 'guidance_scal'. Did you mean 'guidance_scale'")
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("line", "column", "said"),
    [
        ('{"prompt": "a", "seed": -1}', 17, "seed = -1"),
        ('{"prompt": "a",  "prompt": "b"}', 18, "twice"),
        ('{"prompt": "a", "labels": {"x": "1", "x": "2"}}', 1, "twice"),
        ('{"prompt": "a", "guidance_scale": NaN}', 1, "NaN"),
        ('{"prompt": "a", "guidance_scale": 1e999}', 17, "finite"),
        ('{"prompt": "a", "cfg_scale": 1}', 17, "Here it is called 'guidance_scale'"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", 1, ""),
        ('{"prompt": "a", "labels": ' + "[" * 100_000 + "}", 1, "nested too deeply"),
        ('{"prompt": "a", "labels": ' + "[" * 300 + "]" * 300 + "}", 17, "labels"),
        ('{"prompt": "a", "seed": }', 25, "not JSON"),
        ('{"prompt": "a"', 15, "not JSON"),
        ('{"prompt": "a"} x', 17, "not JSON"),
        ('["a"]', 1, "expected an object"),
        ('"a"', 1, "expected an object"),
        ('{"prompt": 5}', 2, "prompt = 5"),
        ('{"prompt": "a\\u0000"}', 2, "NUL"),
        ('{"prompt": "\\ud800"}', 2, "prompt"),
        ('{"\\ud800": 1}', 2, "unknown field"),
        ('{"prompt": "a", "init_image": 3}', 17, "path of a picture"),
        ('{"prompt": "a", "scheduler": "eulr"}', 17, "Did you mean 'euler'"),
        ("{}", 1, "'prompt' is missing"),
    ],
)
def test_errors_name_line_and_column(jsonl: Path, line: str, column: int, said: str) -> None:
    jsonl.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    error = refused(jsonl)
    assert (error.line, error.column) == (2, column), error
    assert said in str(error)
    assert len(str(error)) < 1000
