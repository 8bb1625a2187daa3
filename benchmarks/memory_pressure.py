"""A memory limit that kills `resident`, and a program that takes memory in mid-list: what becomes of a list of prompts.

Stable Diffusion 1.5's geometry (see `convert_sd15`), bfloat16 on the CPU, 256×256, through `renderkiln render`, in a
cgroup of its own (v1 or v2; that takes root, or a delegated group):

- limit: three policies under a limit that the stages of the model do not fit under together: `resident`; `auto`; and
  `auto` blindfolded, told that it has 8 GB and not to heed pressure, so that it has to learn from being killed.
- hog: a larger limit, and a process beside the worker that takes most of what is left when the fifth picture is done,
  and gives it back twenty seconds later. `renderkiln report` draws what the worker made of it (`--picture FILE`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import MemoryRecords
from renderkiln.schema.tables import AttemptRow

from .convert_sd15 import MODEL, make_model
from .report import machine

#: Bytes: jit's need with supervisor, server and client beside it fits the first, resident's does not.
LIMIT, ROOMY = 3_000_000_000, 5_500_000_000
BLIND = {"RENDERKILN_PRESSURE_WARN": "0", "RENDERKILN_PRESSURE_CRITICAL": "0", "RENDERKILN_PRESSURE_STALL": "100"}
_HOG = """
import sys, time
taken = bytearray(int(sys.argv[1]))
taken[::4096] = b"x" * len(taken[::4096])
print("taken", flush=True)
time.sleep(float(sys.argv[2]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["limit", "hog"], help="limit, hog, or both")
    parser.add_argument("--picture", type=Path, default=Path("memory-under-pressure.svg"))
    asked = parser.parse_args()
    make_model()
    print(machine())
    if "limit" in asked.parts:
        limit()
    if "hog" in asked.parts:
        hog(asked.picture)


def limit() -> None:
    """Three policies under a limit."""
    print(f"limit {LIMIT / 1e9:.1f} GB, 4 prompts, 4 steps")
    for name, flags, more in (
        ("resident", ("--memory", "resident"), {}),
        ("auto", ("--memory", "auto"), {}),
        ("auto, blindfolded", ("--memory", "auto", "--memory-budget", "8GB"), BLIND),
    ):
        with _house() as house, _cgroup(LIMIT) as group:
            code, said, seconds = _render(house, group, 4, 4, flags, more)
            print(f"== {name}: exit code {code} after {seconds:.0f} s, {len(list(house.glob('out/*/*.png')))} files")
            print("\n".join(f"   {line}" for line in said.splitlines() if "tried again" in line or "failed" in line))
            _print_attempts(house)


def hog(picture: Path) -> None:
    """A program that takes memory in mid-list."""
    print(f"limit {ROOMY / 1e9:.1f} GB, 14 prompts, 6 steps, auto, pressure_calm 15 s")
    with _house() as house, _cgroup(ROOMY) as group:
        flags, more = ("--memory", "auto", "--memory-budget", "4GB"), {"RENDERKILN_PRESSURE_CALM": "15"}
        process = _start(house, group, 14, 6, flags, more)
        while process.poll() is None and len(list(house.glob("out/*/*.png"))) < 5:
            time.sleep(0.5)
        taken = ROOMY - group.used() - 150_000_000
        hog = _in_group(group, [sys.executable, "-c", _HOG, str(taken), "20"], subprocess.PIPE)
        print(f"the hog takes {taken / 1e9:.2f} GB")
        said = process.communicate()[0]
        hog.communicate()
        print(f"exit code {process.returncode}; {said.strip().splitlines()[-1]}")
        _print_attempts(house)
        command = [sys.executable, "-m", "renderkiln.producer", "report", "--data-dir", str(house / "data")]
        subprocess.run([*command, "--out", str(picture)], check=True)


class _Group:
    """A cgroup with a limit."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder, self._version = folder, version

    def limit(self, size: int) -> None:
        (self.folder / ("memory.max" if self._version == 2 else "memory.limit_in_bytes")).write_text(str(size))

    def used(self) -> int:
        """Without the file cache."""
        usage = "memory.current" if self._version == 2 else "memory.usage_in_bytes"
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        names = ("inactive_file", "active_file") if self._version == 2 else ("total_inactive_file", "total_active_file")
        return int((self.folder / usage).read_text()) - sum(int(stat[name]) for name in names)


@contextmanager
def _cgroup(size: int) -> Iterator[_Group]:
    for root, version in ((Path("/sys/fs/cgroup/memory"), 1), (Path("/sys/fs/cgroup"), 2)):
        folder = root / f"renderkiln-{os.getpid()}"
        try:
            folder.mkdir()
            group = _Group(folder, version)
            group.limit(size)
        except OSError:
            continue
        try:
            yield group
        finally:
            for pid in (folder / "cgroup.procs").read_text().split():
                subprocess.run(["kill", "-9", pid], check=False)
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
        return
    sys.exit("no cgroup with a memory limit can be made here: it takes root, or a delegated group")


@contextmanager
def _house() -> Iterator[Path]:
    """A data folder with the model."""
    house = Path(tempfile.mkdtemp(prefix="renderkiln-memory-"))
    models = DataFolder(house / "data").ensure().models
    models.mkdir()
    (models / "sd15").symlink_to(MODEL.absolute())
    try:
        yield house
    finally:
        command = [sys.executable, "-m", "renderkiln.producer", "server", "stop", "--data-dir", str(house / "data")]
        subprocess.run(command, check=False, capture_output=True)
        shutil.rmtree(house, ignore_errors=True)


def _in_group(
    group: _Group, command: list[str], out: int, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a process that is in the group before it takes any memory."""
    script = f'echo $$ > {group.folder}/cgroup.procs && exec "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *command], stdout=out, stderr=subprocess.STDOUT, text=True, env=environ
    )


