"""The ledger: opened with its migrations, recorded into once, by several processes, and never misread."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from tests.fakes import image_of

import renderkiln.schema
from renderkiln.home.ledger import BUSY_TIMEOUT, Ledger
from renderkiln.schema import Failure, Job, JobStatus, make_job, parse_options, parse_spec
from renderkiln.schema.errors import LedgerError
from renderkiln.schema.tables import Base

MIGRATIONS = Path(renderkiln.schema.__file__).parent / "migrations"


@pytest.fixture
def open_ledger() -> Iterator[Callable[[Path], Ledger]]:
    opened: list[Ledger] = []

    def open_one(path: Path) -> Ledger:
        opened.append(Ledger(path))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(tmp_path: Path, open_ledger: Callable[[Path], Ledger]) -> Ledger:
    found = open_ledger(tmp_path / "ledger.db")
    found.worker_started("mini-1", "mini", 7, {"engine": "torch"})
    return found


def a_job(prompt: str = "a cat", index: int = 0, **options: Any) -> Job:
    return make_job(parse_spec({"prompt": prompt}), parse_options(options), batch="cats-1", index=index)


def test_opening_makes_the_tables_and_opening_again_changes_nothing(
    tmp_path: Path, open_ledger: Callable[[Path], Ledger]
) -> None:
    first = open_ledger(tmp_path / "ledger.db")
    first.worker_started("mini-1", "mini", 7, {})
    assert open_ledger(tmp_path / "ledger.db").counts() == first.counts()
    assert first.counts()["workers"] == 1


def test_the_migrations_make_exactly_the_tables_that_the_code_has(ledger: Ledger) -> None:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(ledger.path)))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def ledger_of(revision: str, path: Path, go: Callable[[Config, str], None] = command.upgrade) -> sa.Engine:
    """A ledger as an earlier version made it."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        go(config, revision)
    return engine


def test_a_ledger_of_0002_in_use_is_upgraded_and_keeps_its_rows(
    tmp_path: Path, open_ledger: Callable[[Path], Ledger]
) -> None:
    path, job = tmp_path / "ledger.db", a_job()
    engine = ledger_of("0002", path)
    now = datetime(2026, 1, 2, 3, 4, 5)
    rows: dict[str, dict[str, Any]] = {
        "batches": {"id": "cats-1", "first_seen": now},
        "workers": {"name": "mini-1", "host": "mini", "pid": 7, "started_at": now, "about": {}},
        "jobs": {
            "id": job.id,
            "batch_id": "cats-1",
            "index": 0,
            "spec_digest": job.spec.digest,
            "model": job.spec.model,
            "prompt": job.spec.prompt,
            "num_images": 1,
            "job": job.model_dump(mode="json"),
            "status": "finished",
            "first_seen": now,
            "ended_at": now,
        },
        "attempts": {
            "execution_id": "e1",
            "job_id": job.id,
            "number": 1,
            "worker": "mini-1",
            "started_at": now,
            "ended_at": now,
            "outcome": "finished",
            "load_seconds": 1.5,
        },
        "tunings": {"model": "m", "variant": "original", "compute_unit": "all", "measured": {}, "measured_at": now},
    }
    then = sa.MetaData()
    then.reflect(engine)  # the tables of that time, with the columns of that time
    with engine.begin() as connection:
        for name, values in rows.items():
            connection.execute(sa.insert(then.tables[name]).values(values))
    engine.dispose()
    upgraded = open_ledger(path)
    result = upgraded.result(job.id)
    assert result is not None
    assert (result.status, result.worker, result.attempt) == (JobStatus.FINISHED, "mini-1", 1)
    assert upgraded.tuned_form("m") == ("original", "all")
    with sqlite3.connect(path) as raw:
        old = raw.execute("select load_seconds, peak_bytes, loads, evictions from attempts").fetchall()
    raw.close()
    assert old == [(1.5, None, None, None)]
    upgraded.attempt_started(job, "e2", 2, "mini-1")
    memory = {"peak_bytes": 2**33, "loads": 3, "evictions": 1}
    upgraded.attempt_ended(job.id, "e2", "finished", status=JobStatus.FINISHED, memory=memory)
    with sqlite3.connect(path) as raw:
        new = raw.execute("select peak_bytes, loads, evictions from attempts where number = 2").fetchall()
    raw.close()
    assert new == [(2**33, 3, 1)]


