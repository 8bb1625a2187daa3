"""Disks that are full while pictures and rows are written, and stores that are away: nothing rendered is lost."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.disks import small_disk

from renderkiln.home.room import is_full
from renderkiln.home.store.folder import Folder
from renderkiln.schema.errors import LedgerError
from renderkiln.worker.supervisor import attempt, vigil
from renderkiln.worker.supervisor.outcomes import Beat
from renderkiln.worker.supervisor.spool import Spool

from .attempts import AttemptBench, a_job, is_done


class Disk:
    """A disk that can be filled up."""

    def __init__(self, folder: Path, is_mounted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.is_mounted, self.is_full = is_mounted, False
        if not is_mounted:
            write = Folder.write

            def limited(place: Folder, relative: str, data: bytes) -> None:
                if self.is_full and str(place.folder).startswith(str(folder)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                write(place, relative, data)

            monkeypatch.setattr(Folder, "write", limited)

    def fill(self) -> None:
        self.is_full = True
        if self.is_mounted:
            with (self.folder / "filler").open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        return

    def make_room(self) -> None:
        self.is_full = False
        (self.folder / "filler").unlink(missing_ok=True)


@contextmanager
def disk(folder: Path, monkeypatch: pytest.MonkeyPatch, size: str = "1m") -> Iterator[Disk]:
    """A real one wherever that may be mounted, which on a machine that checks this project it may."""
    with small_disk(folder, size) as mounted:
        may_mount = sys.platform == "linux" and os.geteuid() == 0
        assert mounted or not may_mount, "no disk could be mounted here, though this is root on Linux"
        yield Disk(folder, mounted, monkeypatch)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AttemptBench]:
    monkeypatch.setattr(vigil, "_LOOK_FOR_ROOM", 0.05)
    made = AttemptBench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AttemptBench, Disk]]:
    """A worker whose store is on a disk of its own, which fills up as soon as the renderer begins."""
    with disk(tmp_path / "disk", monkeypatch) as made:
        bench = AttemptBench(tmp_path, pictures=made.folder / "pictures")
        bench.renderer.on_order = made.fill
        yield bench, made
        bench.close()


def go_away(bench: AttemptBench) -> None:
    """The store's folder is gone, and cannot be made again."""
    if bench.pictures.exists():
        bench.pictures.rename(bench.pictures.with_name("elsewhere"))
    bench.pictures.write_bytes(b"")


def come_back(bench: AttemptBench) -> None:
    bench.pictures.unlink()
    elsewhere = bench.pictures.with_name("elsewhere")
    if elsewhere.exists():
        elsewhere.rename(bench.pictures)


def test_a_full_store_is_waited_for_and_the_deadline_with_it(full: tuple[AttemptBench, Disk]) -> None:
    bench, disk = full
    job = a_job(8, timeout=0.5)
    # Later than the job may take.
    bench.on_pause = lambda reason: threading.Timer(0.7, disk.make_room).start() if reason else None
    outcome = bench.attempt(job)
    assert is_done(outcome, job), outcome.failure
    assert bench.renderer.rendered == [8]
    bench.check(job)
    (reason, over) = bench.paused
    assert over == ""
    assert "the disk is full" in reason
    assert "are kept" in reason


@pytest.mark.parametrize("beat", [Beat.CANCEL, Beat.LOST])
def test_who_waits_for_room_hears_of_a_cancel_and_of_a_lost_lease(full: tuple[AttemptBench, Disk], beat: Beat) -> None:
    bench, _ = full
    bench.beats = lambda: beat if bench.pause.reason else Beat.GOING_ON
    began = time.monotonic()
    outcome = bench.attempt(a_job(8))
    assert time.monotonic() - began < 3
    assert (outcome.canceled, outcome.lost) == (beat is Beat.CANCEL, beat is Beat.LOST)
    assert bench.spool.pictures() == []
    assert bench.pause.reason == ""


def test_the_first_signal_has_what_waits_for_room_spooled(full: tuple[AttemptBench, Disk]) -> None:
    bench, disk = full
    job = a_job(2)
    bench.on_pause = lambda reason: setattr(bench.signals, "stop_after_image", True)
    outcome = bench.attempt(job)
    assert outcome.given_back
    assert [kept.k for kept in bench.spool.pictures()] == [0]
    # The next worker brings it, and does not render it.
    bench.signals.stop_after_image, bench.on_pause = False, lambda reason: None
    bench.renderer.on_order = lambda: None
    disk.make_room()
    assert bench.deliver_all()
    outcome = bench.attempt(job)
    assert is_done(outcome, job)
    assert bench.renderer.rendered == [2, 1]
    bench.check(job)


