"""Hostile jobs straight into Redis, hostile lists into the readers: `--count 10000 --seed 1`.

Nothing may be executed, nothing may crash, and each must be accounted for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from renderkiln.home.folder import DataFolder
from renderkiln.home.server import EmbeddedServer
from renderkiln.producer.enqueue import enqueue
from renderkiln.schema.errors import ServerUnavailableError
from renderkiln.schema.jobs import Job

from .hostile_jobs import MARKERS, Gardener, disrupt
from .hostile_lists import siege as siege_readers
from .hostile_supervisor import NAME
from .report import machine

MODEL = "tiny"
#: Jobs and lists that are planted at a time; a disruption comes with each lot.
LOT = 250


@dataclass
class Account:
    """What came of a siege."""

    hostile: int = 0
    good: int = 0
    good_done: int = 0
    executed: list[str] = field(default_factory=list)
    crashes: int = 0
    #: By kind, by what became of it.
    fates: dict[str, Counter[str]] = field(default_factory=dict)
    #: What became of an entry although it may not.
    wrong: list[str] = field(default_factory=list)
    disruptions: Counter[str] = field(default_factory=Counter)
    report: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        return not (self.executed or self.crashes or self.wrong) and self.good == self.good_done


def siege_supervisor(count: int, seed: int, root: Path, *, huge: bool = True) -> Account:
    """Plants hostile jobs among good ones before a running supervisor, and finds out what became of each."""
    account, rng = Account(hostile=count), random.Random(seed)
    markers = root / "markers"
    markers.mkdir()
    server = EmbeddedServer(DataFolder(root / "data"))
    server.ensure_running()
    report, log = root / "report.json", root / "supervisor.log"
    gardener = Gardener(server.client(), MODEL, markers, rng, (2, 64, 512) if huge else (2, 16))
    began = time.monotonic()
    with log.open("wb") as said:
        command = [
            sys.executable,
            "-m",
            "benchmarks.hostile_supervisor",
            str(server.status().socket),
            MODEL,
            str(report),
        ]
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | {MARKERS: str(markers)})
        try:
            good: list[str] = []
            for start in range(0, count, LOT):
                size = min(LOT, count - start)
                account.disruptions[disrupt(gardener, NAME, huge and start % (LOT * 5) == 0)] += 1
                jobs = [gardener.job() for _ in range(max(1, size // 20))]
                for number in range(size):
                    gardener.plant()
                    if number % 20 == 0:
                        _queue(gardener, jobs[number // 20 : number // 20 + 1])
                good += [job.id for job in jobs]
                _drain(gardener, process, account)
                if account.crashes:
                    break
            process.send_signal(signal.SIGTERM)
            account.crashes += process.wait(60) != 0
        finally:
            process.kill()
            process.wait()
    account.seconds = time.monotonic() - began
    account.report = json.loads(report.read_text()) if report.is_file() else {}
    done = Counter(report.with_suffix(".done").read_text().split())
    account.good = len(good)
    for job_id in good:
        status = gardener.connection.hget(f"rq:job:{job_id}", "status")
        if done[job_id] == 1 and status == b"finished":
            account.good_done += 1
        else:
            account.wrong.append(f"good job {job_id} was run {done[job_id]} times and is {status}")
    for planted in gardener.planted:
        fate = _fate(gardener, planted.raw, done)
        if planted.may == {"counted"}:
            fate = "refused" if fate == "dropped" else fate
            right = fate == "refused"
        else:
            right = fate in planted.may
        account.fates.setdefault(planted.kind, Counter())[fate] += 1
        if not right:
            account.wrong.append(f"{planted.kind}: {planted.raw[:60]!r} was {fate}")
    ids = sum(planted.may == {"counted"} for planted in gardener.planted)
    refused = sum(counts["refused"] for counts in account.fates.values())
    if account.report.get("refused", {}).get("jobs", 0) < refused:
        account.wrong.append(f"{refused} were refused ({ids} of them ids), and the worker counts {account.report}")
    account.executed = sorted(path.name for path in markers.iterdir())
    server.stop()
    return account


def _queue(gardener: Gardener, jobs: list[Job]) -> None:
    """As a producer does: again, where a disruption was in the way."""
    while True:
        try:
            enqueue(gardener.connection, jobs, "good", "good")
            return
        except ServerUnavailableError as error:
            if "WRONGTYPE" not in str(error):
                raise
            time.sleep(0.05)


def _drain(gardener: Gardener, process: subprocess.Popen[bytes], account: Account) -> None:
    """Waits until the queue is empty, or the supervisor has died."""
    deadline = time.monotonic() + 120
    key = f"rq:queue:{gardener.queue}"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            account.crashes += 1
            return
        if gardener.connection.type(key) == b"none" and gardener.connection.type(f"{key}:intermediate") == b"none":
            return
        time.sleep(0.05)
    account.wrong.append(f"the queue was not emptied: {gardener.connection.llen(key)} wait")
    account.crashes += 1


def _fate(gardener: Gardener, raw: bytes, done: Counter[str]) -> str:
    if done[raw.decode(errors="replace")]:
        return "run" if done[raw.decode()] == 1 else "run more than once"
    key = b"rq:job:" + raw
    status, why = gardener.connection.hmget(key, "status", "exc_info")
    if status == b"failed" and why:
        return "refused"
    waits = gardener.connection.lpos(f"rq:queue:{gardener.queue}", raw) is not None
    return "lost" if waits else "dropped"


def show(account: Account) -> None:
    """The tables."""
    print(f"| into Redis: {account.hostile:,} hostile, {account.good:,} good among them | refused | run | dropped |")
    print("|---|---|---|---|")
    for kind, fates in sorted(account.fates.items()):
        print(f"| {kind} | {fates['refused']:,} | {fates['run']:,} | {fates['dropped']:,} |")
    total = sum(account.fates.values(), Counter())
    print(f"| **all** | {total['refused']:,} | {total['run']:,} | {total['dropped']:,} |")
    print(f"\nexecuted: {len(account.executed)}; crashes: {account.crashes}; not accounted for: {len(account.wrong)}")
    print(f"good jobs run once and finished: {account.good_done:,} of {account.good:,}; {account.seconds:.1f} s")
    print(f"the worker's own account: {account.report}")
    print("disruptions: " + ", ".join(f"{name} ({count})" for name, count in sorted(account.disruptions.items())))
    for line in account.wrong[:20]:
        print(f"WRONG: {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        account = siege_supervisor(options.count, options.seed, Path(folder))
    show(account)
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        readers = siege_readers(options.count, options.seed, Path(folder))
    readers.show()
    if not account.is_well or not readers.is_well:
        sys.exit(1)


if __name__ == "__main__":
    main()
