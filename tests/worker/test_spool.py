"""The spool through crashes, and its thread."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from renderkiln.home.store import Store
from renderkiln.worker.supervisor.redelivery import Redelivery

from .attempts import AttemptBench, a_job


def test_a_kill_at_any_boundary_neither_loses_nor_doubles_a_picture(tmp_path: Path) -> None:
    script = Path(__file__).with_name("spool_crashes.py")
    ran = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 20


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
