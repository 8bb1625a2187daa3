"""A list of any length is read in the same memory, besides 16 bytes and their bookkeeping for each entry."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from renderkiln.producer.prompts import ListOptions, read

#: Lines, and the most bytes that may be in use at once. Tracing is slow, so only the plain list is long: it is the
#: one whose seeds are derived, for which 16 bytes of digest are kept.
LISTS = {
    "txt": (30_000, 6_000_000),
    "csv": (15_000, 700_000),
    "jsonl": (15_000, 700_000),
}
WRITERS = {
    "txt": lambda k: f"a red hat number {k} {'felt ' * 40}\n",
    "csv": lambda k: f"a red hat number {k} {'felt ' * 40},{k}\n" if k else "prompt,seed\n",
    "jsonl": lambda k: json.dumps({"prompt": f"a red hat number {k} {'felt ' * 40}", "seed": k}) + "\n",
}


@pytest.mark.parametrize("form", LISTS)
def test_a_long_list_is_never_in_memory(form: str, tmp_path: Path) -> None:
    length, allowed = LISTS[form]
    path = tmp_path / f"list.{form}"
    with path.open("w") as stream:
        stream.writelines(map(WRITERS[form], range(length)))
    opened = read(str(path), ListOptions(expand=False))
    tracemalloc.start()
    try:
        count = sum(1 for _ in opened)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count >= length - 1
    assert peak < allowed < path.stat().st_size, f"{peak / 1e6:.1f} MB"


def test_importing_is_cheap() -> None:
    code = (
        "import sys, renderkiln.producer.prompts as p; list(p.read('a {b|c}'));"
        "print([m for m in ('yaml', 'torch', 'numpy', 'sqlalchemy', 'rich', 'rq') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
