"""Stores: whole files or none, names that stay inside, failures in plain words. Real folders, real fsspec."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.home.store import Store, named_store
from renderkiln.home.store.remote import without_password
from renderkiln.home.store.trouble import explained
from renderkiln.schema.errors import StoreError

DATA = b"\x89PNG some bytes" * 100
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["folder", "file", "memory", "dir"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each kind of place: a folder, the same as a URL, an object store, and a server that renames."""
    folder = tmp_path / "pictures" / "out"
    if request.param == "memory":
        import fsspec

        name = f"memory://{uuid.uuid4().hex}"
        yield Store(name)
        fs = fsspec.filesystem("memory")
        if fs.exists(name):
            fs.rm(name, recursive=True)
        return
    prefix = {"folder": "", "file": "file://", "dir": "dir::file://"}[request.param]
    folder.parent.mkdir()
    yield Store(f"{prefix}{folder}")


def test_a_file_is_put_found_and_read(store: Store) -> None:
    stored = store.put("batch/00001-a.png", DATA)
    assert (stored.sha256, stored.size) == (SHA, len(DATA))
    assert stored.url == store.url_of("batch/00001-a.png")
    assert store.exists(stored.url)
    assert store.read(stored.url) == DATA
    assert store.matches(stored.url, size=len(DATA), sha256=SHA)
    assert not store.matches(stored.url, size=1)
    assert not store.matches(stored.url, sha256="0" * 64)
    assert store.put("batch/00001-a.png", DATA) == stored
    if not stored.url.startswith("memory"):
        assert Path("/" + stored.url.split("///")[-1].lstrip("/")).read_bytes() == DATA
    assert store.put("batch/00001-a.png", b"other").size == 5
    assert store.read(stored.url) == b"other"


def test_what_is_not_there(store: Store) -> None:
    url = store.url_of("batch/no.png")
    assert not store.exists(url)
    assert not store.matches(url, size=0)
    store.put("batch/yes.png", DATA)
    assert not store.exists(url)
    assert not store.exists(store.url_of("batch"))
    with pytest.raises(StoreError, match=r"reading .*no\.png failed: it is not there"):
        store.read(url)


def test_check_and_clean_leave_nothing(store: Store) -> None:
    store.check()
    assert store.clean(0) == 0
    if store.folder is not None:
        assert list(store.folder.rglob("*")) == []


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", ".hidden", "a\\b", "a\nb", "a\x00", "c:a", "x" * 256],
)
def test_names_that_lead_elsewhere_are_refused(store: Store, name: str) -> None:
    for call in (lambda: store.put(name, DATA), lambda: store.url_of(name)):
        with pytest.raises(StoreError, match="not a name for a file"):
            call()


@given(name=st.text(max_size=30))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    try:
        url = Store("/srv/pictures").url_of(name)
    except StoreError:
        return
    assert os.path.normpath(url) == url
    assert url.startswith("/srv/pictures/")


def test_urls_of_other_stores_are_refused(store: Store) -> None:
    for url in ("/etc/passwd", "memory://elsewhere/a.png", store.url, store.url_of("a") + "/../../x"):
        with pytest.raises(StoreError):
            store.exists(url)


