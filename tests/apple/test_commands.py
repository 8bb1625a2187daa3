"""`renderkiln models compile` and `renderkiln models cache`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.cli.test_base_install import HIDING
from typer.testing import CliRunner

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.schema.errors import BadInputError, ModelLoadError, OutOfMemoryError, WorkerUnavailableError
from renderkiln.worker.models import choosing
from renderkiln.worker.runtimes import manifest as manifests
from renderkiln.worker.runtimes.apple import ahead, cli, system
from renderkiln.worker.runtimes.apple.cache import FOLDER, CompileCache, Key
from renderkiln.worker.runtimes.manifest import Manifest, PackageInfo, StageInfo

from .test_cache import compile_to

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(no_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    folder = DataFolder(tmp_path / "data").ensure()
    monkeypatch.setenv("RENDERKILN_DATA_DIR", str(folder.root))
    return folder


@pytest.fixture
def model(data: DataFolder, package: Path, info: PackageInfo) -> Path:
    """An installed model of two stages, both the small package."""
    folder = data.models / "small"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    stages = {}
    for stage in ("text_encoder", "unet"):
        shutil.copytree(package, folder / f"{stage}.mlpackage")
        named = info.model_copy(update={"file": f"{stage}.mlpackage"})
        stages[stage] = StageInfo(stage=stage, packages=(named,), bits=16, settings_digest="0" * 64, seconds=0)
    manifest = Manifest(
        model="small",
        pipeline="StableDiffusionPipeline",
        family="sd",
        variant="split-einsum",
        sizes=((64, 64),),
        stages=stages,
        versions={},
    )
    manifests.save(manifest, folder)
    return folder


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, and those that it starts, believe that they are on a Mac."""
    monkeypatch.setattr(system, "on_macos", lambda: True)
    monkeypatch.setattr(choosing, "_IS_MAC", True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/apple/pretend"), str(ROOT)]))


def run(*arguments: str) -> Any:
    """The commands as `models` has them; errors of ours come through."""
    models = typer.Typer()
    cli.add_commands(models)
    result = CliRunner().invoke(models, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def cached(data: DataFolder, digit: str, days: float = 0) -> str:
    """An entry that was last used so many days ago."""
    cache = CompileCache(data.root / FOLDER)
    lease = cache.lease(Key(digit * 64, "all", f"/models/{digit}.mlpackage"), compile_to)
    lease.release()
    then = time.time() - days * 86400
    os.utime(lease.path.parent / "lock", (then, then))
    return lease.path.parent.name


@pytest.mark.usefixtures("pretend", "model")
def test_compile_does_all_stages_and_keeps_them(data: DataFolder) -> None:
    rows = json.loads(run("compile", "small", "--json").stdout)
    assert [(row["stage"], row["package"], row["compute_unit"]) for row in rows] == [
        ("text_encoder", "text_encoder.mlpackage", "cpu_and_ne"),
        ("unet", "unet.mlpackage", "cpu_and_ne"),
    ]
    # Both are the same package, so that the second finds what was compiled of the first.
    assert [row["compiled_in"] is None for row in rows] == [False, True]
    assert all(row["load_seconds"] >= 0 and row["peak_bytes"] > 10_000_000 and not row["refused"] for row in rows)
    [entry] = CompileCache(data.root / FOLDER).entries()
    assert (entry.compute_unit, entry.in_use, entry.damaged) == ("cpu_and_ne", False, False)


@pytest.mark.usefixtures("pretend", "model")
def test_compile_takes_the_unit_that_was_measured_to_be_best(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(data.ledger)
    ledger.tuned("small", "split-einsum", "cpu_and_gpu", {})
    ledger.close()
    done = ahead.Done(compiled_in=1.0, load_seconds=1.0, peak_bytes=1)
    monkeypatch.setattr(ahead, "compile_ahead", lambda _job: done)
    assert {row["compute_unit"] for row in json.loads(run("compile", "small", "--json").stdout)} == {"cpu_and_gpu"}


@pytest.mark.usefixtures("pretend")
def test_compile_shows_what_it_did(data: DataFolder, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[ahead.Job] = []

    def compile_ahead(job: ahead.Job) -> ahead.Done:
        jobs.append(job)
        return ahead.Done(compiled_in=2.0, load_seconds=71.5, peak_bytes=5 * 10**6, refused=len(jobs) == 2)

    monkeypatch.setattr(ahead, "compile_ahead", compile_ahead)
    said = run("compile", "small", "--compute-unit", "CPU_ONLY", "--variant", "split-einsum")
    assert [line.split() for line in said.stdout.splitlines()[1:3]] == [
        ["text_encoder", "cpu_only", "2.0", "71.5", "5.0", "text_encoder.mlpackage"],
        ["unet", "cpu_only", "2.0", "71.5", "5.0", "unet.mlpackage"],
    ]
    assert said.stdout.splitlines()[3].startswith("unet: the Neural Engine's compiler refused it")
    assert said.stderr.splitlines() == [
        "text_encoder: compiled in 2.0 s, loaded in 71.5 s",
        "unet: compiled in 2.0 s, loaded in 71.5 s",
    ]
    assert [(job.path, job.compute_unit, job.cache) for job in jobs] == [
        (model / "text_encoder.mlpackage", "cpu_only", data.root / FOLDER),
        (model / "unet.mlpackage", "cpu_only", data.root / FOLDER),
    ]


@pytest.mark.usefixtures("pretend")
def test_that_the_neural_engine_refuses_shows(
    data: DataFolder, package: Path, info: PackageInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_FAULT", "refused")
    job = ahead.Job(path=package, info=info, compute_unit="cpu_and_ne", cache=data.root / FOLDER)
    assert ahead.compile_ahead(job).refused


@pytest.mark.usefixtures("pretend")
@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("no memory for request", OutOfMemoryError, "memory ran out"),
        ("killed", OutOfMemoryError, "was killed"),
        ("aborted", ModelLoadError, "ended with 134: libc"),
    ],
)
def test_what_happens_to_the_child_is_said(
    data: DataFolder,
    package: Path,
    info: PackageInfo,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    kind: type[Exception],
    said: str,
) -> None:
    monkeypatch.setenv("PRETEND_FAULT", fault)
    job = ahead.Job(path=package, info=info, compute_unit="all", cache=data.root / FOLDER)
    with pytest.raises(kind, match=said):
        ahead.compile_ahead(job)


@pytest.mark.skipif(sys.platform == "darwin", reason="this system has Core ML")
def test_compile_elsewhere(data: DataFolder, model: Path) -> None:
    with pytest.raises(WorkerUnavailableError, match="compiling needs macOS") as raised:
        run("compile", "small")
    assert raised.value.exit_code == 3
    assert not (data.root / FOLDER).exists()


@pytest.mark.usefixtures("pretend")
def test_compile_of_what_is_not_there(model: Path) -> None:
    with pytest.raises(BadInputError, match=r"compute_unit = 'gpu' \(from --compute-unit\)"):
        run("compile", "small", "--compute-unit", "gpu")
    with pytest.raises(BadInputError, match="nothing to compile for reference"):
        run("compile", "small", "--compute-unit", "reference")
    with pytest.raises(ModelLoadError, match="no variant original; it has split-einsum"):
        run("compile", "small", "--variant", "original")
    with pytest.raises(BadInputError, match="Did you mean 'small'"):
        run("compile", "smal")
    (model / "manifest.json").unlink()
    with pytest.raises(ModelLoadError, match="no stages that are converted to Core ML"):
        run("compile", "small")


def test_cache_list(data: DataFolder) -> None:
    assert run("cache", "list").stdout == "nothing has been compiled yet\n"
    assert json.loads(run("cache", "list", "--json").stdout) == []
    names = [cached(data, "a", days=3), cached(data, "b")]
    rows = json.loads(run("cache", "list", "--json").stdout)
    assert [row["name"] for row in rows] == names[::-1]
    assert rows[0]["source"] == "/models/b.mlpackage"
    header, first, second = run("cache", "list").stdout.splitlines()
    assert header.split()[:2] == ["unit", "system"]
    assert (first.split()[-1], second.split()[-1]) == ("b.mlpackage", "a.mlpackage")


def test_the_cache_is_seen_with_the_base_install_alone(data: DataFolder) -> None:
    name = cached(data, "a")
    listed = subprocess.run(
        [sys.executable, "-c", HIDING, "models", "cache", "list", "--json"], capture_output=True, text=True, timeout=60
    )
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [row["name"] for row in json.loads(listed.stdout)] == [name]


def test_cache_clean(data: DataFolder) -> None:
    for digit, days in (("a", 40), ("b", 20), ("c", 1)):
        cached(data, digit, days)
    assert run("cache", "clean").stdout == "nothing to remove\n"
    shown = run("cache", "clean", "--older", "30d", "--dry-run").stdout
    assert "a.mlpackage" in shown
    assert "would free 0.0 MB" in shown
    assert len(CompileCache(data.root / FOLDER).entries()) == 3
    assert [row["sha256"][0] for row in json.loads(run("cache", "clean", "--older", "30d", "--json").stdout)] == ["a"]
    assert "freed" in run("cache", "clean", "--max-size", "0").stdout
    assert CompileCache(data.root / FOLDER).entries() == []


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("2TB", 2 * 10**12), ("7B", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert cli.parse_bytes(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("12h", 43200), ("1.5d", 129600), ("4w", 2419200)])
def test_ages(text: str, seconds: float) -> None:
    assert cli.parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1GB", "1 PB", "GB", "1e9", "٣GB", "9" * 40, "inf"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadInputError, match="no size; say"):
        cli.parse_bytes(text)


@pytest.mark.parametrize("text", ["", "30", "-1d", "1y", "d", "٣d", "nan d"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(BadInputError, match="no age; say"):
        cli.parse_age(text)
