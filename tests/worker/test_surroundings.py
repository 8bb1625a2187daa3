"""Where a worker may write what a job asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .attempts import AttemptBench, a_job


def test_a_store_that_this_worker_does_not_write_is_another_workers_to_write(tmp_path: Path) -> None:
    bench = AttemptBench(tmp_path)
    own = replace(bench.around(), may_name_store=False)
    bench.around = lambda: own  # type: ignore[method-assign]
    assert bench.attempt(a_job(1)).failure is None
    failure = bench.attempt(a_job(1, store=str(tmp_path / "elsewhere"))).failure
    assert failure is not None
    assert failure.kind == "unsupported_here"
    assert not (tmp_path / "elsewhere").exists()
    bench.close()