def test_a_first_signal_is_heard_where_nothing_takes_a_picture(full: tuple[AttemptBench, Disk]) -> None:
    bench, _ = full
    bench.spool = Spool(bench.folder.spool, 0)
    bench.on_pause = lambda reason: setattr(bench.signals, "stop_after_image", True)
    outcome = bench.attempt(a_job(6))
    assert outcome.given_back or outcome.held_up, "it goes back, and is rendered again"


def test_pictures_of_a_store_that_is_away_are_spooled_and_not_rendered_again(bench: AttemptBench) -> None:
    job, other = a_job(3), a_job(1, image_format="webp")
    bench.patience = 0.0
    bench.renderer.on_order = lambda: go_away(bench) if not bench.pictures.exists() else None
    outcome = bench.attempt(job)
    assert outcome.held_up
    assert outcome.failure is not None
    assert outcome.failure.kind == "store"
    assert bench.attempt(other).held_up, "the worker goes on with other jobs"
    assert bench.attempt(job).held_up
    assert bench.renderer.rendered == [3, 1]
    assert not bench.deliver_all()
    assert [bench.rows(each) for each in (job, other)] == [[], []]
    come_back(bench)
    assert bench.deliver_all()
    assert bench.away.seconds(str(bench.pictures)) is None
    outcome = bench.attempt(job)
    assert is_done(outcome, job)
    assert is_done(bench.attempt(other), other)
    assert bench.renderer.rendered == [3, 1]
    assert len(bench.files()) == 4
    assert bench.spool.pictures() == []


def test_patience_with_a_store_is_had_once_for_all_pictures(bench: AttemptBench) -> None:
    bench.patience = 0.8
    go_away(bench)
    began = time.monotonic()
    assert bench.attempt(a_job(8)).held_up
    assert 0.2 < time.monotonic() - began < 3
    assert len(bench.spool.pictures()) == 8


def test_a_full_spool_keeps_the_worker_and_its_pictures_until_the_store_is_back(bench: AttemptBench) -> None:
    job = a_job(6)
    bench.patience, bench.spool = 0.0, Spool(bench.folder.spool, 20_000)
    go_away(bench)
    bench.on_pause = lambda reason: come_back(bench) if reason else None
    outcome = bench.attempt(job)
    assert bench.paused, "two pictures fit into the spool, and the third did not"
    assert is_done(outcome, job), outcome.failure
    assert bench.renderer.rendered == [6]
    bench.check(job)


def test_a_picture_that_a_good_store_does_not_take_is_the_jobs_failure(bench: AttemptBench) -> None:
    bench.patience = 0.0
    bench.pictures.mkdir()
    (bench.pictures / "bench").write_bytes(b"a file where a folder should be")
    outcome = bench.attempt(a_job(2))
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.held_up) == ("store", False)
    assert bench.spool.pictures() == []


def test_a_canceled_job_leaves_nothing_in_the_spool(bench: AttemptBench) -> None:
    job = a_job(2)
    bench.patience = 0.0
    go_away(bench)
    assert bench.attempt(job).held_up
    bench.beats = lambda: Beat.CANCEL
    assert bench.attempt(job).canceled
    assert bench.spool.pictures() == []


def test_rows_wait_for_a_ledger_whose_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "_LOOK_FOR_ROOM", 0.05)
    with disk(tmp_path / "disk", monkeypatch, "2m") as small:
        bench = AttemptBench(tmp_path, data=small.folder / "data")
        try:
            job = a_job(40)  # more rows than SQLite's files have room for already
            recorded = bench.ledger.image_recorded
            failures: list[LedgerError] = []

            def record(*args: object) -> None:
                try:
                    if not small.is_mounted and small.is_full:
                        raise LedgerError("the disk is full", is_full=True)
                    recorded(*args)  # type: ignore[arg-type]
                except LedgerError as error:
                    failures.append(error)
                    raise

            monkeypatch.setattr(bench.ledger, "image_recorded", record)
            bench.patience = 0.0
            bench.renderer.on_order = small.fill
            bench.on_pause = lambda reason: small.make_room() if reason else None
            outcome = bench.attempt(job)
            assert is_done(outcome, job), outcome.failure
            assert failures
            assert all(error.is_full for error in failures)
            assert len(bench.paused) == 2
            bench.check(job)
            # SQLite does not always say that a disk is full.
            vague = "disk I/O error"
            assert not is_full(vague, bench.folder.root)
            small.fill()
            assert is_full(vague, bench.folder.root) or not small.is_mounted
        finally:
            bench.close()


