"""The compile cache: real files, damage, and bounds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.runtimes.apple.cache import CompileCache, Key, Lease

from .conftest import BUILD

KEY = Key("a" * 64, "cpu_and_ne", "/models/unet.mlpackage")
CONTENT = {"coremldata.bin": b"heart", "weights/weight.bin": b"w" * 1000}
SIZE = sum(map(len, CONTENT.values()))


def compile_to(target: Path) -> None:
    for name, data in CONTENT.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)


def never(target: Path) -> None:
    raise AssertionError(f"{target} must not be compiled again")


def make(cache: CompileCache, digit: str, used: float, unit: str = "all") -> Path:
    """An entry that nobody uses, last used then."""
    lease = cache.lease(Key(digit * 64, unit, f"{digit}.mlpackage"), compile_to)  # type: ignore[arg-type]
    folder = lease.path.parent
    lease.release()
    os.utime(folder / "lock", (used, used))
    return folder


def hidden(cache: CompileCache) -> list[str]:
    return [path.name for path in cache.root.iterdir() if path.name.startswith(".") and path.name != ".writing"]


def test_what_is_compiled_is_kept(cache: CompileCache) -> None:
    first = cache.lease(KEY, compile_to)
    assert first.compiled_in is not None
    assert {name: (first.path / name).read_bytes() for name in CONTENT} == CONTENT
    again = cache.lease(KEY, never)
    assert (again.path, again.compiled_in) == (first.path, None)
    [entry] = cache.entries()
    assert (entry.sha256, entry.compute_unit, entry.build) == (KEY.sha256, KEY.compute_unit, BUILD)
    assert (entry.source, entry.in_use, entry.damaged) == (KEY.source, True, False)
    assert entry.size_bytes >= SIZE
    assert entry.seconds == first.compiled_in
    assert hidden(cache) == []


def test_a_key_is_of_package_unit_and_build(cache: CompileCache) -> None:
    leases = [
        cache.lease(KEY, compile_to),
        cache.lease(Key("b" * 64, KEY.compute_unit, KEY.source), compile_to),
        cache.lease(Key(KEY.sha256, "all", KEY.source), compile_to),
        CompileCache(cache.root, build="25A1").lease(KEY, compile_to),
    ]
    assert len({lease.path for lease in leases}) == 4


def test_the_folder_is_its_owners(cache: CompileCache) -> None:
    lease = cache.lease(KEY, compile_to)
    assert cache.root.stat().st_mode & 0o077 == 0
    assert lease.path.parent.stat().st_mode & 0o077 == 0


def _truncate(entry: Path) -> None:
    (entry / "model.mlmodelc/weights/weight.bin").write_bytes(b"w")


def _remove(name: str) -> Callable[[Path], None]:
    return lambda entry: (entry / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        (entry / name).write_text(text)

    return damage


def _file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("x")


def _lie(entry: Path) -> None:
    record = json.loads((entry / "entry.json").read_text())
    record["files"]["../../../etc/passwd"] = 1
    (entry / "entry.json").write_text(json.dumps(record))


DAMAGE = {
    "truncated": _truncate,
    "file gone": _remove("model.mlmodelc/coremldata.bin"),
    "model gone": lambda entry: shutil.rmtree(entry / "model.mlmodelc"),
    "file more": _write("model.mlmodelc/more", "x"),
    "no record": _remove("entry.json"),
    "no JSON": _write("entry.json", "{"),
    "not ours": _write("entry.json", "[]"),
    "nested": _write("entry.json", "[" * 100_000),
    "lies": _lie,
    "no lock": _remove("lock"),
    "a file": _file,
    "empty": lambda entry: (shutil.rmtree(entry), entry.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_compiled_anew(cache: CompileCache, damage: Callable[[Path], object]) -> None:
    lease = cache.lease(KEY, compile_to)
    lease.release()
    damage(lease.path.parent)
    assert all(entry.damaged for entry in cache.entries())
    again = cache.lease(KEY, compile_to)
    assert again.compiled_in is not None
    assert [(entry.damaged, entry.in_use) for entry in cache.entries()] == [(False, True)]
    assert hidden(cache) == []


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_entries_are_cleaned(cache: CompileCache, damage: Callable[[Path], object]) -> None:
    make(cache, "a", 1.0)
    damage(cache.root / cache.entries()[0].name)
    cache.clean()
    assert cache.entries() == []


def test_an_entry_whose_compiling_fails_leaves_nothing(cache: CompileCache) -> None:
    def half(target: Path) -> None:
        compile_to(target)
        raise ModelLoadError("no such op")

    with pytest.raises(ModelLoadError, match="no such op"):
        cache.lease(KEY, half)
    with pytest.raises(ModelLoadError, match="left nothing"):
        cache.lease(KEY, lambda target: target.mkdir())
    assert (cache.entries(), hidden(cache)) == ([], [])


def test_a_full_disk_is_said_to_be_full(cache: CompileCache) -> None:
    def full(_target: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelLoadError, match="no room for what Core ML compiles"):
        cache.lease(KEY, full)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(cache: CompileCache) -> None:
    cache.root.mkdir(mode=0o500)
    with pytest.raises(ModelLoadError, match="cannot be written"):
        cache.lease(KEY, compile_to)


def test_a_cache_that_is_a_file(cache: CompileCache) -> None:
    cache.root.write_text("x")
    with pytest.raises(ModelLoadError, match="cannot be written"):
        cache.lease(KEY, compile_to)


def test_clean_removes_other_builds_and_what_is_old(cache: CompileCache) -> None:
    kept, old = make(cache, "a", 4e9), make(cache, "b", 1000.0)
    other = Path(shutil.copytree(kept, cache.root / kept.name.replace(BUILD, "25A1")))
    (other / "entry.json").write_text((kept / "entry.json").read_text().replace(BUILD, "25A1"))
    assert [entry.build for entry in cache.clean()] == ["25A1"]
    assert [entry.name for entry in cache.clean(older_seconds=3600, dry_run=True)] == [old.name]
    assert [entry.name for entry in cache.clean(older_seconds=3600)] == [old.name]
    assert [entry.name for entry in cache.entries()] == [kept.name]


def test_clean_keeps_the_last_used_below_a_bound(cache: CompileCache) -> None:
    folders = [make(cache, digit, used) for digit, used in (("a", 30.0), ("b", 10.0), ("c", 20.0))]

    def a_byte_less() -> int:
        return sum(entry.size_bytes for entry in cache.entries()) - 1

    assert [entry.last_use for entry in cache.clean(max_bytes=a_byte_less())] == [10.0]
    assert [entry.last_use for entry in cache.clean(max_bytes=a_byte_less())] == [20.0]
    assert [entry.name for entry in cache.entries()] == [folders[0].name]
    cache.clean(max_bytes=0)
    assert cache.entries() == []


def test_a_new_entry_ends_those_of_the_system_before(cache: CompileCache) -> None:
    make(CompileCache(cache.root, build="24F74"), "a", 10.0)
    make(cache, "a", 20.0)
    assert [entry.build for entry in cache.entries()] == [BUILD]


def test_a_new_entry_makes_room_for_itself(cache: CompileCache) -> None:
    make(cache, "a", 10.0)
    size = cache.entries()[0].size_bytes
    small = CompileCache(cache.root, build=BUILD, max_bytes=5 * size // 2)  # their records differ by some bytes
    make(small, "b", 20.0)
    held = small.lease(Key("c" * 64, "all", "c"), compile_to)
    assert {entry.sha256[0] for entry in small.entries()} == {"b", "c"}
    tiny = CompileCache(cache.root, build=BUILD, max_bytes=1)
    newest = tiny.lease(Key("d" * 64, "all", "d"), compile_to)
    assert {entry.sha256[0] for entry in tiny.entries()} == {"c", "d"}  # both are in use
    assert held.path.is_dir()
    assert newest.path.is_dir()


def test_loading_is_what_counts_as_use(cache: CompileCache) -> None:
    folder = make(cache, "a", 10.0)
    cache.lease(Key("a" * 64, "all", "a"), never).release()
    assert (folder / "lock").stat().st_mtime > 10.0


def test_what_is_in_use_is_not_removed(cache: CompileCache) -> None:
    lease = cache.lease(KEY, compile_to)
    [entry] = cache.entries()
    assert (cache.clean(max_bytes=0), cache.remove(entry.name)) == ([], False)
    lease.release()
    assert cache.remove(entry.name)
    assert not cache.remove(entry.name)
    assert (cache.entries(), hidden(cache)) == ([], [])


@pytest.mark.parametrize("name", ["..", "../outside", "", ".writing", "/etc"])
def test_remove_takes_only_names_of_entries(cache: CompileCache, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    lease = cache.lease(KEY, compile_to)
    assert not cache.remove(name)
    assert lease.path.is_dir()
    assert (tmp_path / "outside").is_dir()


def test_forgetting_takes_it_from_those_who_come_later(cache: CompileCache) -> None:
    lease = cache.lease(KEY, compile_to)
    cache.forget(KEY)
    assert cache.entries() == []
    again = cache.lease(KEY, compile_to)
    assert again.compiled_in is not None
    lease.release()
    assert [entry.in_use for entry in cache.entries()] == [True]


def test_an_empty_cache(cache: CompileCache) -> None:
    assert (cache.entries(), cache.clean(max_bytes=0)) == ([], [])
    assert not cache.root.exists()


def test_leases_of_one_process_are_each_their_own(cache: CompileCache) -> None:
    leases: list[Lease] = [cache.lease(KEY, compile_to) for _ in range(3)]
    for lease in leases[:2]:
        lease.release()
    assert cache.clean(max_bytes=0) == []
    leases[2].release()
    assert len(cache.clean(max_bytes=0)) == 1