def _start(
    house: Path, group: _Group, prompts: int, steps: int, flags: tuple[str, ...], more: Mapping[str, str]
) -> subprocess.Popen[str]:
    prompt_list = house / "list.txt"
    prompt_list.write_text("".join(f"a painting of the number {number}\n" for number in range(prompts)))
    command = [sys.executable, "-m", "renderkiln.producer", "render", str(prompt_list), "--model", "sd15", *flags]
    command += ["--width", "256", "--height", "256", "--num-inference-steps", str(steps), "--out", str(house / "out")]
    environ = os.environ | {"RENDERKILN_DATA_DIR": str(house / "data"), "RENDERKILN_DTYPE": "bfloat16"} | more
    return _in_group(group, command, subprocess.PIPE, environ)


def _render(
    house: Path, group: _Group, prompts: int, steps: int, flags: tuple[str, ...], more: Mapping[str, str]
) -> tuple[int, str, float]:
    began = time.monotonic()
    process = _start(house, group, prompts, steps, flags, more)
    said = process.communicate()[0]
    return process.returncode, said, time.monotonic() - began


def _print_attempts(house: Path) -> None:
    """The ledger's attempts, and what happened to memory between them."""
    ledger = Ledger(DataFolder(house / "data").ledger)
    with ledger.reading() as session:
        rows = session.scalars(sa.select(AttemptRow).order_by(AttemptRow.started_at)).all()
        for row in rows:
            peak = f"{row.peak_bytes / 1e9:.2f} GB" if row.peak_bytes else "?"
            line = {"attempt": row.number, "outcome": row.outcome, "failure": row.failure_kind, "peak": peak}
            print(f"   {json.dumps(line | {'loads': row.loads, 'evictions': row.evictions})}")
    for sample in MemoryRecords(ledger).samples():
        if sample.event:
            held = ", ".join(stage for _, stage, _ in sample.stages) or "nothing"
            print(f"   {time.strftime('%H:%M:%S', time.localtime(sample.at))} {sample.event} (in memory: {held})")
    ledger.close()


if __name__ == "__main__":
    main()