def test_many_writers_of_one_name_leave_one_whole_file(store: Store) -> None:
    versions = [bytes([number]) * 200_000 for number in range(8)]
    failures: list[BaseException] = []

    def write(data: bytes) -> None:
        try:
            for _ in range(5):
                store.put("batch/same.png", data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.read(store.url_of("batch/same.png")) in versions
    assert store.clean(-60) == 0


def test_a_folder_is_used_as_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Store("out").url == str(tmp_path / "out")
    assert Store("~/out").url == str(tmp_path / "home" / "out")
    assert Store(tmp_path / "a" / ".." / "b").folder == tmp_path / "b"
    assert not (tmp_path / "out").exists()


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Store(tmp_path).put("a.png", DATA)
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("prefix", ["", "dir::file://"])
def test_left_over_parts_are_removed_when_old(tmp_path: Path, prefix: str) -> None:
    store = Store(f"{prefix}{tmp_path}")
    (tmp_path / "batch").mkdir()
    old = tmp_path / "batch" / ".00001-a.png.0123456789abcdef.part"
    new = tmp_path / ".00002-b.png.0123456789abcdef.part"
    others = [tmp_path / ".mine.part", tmp_path / "a.0123456789abcdef.part"]
    for path in (old, new, *others):
        path.write_bytes(b"half")
    long_ago = time.time() - 7200
    for path in (old, *others):
        os.utime(path, (long_ago, long_ago))
    assert store.clean(3600) == 1
    assert not old.exists()
    assert new.exists()
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    store = Store(tmp_path)
    store.put("a.png", b"before")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(StoreError, match=r"writing .*a\.png failed: "):
        store.put("a.png", DATA)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert store.read(store.url_of("a.png")) == b"before"


LIMITED = """
import resource, sys
from renderkiln.home.store import Store
from renderkiln.schema.errors import StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    Store(sys.argv[1]).put("a.png", bytes(50_000))
except StoreError as error:
    print(error)
"""


def test_a_limit_of_the_system_is_reported_and_nothing_is_left(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "larger than this file system or this account" in ran.stdout
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from renderkiln.home.store import Store
Path.replace = lambda *_: os.kill(os.getpid(), 9)
Store(sys.argv[1]).put("a.png", bytes(50_000))
"""


def test_a_killed_writer_leaves_no_half_picture(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ran.returncode == -9
    store = Store(tmp_path)
    assert not store.exists(store.url_of("a.png"))
    assert store.clean(3600) == 0  # it may still be at work
    assert store.clean(-60) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), r"the disk is full \([0-9]+ MB free\); make room"),
        (OSError(errno.EDQUOT, "x"), "quota is used up"),
        (OSError(errno.EROFS, "x"), "read-only"),
        (PermissionError(errno.EACCES, "x"), "permission denied; check who owns"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; check the store"),
        (NotImplementedError(), "cannot do that"),
        (RuntimeError("no login"), "RuntimeError: no login; check the store's address"),
    ],
)
def test_failures_are_in_plain_words(tmp_path: Path, error: Exception, said: str) -> None:
    with pytest.raises(StoreError, match=f"doing it failed: .*{said}"), explained("doing it", tmp_path):
        raise error


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "empty"),
        ("a\x00b", "NUL"),
        ("nosuch://x/y", "store nosuch://x/y cannot be opened: .*nosuch"),
        ("zip:///nowhere/no.zip", "cannot be opened"),
    ],
)
def test_places_that_are_none(place: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        Store(place)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(StoreError, match="run `pip install s3fs`"):
        Store("s3://bucket/pictures")
    with pytest.raises(StoreError, match="Install s3fs to access S3"):
        Store("other://bucket/pictures")


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    for store in (Store(tmp_path / "out"), Store(tmp_path / "out" / "deeper")):
        with pytest.raises(StoreError, match="a file is where a folder should be"):
            store.check()


def test_passwords_are_not_shown() -> None:
    assert without_password("sftp://me:s3:cr@t@host/x@y:z") == "sftp://me@host/x@y:z"
    assert without_password("dir::sftp://me:secret@host/x") == "dir::sftp://me@host/x"
    assert without_password("s3://bucket/a:b@c") == "s3://bucket/a:b@c"
    store = Store("memory://me:secret@host/x")
    assert "secret" not in repr(store) + store.url_of("a.png") + store.put("a.png", DATA).url
    assert store.exists(store.url_of("a.png"))


def test_a_folder_needs_no_fsspec() -> None:
    loaded = "print('fsspec' in sys.modules, 'PIL' in sys.modules)"
    code = f"import sys, renderkiln.home.store as store; store.Store('x'); {loaded}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    "place", ["reference::http://host/x.json", "github://a:b@main/x", "simplecache::s3://b/x", "git://x"]
)
def test_a_store_of_an_odd_kind_is_taken_from_ones_own_settings_alone(place: str) -> None:
    with pytest.raises(StoreError, match="a job may not name"):
        named_store(place)


def test_a_store_of_a_usual_kind_may_be_named_by_a_job(tmp_path: Path) -> None:
    assert named_store(str(tmp_path)).folder == tmp_path
    assert named_store("memory://pictures").url == "memory://pictures"
