"""The cache of encoded texts: what it keeps, what it finds again, and what it does not believe."""

from __future__ import annotations

import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from renderkiln.worker.engine import embeddings
from renderkiln.worker.engine.embeddings import CacheLimits, EmbeddingCache, EmbeddingKey, Tensors

KEYS = st.builds(
    EmbeddingKey,
    st.text(max_size=8),
    st.sampled_from(["prompt", "negative_prompt"]),
    st.text(max_size=8),
    st.none() | st.integers(1, 12),
)
#: Bytes of one of `some`.
SIZE = 7 * 8 * 4


def key(number: int) -> EmbeddingKey:
    return EmbeddingKey("e", "prompt", str(number), None)


def some(number: int = 0) -> Tensors:
    return (torch.full((1, 7, 8), float(number)),)


def same(found: Tensors | None, wanted: Tensors) -> bool:
    return found is not None and len(found) == len(wanted) and all(map(torch.equal, found, wanted))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def on_disk(folder: Path) -> Callable[..., EmbeddingCache]:
    """Makes caches over one folder, that remember nothing of each other."""
    return lambda memory=10 * SIZE, disk=1_000_000: EmbeddingCache(CacheLimits(memory, disk), folder)


class TestInMemory:
    def test_those_used_last_stay(self) -> None:
        cache = EmbeddingCache(CacheLimits(3 * SIZE))
        for number in range(3):
            cache.put(key(number), some(number))
        assert same(cache.get(key(0)), some(0))
        cache.put(key(3), some(3))
        assert cache.get(key(1)) is None
        assert cache.size_bytes == 3 * SIZE
        for number in (0, 2, 3):
            assert same(cache.get(key(number)), some(number))

    def test_a_large_one_takes_the_place_of_several(self) -> None:
        cache = EmbeddingCache(CacheLimits(3 * SIZE))
        for number in range(3):
            cache.put(key(number), some(number))
        cache.put(key(9), (torch.ones(1, 14, 8),))
        assert [number for number in range(3) if cache.get(key(number))] == [2]
        assert cache.size_bytes == 3 * SIZE

    def test_one_that_is_larger_than_all_is_not_kept(self) -> None:
        cache = EmbeddingCache(CacheLimits(SIZE))
        cache.put(key(0), some())
        cache.put(key(1), (torch.ones(1, 8, 8),))
        assert cache.get(key(1)) is None
        assert same(cache.get(key(0)), some())

    def test_put_anew_counts_once(self) -> None:
        cache = EmbeddingCache(CacheLimits(3 * SIZE))
        cache.put(key(0), some(0))
        cache.put(key(0), some(1))
        assert cache.size_bytes == SIZE
        assert same(cache.get(key(0)), some(1))

    def test_nothing_is_kept_without_memory(self) -> None:
        cache = EmbeddingCache(CacheLimits(0))
        cache.put(key(0), some())
        assert cache.get(key(0)) is None
        assert cache.size_bytes == 0
        assert cache.room_bytes == 0

    def test_keeps_its_own_and_not_a_view(self) -> None:
        cache = EmbeddingCache(CacheLimits(SIZE))
        whole = torch.zeros(100, 7, 8)
        cache.put(key(0), (whole[:1],))
        whole += 1
        (found,) = cache.get(key(0)) or ()
        assert same((found,), some(0))
        assert found.untyped_storage().nbytes() == SIZE

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 5)), max_size=40), st.integers(0, 9))
    def test_never_goes_over_its_bound(self, operations: list[tuple[bool, int, int]], bound: int) -> None:
        cache = EmbeddingCache(CacheLimits(bound * 4))
        put: dict[EmbeddingKey, Tensors] = {}
        for is_put, number, length in operations:
            if is_put:
                put[key(number)] = (torch.full((1, 1, length), float(number)),)
                cache.put(key(number), put[key(number)])
                assert (cache.get(key(number)) is not None) or length > bound
            found = cache.get(key(number))
            assert found is None or found[0][0, 0, 0] == number
            kept = [cache.get(each) for each in put]
            assert cache.size_bytes == sum(each[0].numel() * 4 for each in kept if each) <= bound * 4


