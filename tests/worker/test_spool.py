"""The spool through crashes, and its thread."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from renderkiln.home.store import Store
from renderkiln.worker.supervisor.redelivery import Redelivery

from .attempts import AttemptBench, a_job


def test_a_kill_at_any_boundary_neither_loses_nor_doubles_a_picture(tmp_path: Path) -> None:
    script = Path(__file__).with_name("spool_crashes.py")
    ran = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 15


def test_the_thread_brings_what_is_spooled_when_the_store_is_back(tmp_path: Path) -> None:
    bench = AttemptBench(tmp_path)
    bench.patience = 0.0
    bench.pictures.write_bytes(b"")  # where the folder should be
    job = a_job(2)
    assert bench.attempt(job).held_up
    redelivery = Redelivery(
        bench.spool,
        lambda name: Store(bench.pictures),
        Store(bench.pictures),
        bench.ledger.path,
        bench.away,
        bench.signals.wake,
    )
    redelivery.start()
    bench.pictures.unlink()
    deadline = time.monotonic() + 20
    while bench.spool.pictures():
        redelivery.wake()
        assert time.monotonic() < deadline
        bench.signals.sleep(0.5)
    redelivery.stop()
    bench.check(job)
    bench.close()


def test_while_a_store_is_away_its_pictures_are_read_once_and_those_of_others_are_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = AttemptBench(tmp_path)
    bench.patience = 0.0
    own, named = a_job(4), a_job(1, store=str(tmp_path / "named"))
    bench.pictures.write_bytes(b"")
    assert bench.attempt(own).held_up
    bench.renderer.on_order = lambda: [(tmp_path / "named").rename(tmp_path / "away"), (tmp_path / "named").touch()]
    assert bench.attempt(named).held_up
    reads: list[str] = []
    read = bench.spool.read
    monkeypatch.setattr(bench.spool, "read", lambda kept: [reads.append(kept.path.name), read(kept)][1])
    redelivery = Redelivery(
        bench.spool,
        lambda name: Store(name or bench.pictures),
        Store(bench.pictures),
        bench.ledger.path,
        bench.away,
        bench.signals.wake,
    )
    for _ in range(10):
        assert not redelivery.deliver_all()
    assert len(reads) == 5 + 9 * 2, "all once, and then one for each store"
    (tmp_path / "named").unlink()
    redelivery.deliver_all()
    assert [row.k for row in bench.rows(named)] == [0]
    assert len(bench.spool.pictures()) == 4
    redelivery.close()
    bench.close()
