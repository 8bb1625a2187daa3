"""Kills a process at every boundary of spooling and late delivery, and looks at what is left; run by `test_spool`.

Each round forks a worker that spools two pictures and brings them to their store, and that SIGKILLs itself at its n-th
boundary: before and after each flush, rename, removal, write to the store and row. Then a second one comes, which
renders what is nowhere and brings the rest. Prints how many rounds there were; ends with an assertion where a picture
was lost, doubled, or had a row and no file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from renderkiln.home.ledger import Ledger
from renderkiln.home.store import Store
from renderkiln.schema.jobs import ImageResult, JobOptions, make_job
from renderkiln.schema.spec import RenderSpec
from renderkiln.worker.supervisor.away import Away
from renderkiln.worker.supervisor.redelivery import Redelivery
from renderkiln.worker.supervisor.spool import Parcel, Spool

JOB = make_job(RenderSpec(model="tiny", prompt="a cat", seed=1), JobOptions(num_images=2), batch="cats", index=0)
PICTURES = [b"\x89PNG one" * 900, b"\x89PNG two" * 900]


class Place:
    def __init__(self, root: Path) -> None:
        self.store = Store(root / "pictures")
        self.ledger = root / "ledger.db"
        self.kept = root / "kept"  # what a worker was told is safe
        self.spool = Spool(root / "spool", 1_000_000)

    def parcel(self, k: int) -> Parcel:
        data, digest = PICTURES[k], JOB.image_spec(k).digest
        name = f"cats/{k}.png"
        image = ImageResult(
            k=k,
            index=k,
            seed=1 + k,
            digest=digest,
            url=self.store.url_of(name),
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            width=8,
            height=8,
            seconds=1.0,
        )
        return Parcel(job_id=JOB.id, execution_id="e1", store=None, name=name, image=image)

    def work(self) -> None:
        """What a worker does: renders what is nowhere, spools it, and brings what is in the spool."""
        for k in {0, 1} - self.rows().keys() - {kept.k for kept in self.spool.pictures()}:
            self.spool.add(self.parcel(k), PICTURES[k])
            with self.kept.open("a") as file:
                file.write(f"{k}\n")
        redelivery = Redelivery(self.spool, lambda _: self.store, self.store, self.ledger, Away(), lambda: None)
        assert redelivery.deliver_all()
        redelivery.close()

    def rows(self) -> dict[int, tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(self.ledger)) as ledger:
            return {
                k: (url, sha256) for k, url, sha256 in ledger.execute("SELECT k, url, sha256 FROM images ORDER BY k")
            }

    def check(self) -> None:
        """What must hold at any time."""
        rows = self.rows()
        for url, sha256 in rows.values():
            assert self.store.matches(url, sha256=sha256), "a row without its file"
        spooled = {kept.k for kept in self.spool.pictures() if self.spool.read(kept) is not None}
        promised = {int(line) for line in self.kept.read_text().split()} if self.kept.exists() else set()
        assert promised <= rows.keys() | spooled, "a picture was lost that had been kept"

    def check_end(self) -> None:
        self.check()
        assert list(self.rows()) == [0, 1]
        self.spool._store.clean(0)
        self.store.clean(0)
        folder = self.store.folder
        assert folder is not None
        assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["0.png", "1.png"]
        assert list((folder.parent / "spool").iterdir()) == []


def kill_at(boundary: int) -> None:
    """From here on, the boundary of that number is the last."""
    passed = 0

    def at_boundary() -> None:
        nonlocal passed
        passed += 1
        if passed == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            at_boundary()
            result = original(*args, **kwargs)
            at_boundary()
            return result

        setattr(owner, name, wrapped)

    for owner, name in [(os, "fsync"), (Path, "replace"), (Path, "unlink"), (Store, "put"), (Ledger, "image_recorded")]:
        around(owner, name)


def fork(work: Callable[[], None]) -> int:
    """The signal that ended it, 0 for none."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "a worker failed"
    return os.WTERMSIG(status)


def begin(place: Place) -> None:
    ledger = Ledger(place.ledger)
    ledger.worker_started("w", "here", 1, {})
    ledger.attempt_started(JOB, "e1", 1, "w", 1)
    ledger.close()


def main(root: Path) -> None:
    template = root / "template"
    template.mkdir()
    begin(Place(template))
    boundary = 0
    while True:
        boundary += 1
        here = root / str(boundary)
        here.mkdir()
        (here / "ledger.db").write_bytes((template / "ledger.db").read_bytes())
        place = Place(here)

        def work(place: Place = place, boundary: int = boundary) -> None:
            kill_at(boundary)
            place.work()

        ended_by = fork(work)
        place.check()
        assert fork(place.work) == 0
        place.check_end()
        if not ended_by:
            print(boundary)
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