def test_a_ledger_goes_back_to_0002_and_comes_again(tmp_path: Path, open_ledger: Callable[[Path], Ledger]) -> None:
    first = open_ledger(tmp_path / "ledger.db")
    first.worker_started("mini-1", "mini", 7, {})
    first.attempt_started(a_job(), "e1", 1, "mini-1")
    first.close()
    engine = ledger_of("0002", first.path, command.downgrade)
    assert "memory_samples" not in sa.inspect(engine).get_table_names()
    assert "peak_bytes" not in {column["name"] for column in sa.inspect(engine).get_columns("attempts")}
    engine.dispose()
    assert open_ledger(first.path).counts()["attempts"] == 1


def test_write_ahead_log_foreign_keys_and_busy_timeout_are_really_on(ledger: Ledger) -> None:
    with ledger._engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert found == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": BUSY_TIMEOUT, "synchronous": 2}


def test_a_row_that_names_an_unknown_worker_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="FOREIGN KEY"):
        ledger.attempt_started(a_job(), "e1", 1, "nobody")
    assert ledger.counts()["jobs"] == 0  # nothing of the refused call stays


def test_a_job_is_followed_from_its_attempt_to_its_result(ledger: Ledger) -> None:
    job = a_job(num_images=2)
    assert ledger.result(job.id) is None
    ledger.attempt_started(job, "e1", 1, "mini-1")
    started = ledger.result(job.id)
    assert started is not None
    assert (started.status, started.worker, started.host, started.attempt) == (JobStatus.STARTED, "mini-1", "mini", 1)
    images = [image_of(job, k) for k in (0, 1)]
    for image in reversed(images):
        ledger.image_recorded(job.id, image, "e1")
    ledger.attempt_ended(
        job.id, "e1", "finished", status=JobStatus.FINISHED, timings={"load_seconds": 1.0, "render_seconds": 2.0}
    )
    ended = ledger.result(job.id)
    assert ended is not None
    assert (ended.status, ended.images, ended.failure) == (JobStatus.FINISHED, tuple(images), None)
    assert ledger.images_of(job.id) == images
    assert list(ledger.batch_results("cats-1")) == [ended]


def test_a_failure_is_kept_and_a_later_success_clears_it(ledger: Ledger) -> None:
    job = a_job()
    ledger.attempt_started(job, "e1", 1, "mini-1")
    failure = Failure(kind="bad_image", message="all black")
    ledger.attempt_ended(job.id, "e1", "failed", status=JobStatus.FAILED, failure=failure)
    failed = ledger.result(job.id)
    assert failed is not None
    assert failed.failure == failure
    ledger.attempt_started(job, "e2", 2, "mini-1")
    ledger.attempt_ended(job.id, "e2", "finished", status=JobStatus.FINISHED)
    finished = ledger.result(job.id)
    assert finished is not None
    assert (finished.status, finished.failure, finished.attempt) == (JobStatus.FINISHED, None, 2)


def test_a_picture_that_is_recorded_twice_is_one_row(ledger: Ledger) -> None:
    job = a_job()
    ledger.attempt_started(job, "e1", 1, "mini-1")
    ledger.image_recorded(job.id, image_of(job), "e1")
    ledger.image_recorded(job.id, image_of(job), "e1")
    assert ledger.counts()["images"] == 1
    moved = image_of(job).model_copy(update={"url": "/elsewhere/0.png", "size_bytes": 6, "sha256": "1" * 64})
    ledger.image_recorded(job.id, moved, "e1")
    assert ledger.images_of(job.id) == [moved]


def test_an_attempt_that_a_crash_left_open_becomes_abandoned(ledger: Ledger) -> None:
    job = a_job()
    ledger.attempt_started(job, "e1", 1, "mini-1")
    ledger.attempt_started(job, "e2", 2, "mini-1")
    with sqlite3.connect(ledger.path) as raw:
        rows = raw.execute("select execution_id, outcome, ended_at is null from attempts order by number").fetchall()
    raw.close()
    assert rows == [("e1", "abandoned", 0), ("e2", None, 1)]
    # The first was thought dead and was not: its end is not the job's.
    ledger.attempt_ended(job.id, "e1", "finished", status=JobStatus.FINISHED)
    stands = ledger.result(job.id)
    assert stands is not None
    assert (stands.status, stands.attempt) == (JobStatus.STARTED, 2)