class TestKeys:
    @given(KEYS, KEYS)
    def test_each_field_has_a_say(self, one: EmbeddingKey, other: EmbeddingKey) -> None:
        assert (one.digest == other.digest) == (one == other)

    @given(KEYS, KEYS, st.sampled_from(EmbeddingKey._fields))
    def test_one_field_is_enough(self, one: EmbeddingKey, other: EmbeddingKey, field: str) -> None:
        changed = one._replace(**{field: getattr(other, field)})
        assert (changed.digest == one.digest) == (changed == one)

    def test_no_two_fields_run_together(self) -> None:
        assert EmbeddingKey("ab", "prompt", "c", 1).digest != EmbeddingKey("a", "prompt", "bc", 1).digest
        assert EmbeddingKey("a", "prompt", "1", None).digest != EmbeddingKey("a", "prompt", "", 1).digest


class TestOnDisk:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_found_again_by_another_process(self, on_disk: Callable[..., EmbeddingCache], dtype: torch.dtype) -> None:
        tensors = (torch.randn(1, 7, 8).to(dtype), torch.randn(1, 8).to(dtype))
        on_disk().put(key(0), tensors)
        again = on_disk()
        assert same(again.get(key(0)), tensors)
        assert again.size_bytes == 7 * 8 * dtype.itemsize + 8 * dtype.itemsize
        assert again.get(key(1)) is None

    def test_without_memory_the_disk_has_it(self, on_disk: Callable[..., EmbeddingCache]) -> None:
        cache = on_disk(memory=0)
        cache.put(key(0), some(3))
        assert same(cache.get(key(0)), some(3))
        assert cache.size_bytes == 0
        assert cache.room_bytes == 1_000_000

    def test_what_inference_mode_made(self, on_disk: Callable[..., EmbeddingCache]) -> None:
        with torch.inference_mode():
            on_disk().put(key(0), (torch.ones(2, 7, 8).transpose(0, 1)[:1, :1] * 5,))
        assert same(on_disk().get(key(0)), (torch.full((1, 1, 8), 5.0),))

    def test_is_its_owners_alone(self, on_disk: Callable[..., EmbeddingCache], folder: Path) -> None:
        on_disk().put(key(0), some())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (file,) = folder.iterdir()
        assert file.name == f"{key(0).digest}.safetensors"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_no_folder_without_a_bound(self, folder: Path) -> None:
        EmbeddingCache(CacheLimits(1000, 0), folder).put(key(0), some())
        assert not folder.exists()

    def test_the_oldest_are_swept(
        self, on_disk: Callable[..., EmbeddingCache], folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embeddings, "_SWEEP_EVERY", 4)
        size = len(save({"0": some()[0]}))
        cache = on_disk(memory=0, disk=3 * size)
        (folder / "a folder").mkdir(parents=True)
        (folder / "killed.tmp").write_bytes(b"x" * size)
        os.utime(folder / "killed.tmp", (0, 0))
        for number in range(9):
            cache.put(key(number), some(number))
            os.utime(folder / f"{key(number).digest}.safetensors", (number + 1, number + 1))
            if number == 5:
                assert cache.get(key(1)) is None  # swept after the fifth
                assert same(cache.get(key(3)), some(3))  # now it was used last
        files = {file.name for file in folder.iterdir() if file.is_file()}
        assert files == {f"{key(number).digest}.safetensors" for number in (3, 7, 8)}

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"not a file of this kind",
            save({"0": some()[0]})[:-1],
            save({"0": some()[0]})[:20],
            b"\xff" * 8 + save({"0": some()[0]}),
            pickle.dumps({"0": [1.0]}),
            save({"1": some()[0]}),
            save({}),
            save({"0": torch.zeros(7, 8)}),
            save({"0": torch.zeros(1, 7, 8, 1)}),
            save({"0": torch.zeros(2, 7, 8)}),
            save({"0": torch.zeros(1, 0, 8)}),
            save({"0": torch.zeros(1, 7, 8, dtype=torch.int64)}),
            save({"0": torch.zeros(1, 7, 8, dtype=torch.complex64)}),
            save({"0": torch.zeros(1, 7, 8).to(torch.float8_e4m3fn)}),
            save({"0": torch.full((1, 7, 8), float("nan"))}),
            save({"0": torch.full((1, 7, 8), float("inf"))}),
            save({"0": some()[0], "1": torch.zeros(1, 7, 8)}),
            save({"0": some()[0], "1": torch.zeros(2, 8)}),
            save({"0": some()[0], "1": torch.full((1, 8), float("nan"))}),
            save({str(number): torch.zeros(1, 7, 8) if number == 0 else torch.zeros(1, 8) for number in range(9)}),
            save({"0": torch.zeros(1, 7, 50_000)}),
        ],
        ids=range(22),
    )
    def test_what_is_no_embedding_is_not_used(
        self, on_disk: Callable[..., EmbeddingCache], folder: Path, data: bytes
    ) -> None:
        cache = on_disk(memory=10_000_000)
        folder.mkdir(parents=True)
        (folder / f"{key(0).digest}.safetensors").write_bytes(data)
        assert cache.get(key(0)) is None
        cache.put(key(0), some(4))
        assert same(on_disk().get(key(0)), some(4))

    def test_a_folder_in_its_place(self, on_disk: Callable[..., EmbeddingCache], folder: Path) -> None:
        (folder / f"{key(0).digest}.safetensors").mkdir(parents=True)
        cache = on_disk()
        assert cache.get(key(0)) is None
        cache.put(key(0), some(4))
        assert same(cache.get(key(0)), some(4))
        assert [file.suffix for file in folder.iterdir()] == [".safetensors"]  # nothing half-written is left

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
    def test_what_would_be_waited_for_for_ever(self, on_disk: Callable[..., EmbeddingCache], folder: Path) -> None:
        folder.mkdir(parents=True)
        os.mkfifo(folder / f"{key(0).digest}.safetensors")
        assert on_disk().get(key(0)) is None

    def test_changing_the_file_later_changes_nothing(
        self, on_disk: Callable[..., EmbeddingCache], folder: Path
    ) -> None:
        on_disk().put(key(0), some(4))
        cache = on_disk()
        assert same(cache.get(key(0)), some(4))
        (file,) = folder.iterdir()
        file.write_bytes(b"")
        assert same(cache.get(key(0)), some(4))

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        cache = EmbeddingCache(CacheLimits(1000, 1000), tmp_path / "file" / "embeddings")
        cache.put(key(0), some(1))
        assert same(cache.get(key(0)), some(1))
        assert cache.get(key(1)) is None

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_is_read_only(self, on_disk: Callable[..., EmbeddingCache], folder: Path) -> None:
        on_disk().put(key(0), some(1))
        folder.chmod(0o500)
        try:
            cache = on_disk()
            cache.put(key(1), some(2))
            assert same(cache.get(key(0)), some(1))
            assert same(cache.get(key(1)), some(2))
        finally:
            folder.chmod(0o700)

    def test_a_disk_that_is_read_only(
        self, on_disk: Callable[..., EmbeddingCache], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_disk().put(key(0), some(1))

        def fail(*_args: object, **_call: object) -> None:
            raise OSError("read-only file system")

        monkeypatch.setattr(embeddings.tempfile, "mkstemp", fail)
        monkeypatch.setattr(embeddings.os, "utime", fail)
        cache = on_disk()
        cache.put(key(1), some(2))
        assert same(cache.get(key(0)), some(1))
        assert same(cache.get(key(1)), some(2))

    def test_a_disk_that_is_full(self, on_disk: Callable[..., EmbeddingCache], folder: Path) -> None:
        resource = pytest.importorskip("resource")
        signal = pytest.importorskip("signal")
        on_disk().put(key(0), some(1))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            cache = on_disk()
            cache.put(key(1), some(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert same(cache.get(key(1)), some(2))
        assert on_disk().get(key(1)) is None
        assert len(list(folder.iterdir())) == 1
