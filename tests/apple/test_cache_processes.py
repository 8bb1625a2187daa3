"""The compile cache among several processes: races, a kill in mid-write, a model that another process has loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from renderkiln.worker.runtimes.apple.cache import CompileCache

from .conftest import BUILD
from .test_cache import KEY, compile_to, hidden

#: Says what it does line by line; goes on where it waits when it is sent a line, and ends with its input.
PROGRAM = """
import sys
from pathlib import Path
from renderkiln.worker.runtimes.apple.cache import CompileCache, Key

def say(word):
    print(word, flush=True)

def compile_to(target):
    target.mkdir()
    (target / "half").write_bytes(b"h")
    say("compiling")
    sys.stdin.readline()
    (target / "half").unlink()
    (target / "weights").mkdir()
    (target / "weights/weight.bin").write_bytes(b"w" * 1000)
    (target / "coremldata.bin").write_bytes(b"heart")

cache = CompileCache(Path(sys.argv[1]), build=sys.argv[2])
say("asking")
lease = cache.lease(Key(sys.argv[3], sys.argv[4], "x"), compile_to)
say("found" if lease.compiled_in is None else "compiled")
sys.stdin.readline()
"""


class Asker:
    """A process that asks the cache for the model."""

    def __init__(self, cache: CompileCache) -> None:
        arguments = [str(cache.root), BUILD, KEY.sha256, KEY.compute_unit]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hears(self, *words: str) -> None:
        assert self.process.stdout is not None
        assert tuple(self.process.stdout.readline().strip() for _ in words) == words

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def ask(cache: CompileCache) -> Iterator[Callable[[], Asker]]:
    started: list[Asker] = []

    def start() -> Asker:
        started.append(Asker(cache))
        return started[-1]

    yield start
    for asker in started:
        asker.process.kill()
        asker.end()


def test_two_that_ask_at_once_get_one_entry(cache: CompileCache, ask: Callable[[], Asker]) -> None:
    first = ask()
    first.hears("asking", "compiling")
    second = ask()
    second.hears("asking")
    first.go_on()
    first.hears("compiled")
    second.hears("found")
    assert [(entry.damaged, entry.in_use) for entry in cache.entries()] == [(False, True)]
    assert hidden(cache) == []


def test_many_that_ask_at_once(cache: CompileCache, ask: Callable[[], Asker]) -> None:
    askers = [ask() for _ in range(4)]
    said = []
    for asker in askers:
        asker.hears("asking")
        asker.go_on()  # whoever compiles need not wait
    for asker in askers:
        assert asker.process.stdout is not None
        said.append(asker.process.stdout.readline().strip())
        if said[-1] == "compiling":
            said[-1] = asker.process.stdout.readline().strip()
    assert sorted(said) == ["compiled", "found", "found", "found"]
    assert len(cache.entries()) == 1


def test_a_kill_in_mid_write_leaves_no_entry(cache: CompileCache, ask: Callable[[], Asker]) -> None:
    killed = ask()
    killed.hears("asking", "compiling")
    waiting = ask()
    waiting.hears("asking")
    killed.process.kill()
    killed.end()
    waiting.hears("compiling")  # the lock went with the process; what it left is not taken for an entry
    waiting.go_on()
    waiting.hears("compiled")
    assert [entry.damaged for entry in cache.entries()] == [False]
    assert hidden(cache) == []


def test_what_another_process_has_loaded_stays(cache: CompileCache, ask: Callable[[], Asker]) -> None:
    cache.lease(KEY, compile_to).release()
    user = ask()
    user.hears("asking", "found")
    assert cache.clean(max_bytes=0) == []
    assert [entry.in_use for entry in cache.entries()] == [True]
    user.end()
    assert len(cache.clean(max_bytes=0)) == 1


def test_one_that_was_killed_has_nothing_loaded(cache: CompileCache, ask: Callable[[], Asker]) -> None:
    cache.lease(KEY, compile_to).release()
    user = ask()
    user.hears("asking", "found")
    user.process.kill()
    user.end()
    assert [entry.in_use for entry in cache.entries()] == [False]