def test_pictures_are_found_by_digest_whichever_job_they_belong_to(ledger: Ledger) -> None:
    job = a_job(num_images=3)
    ledger.attempt_started(job, "e1", 1, "mini-1")
    for k in range(3):
        ledger.image_recorded(job.id, image_of(job, k), "e1")
    wanted = [job.image_spec(k).digest for k in (0, 2)]
    many = [f"{number:064x}" for number in range(1200)]
    assert set(ledger.images_by_digest([*many, *wanted])) == set(wanted)


def test_results_of_a_batch_come_by_index_and_do_not_stand_in_the_way_of_other_calls(ledger: Ledger) -> None:
    jobs = [a_job(f"cat {number}", index=number) for number in (2, 0, 1)]
    for number, job in enumerate(jobs):
        ledger.attempt_started(job, f"e{number}", 1, "mini-1")
    seen = []
    for result in ledger.batch_results("cats-1"):
        ledger.image_recorded(result.job_id, image_of(jobs[0]), None)
        seen.append(result.job_id)
    assert seen == [jobs[1].id, jobs[2].id, jobs[0].id]


WRITE = """
import sys
from pathlib import Path
import renderkiln.schema
from renderkiln.home.ledger import Ledger
from renderkiln.schema import JobStatus, make_job, parse_options, parse_spec
ledger = Ledger(Path(sys.argv[1]))
me = sys.argv[2]
ledger.worker_started(me, "mini", 1, {})
for number in range(30):
    job = make_job(parse_spec({"prompt": f"{me} {number}"}), parse_options({}), batch="cats-1", index=number)
    ledger.attempt_started(job, f"{me}-{number}", 1, me)
    ledger.attempt_ended(job.id, f"{me}-{number}", "finished", status=JobStatus.FINISHED)
ledger.close()
"""


def test_processes_that_open_a_new_ledger_and_write_at_once_all_get_their_turn(
    tmp_path: Path, open_ledger: Callable[[Path], Ledger]
) -> None:
    path = tmp_path / "ledger.db"
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, path, f"w{number}"]) for number in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    counts = open_ledger(path).counts()
    assert (counts["jobs"], counts["attempts"], counts["workers"], counts["jobs finished"]) == (60, 60, 2, 60)


def test_a_reader_does_not_wait_for_a_writer(ledger: Ledger) -> None:
    writer = sqlite3.connect(ledger.path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        assert ledger.counts()["workers"] == 1
    finally:
        writer.execute("ROLLBACK")
        writer.close()


def test_a_ledger_of_a_later_version_is_refused_and_left_alone(tmp_path: Path, ledger: Ledger) -> None:
    with sqlite3.connect(ledger.path) as raw:
        raw.execute("update alembic_version set version_num = '9999'")
    raw.close()
    with pytest.raises(LedgerError, match="another version of renderkiln") as caught:
        Ledger(ledger.path)
    assert caught.value.exit_code == 3
    assert ledger.counts()["workers"] == 1


@pytest.mark.parametrize(
    "content", [b"this is no database, whatever its name says\n" * 200, b"SQLite format 3\x00" + b"x" * 5000]
)
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_ledger_in_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "nowhere" / "ledger.db")
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path)


@pytest.mark.parametrize("name", ["100% cat", "a?b#c", "ünï", "a b"])
def test_a_ledger_may_lie_in_a_folder_of_any_name(
    tmp_path: Path, name: str, open_ledger: Callable[[Path], Ledger]
) -> None:
    (tmp_path / name).mkdir()
    ledger = open_ledger(tmp_path / name / "ledger.db")
    assert ledger.counts()["jobs"] == 0
    assert (tmp_path / name / "ledger.db").is_file()


def test_a_damaged_page_is_an_error_of_ours(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(50):
        ledger.attempt_started(a_job(f"cat {number}" * 50, index=number), f"e{number}", 1, "mini-1")
    ledger.close()
    size = ledger.path.stat().st_size
    with ledger.path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(size - 4096 * 3))

    def read() -> None:
        damaged = Ledger(ledger.path)
        with contextlib.closing(damaged):
            list(damaged.batch_results("cats-1"))

    with pytest.raises(LedgerError):  # on opening or on reading, whichever comes to the page first
        read()