def test_a_job_whose_beginning_the_full_ledger_does_not_take_goes_back_at_once(
    bench: AttemptBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise LedgerError("its disk is full", is_full=True)

    monkeypatch.setattr(bench.ledger, "attempt_started", refuse)
    began = time.monotonic()
    assert bench.attempt(a_job()).held_up
    assert time.monotonic() - began < 5, "patience would be 300 s"
    assert bench.renderer.orders == []


def test_rows_that_a_locked_ledger_does_not_take_wait_in_the_spool(bench: AttemptBench) -> None:
    job = a_job(2)
    bench.patience = 0.0
    lock = sqlite3.connect(bench.folder.ledger, isolation_level=None)
    bench.renderer.on_order = lambda: lock.execute("BEGIN IMMEDIATE")
    outcome = bench.attempt(job)
    assert outcome.held_up
    assert outcome.failure is not None
    assert outcome.failure.kind == "ledger"
    assert bench.rows(job) == []
    assert [kept.k for kept in bench.spool.pictures()] == [0], "the file is in the store, and its row waits"
    lock.execute("ROLLBACK")
    lock.close()
    bench.renderer.on_order = lambda: None
    assert bench.deliver_all()
    assert is_done(bench.attempt(job), job)
    assert bench.renderer.rendered == [2, 1]
    bench.check(job)


def test_the_end_of_a_job_waits_for_a_locked_ledger_and_the_lease_is_kept(bench: AttemptBench) -> None:
    lock = sqlite3.connect(bench.folder.ledger, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    beats: list[float] = []

    def beat() -> Beat:
        beats.append(time.monotonic())
        if len(beats) == 3:
            lock.execute("ROLLBACK")
        return Beat.GOING_ON

    bench.beats = beat
    vigil.insist_on_ending(bench.ledger.check, bench.around())
    assert len(beats) == 3
    lock.execute("BEGIN IMMEDIATE")
    bench.beats = lambda: Beat.LOST
    with pytest.raises(LedgerError, match="locked"):
        vigil.insist_on_ending(bench.ledger.check, bench.around())
    bench.beats, bench.signals.stop_after_image = lambda: Beat.GOING_ON, True
    with pytest.raises(LedgerError, match="locked"):
        vigil.insist_on_ending(bench.ledger.check, bench.around())
    lock.close()


def test_a_first_signal_does_not_wait_for_a_write_that_hangs(
    bench: AttemptBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vigil, "_STUCK", 0.2)
    monkeypatch.setattr(attempt, "_BRIEFLY", 0.1)
    begun, hanging = threading.Event(), threading.Event()

    def hang(place: Folder, relative: str, data: bytes) -> None:
        begun.set()
        bench.signals.stop_after_image = True
        hanging.wait(30)

    monkeypatch.setattr(Folder, "write", hang)
    began = time.monotonic()
    assert bench.attempt(a_job(2)).given_back
    assert time.monotonic() - began < 10
    assert begun.is_set()
    hanging.set()


@pytest.mark.parametrize("spoil", ["flip", "cut", "rename", "empty", "other"])
def test_what_is_damaged_in_the_spool_is_set_aside_and_rendered_again(
    bench: AttemptBench, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = a_job(2)
    bench.patience = 0.0
    go_away(bench)
    bench.attempt(job)
    first = bench.spool.pictures()[0].path
    content = first.read_bytes()
    spoiled: dict[str, Callable[[], object]] = {
        "flip": lambda: first.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]),
        "cut": lambda: first.write_bytes(content[: len(content) // 2]),
        "rename": lambda: shutil.move(first, first.with_name(first.name.replace(".0.", ".5."))),
        "empty": lambda: first.write_bytes(b""),
        "other": lambda: first.write_bytes(b'{"job_id": "../../x"}\n' * 30),
    }
    spoiled[spoil]()
    come_back(bench)
    bench.deliver_all()
    assert "is damaged" in caplog.text
    assert len(list((bench.folder.spool / "damaged").iterdir())) == 1
    assert [row.k for row in bench.rows(job)] == [1]
    assert is_done(bench.attempt(job), job)
    assert bench.renderer.rendered == [2, 1]
    bench.check(job)
