"""`renderkiln convert` as a command: its table, going on after an interruption, and leaving nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.convert.conftest import plan_of
from tests.disks import small_disk, with_small_files

from renderkiln.home.models import find_model
from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.convert.run import WORK_FOLDER
from renderkiln.worker.convert.small_files import copy_small_files
from renderkiln.worker.runtimes import manifest as manifests

# Each command starts processes that import torch; a busy machine takes its time.
pytestmark = pytest.mark.timeout(900)
SMALL = 100_000
PACKAGED = {"text_encoder", "unet", "vae_decoder", "vae_encoder"}


def run(*arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "renderkiln.producer", "convert", *map(str, arguments)]
    if limit is not None:
        command = with_small_files(command, limit)
    return subprocess.run(command, capture_output=True, text=True, timeout=800)


def packages(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.mlpackage")}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The command of the documentation, run once."""
    out = tmp_path_factory.mktemp("converted") / "out"
    return out, run("shapes", "-o", out, "--attention", "split-einsum", "--nbits", 6, "--bundle-for-swift")


@pytest.fixture
def folder(converted: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the converted demo model."""
    shutil.copytree(converted[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_the_demo_model_ends_with_a_table(converted: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, said = converted
    assert (said.returncode, "Traceback" in said.stderr) == (0, False)
    header, *rows = [line.split() for line in said.stdout.splitlines()]
    assert header == ["stage", "MB", "bits", "PSNR", "dB", "seconds"]
    table = {row[0]: row[1:] for row in rows[:4]}
    assert set(table) == PACKAGED
    assert {stage: bits for stage, (_, bits, _, _) in table.items()} == {
        "text_encoder": "6",
        "unet": "6",
        "vae_decoder": "16",
        "vae_encoder": "16",
    }
    assert all(float(decibels) > 25 and float(seconds) > 0 for _, _, decibels, seconds in table.values())
    assert packages(out) == {f"Stable_Diffusion_version_shapes_{stage}.mlpackage" for stage in PACKAGED}
    assert not (out / WORK_FOLDER).exists()
    with Image.open(out / manifests.SELF_TEST) as picture:
        assert picture.size == (64, 64)
        assert np.asarray(picture).std() > 5


def test_the_folder_is_complete_in_itself(converted: tuple[Path, Any]) -> None:
    out, _ = converted
    manifest = manifests.load(out, digests=True)
    assert (manifest.model, manifest.variant, manifest.sizes) == ("shapes", "split-einsum", ((64, 64),))
    for stage in manifest.stages.values():
        assert stage.check is not None
        assert min(each.decibels for each in stage.check.results) > stage.check.bar == 35
    # What 6 bits a weight leave of a UNet that was trained: a fence against something breaking.
    assert min(each.decibels for each in manifest.stages["unet"].check.compressed) > 33  # type: ignore[union-attr]
    assert {"coremltools", "torch", "renderkiln"} <= set(manifest.versions)
    demo = find_model_folder()
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "tokenizer/vocab.json"):
        assert json.loads((out / name).read_text()) == json.loads((demo / name).read_text())


def find_model_folder() -> Path:
    from renderkiln.home.folder import DataFolder

    return find_model(DataFolder(Path("/nonexistent")), "shapes")


def test_the_folder_for_swift_has_all_that_needs_no_mac_and_says_what_does(converted: tuple[Path, Any]) -> None:
    out, said = converted
    there = {path.name for path in (out / "Resources").iterdir()}
    assert {"vocab.json", "merges.txt", "controlnet"} <= there
    for name in ("TextEncoder.mlmodelc", "Unet.mlmodelc", "VAEDecoder.mlmodelc", "VAEEncoder.mlmodelc"):
        assert (name in there) != (name in said.stdout)


def test_the_same_command_again_keeps_everything(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mlpackage")}
    said = run("shapes", "-o", folder, "--attention", "split-einsum", "--nbits", 6, "--json")
    assert said.returncode == 0
    stages = json.loads(said.stdout)["stages"]
    assert {each["stage"] for each in stages if each["kept"]} == PACKAGED
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.mlpackage")} == before


def test_only_what_changed_or_was_damaged_is_converted_again(folder: Path) -> None:
    (weights,) = (folder / "Stable_Diffusion_version_shapes_text_encoder.mlpackage").rglob("weight.bin")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    said = run("shapes", "-o", folder, "--attention", "split-einsum", "--nbits", 6, "--no-check", "--json")
    kept = {each["stage"]: each["kept"] for each in json.loads(said.stdout)["stages"]}
    assert kept == {stage: stage != "text_encoder" for stage in PACKAGED}
    manifests.load(folder, digests=True)


def test_another_model_does_not_go_into_the_same_folder(folder: Path, tiny: Path) -> None:
    said = run(tiny / "sd1", "-o", folder)
    assert (said.returncode, "holds shapes already" in said.stderr) == (2, True)
    manifests.load(folder, digests=True)


@pytest.mark.parametrize("damage", ["size", "digest", "missing", "elsewhere", "field", "json"])
def test_a_manifest_that_lies_is_not_believed(folder: Path, damage: str) -> None:
    path = folder / manifests.FILE_NAME
    values = json.loads(path.read_text())
    package = values["stages"]["unet"]["packages"][0]
    if damage == "size":
        package["size_bytes"] += 1
    elif damage == "digest":
        package["sha256"] = "0" * 64
    elif damage == "missing":
        shutil.rmtree(folder / package["file"])
    elif damage == "elsewhere":
        package["file"] = "../unet.mlpackage"
    elif damage == "field":
        values["surprise"] = 1
    path.write_text(json.dumps(values) if damage != "json" else "{")
    with pytest.raises(ModelLoadError):
        manifests.load(folder, digests=True)


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Runs a conversion until its second stage is at work, and then ends it without a warning."""
    started: list[subprocess.Popen[bytes]] = []

    def stop(*arguments: object) -> Path:
        out = tmp_path / "out"
        command = [sys.executable, "-m", "renderkiln.producer", "convert", *map(str, arguments), "-o", str(out)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        started.append(process)
        deadline = time.monotonic() + 600
        while not (_stages(out) == {"text_encoder"} and list((out / WORK_FOLDER / "stage").glob("*"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()
        return out

    yield stop
    for process in started:
        process.kill()
        process.wait()


def _stages(out: Path) -> set[str]:
    try:
        return set(manifests.read(out).stages)
    except ModelLoadError:
        return set()


def test_a_conversion_that_was_killed_leaves_no_half_and_goes_on(stopped: Callable[..., Path], tiny: Path) -> None:
    arguments = (tiny / "sd1", "--no-check", "--stages", "text_encoder,vae_decoder")
    out = stopped(*arguments)
    assert {path.name for path in out.glob("*.mlpackage")} == {"Stable_Diffusion_version_sd1_text_encoder.mlpackage"}
    manifests.load(out, digests=True)
    _until(lambda: not _processes_in(out))
    said = run(*arguments, "-o", out, "--json")
    assert said.returncode == 0
    kept = {each["stage"]: each["kept"] for each in json.loads(said.stdout)["stages"]}
    assert kept == {"text_encoder": True, "vae_decoder": False}
    assert not (out / WORK_FOLDER).exists()


def _processes_in(out: Path) -> list[int]:
    """Processes that were told to use that folder for temporary files: the stages' own."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(out / WORK_FOLDER):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_kill_leave_no_half_and_no_process(tiny: Path, tmp_path: Path, told: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "renderkiln.producer", "convert", str(tiny / "sd1"), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    _until(lambda: (out / WORK_FOLDER / "stage").is_dir())
    process.send_signal(told)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not (out / WORK_FOLDER).exists()
    assert (packages(out), _processes_in(out)) == (set(), [])


def test_one_conversion_at_a_time_writes_into_a_folder(tiny: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        said = run(tiny / "sd1", "-o", out)
    finally:
        os.close(handle)
    assert (said.returncode, "another conversion" in said.stderr) == (2, True)


def test_a_full_disk_is_said_and_leaves_no_half(tiny: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as mounted:
        out = tmp_path / "disk" / "out"
        said = run(tiny / "sd1", "-o", out, "--no-check", "--stages", "unet", limit=None if mounted else SMALL)
        assert said.returncode == 1
        assert said.stderr.startswith("renderkiln: ")
        assert "Traceback" not in said.stderr
        assert packages(out) == set()
        assert not (out / WORK_FOLDER).exists()


def test_limited_files_are_said_and_leave_no_half(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run(tiny / "sd1", "-o", out, "--no-check", "--stages", "unet", limit=SMALL)
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert packages(out) == set()


def test_a_controlnet_may_be_named_for_its_unets_sake_alone(tiny: Path, tmp_path: Path) -> None:
    source, plan, _ = plan_of(tiny / "sd1", source={"controlnets": (str(tiny / "edges"),)}, stages=("control-unet",))
    copy_small_files(source, tmp_path, tuple(stage.stage for stage in plan.stages if stage.kind == "controlnet"))
    assert not (tmp_path / "controlnet-edges").exists()
    copy_small_files(source, tmp_path, ("controlnet-edges",))
    assert (tmp_path / "controlnet-edges" / "config.json").is_file()


def test_a_small_file_that_cannot_be_put_in_place_leaves_nothing_beside_it(tiny: Path, tmp_path: Path) -> None:
    source, _, _ = plan_of(tiny / "sd1")
    (tmp_path / "model_index.json").mkdir()
    with pytest.raises(IsADirectoryError):
        copy_small_files(source, tmp_path, ())
    assert (tmp_path / "unet" / "config.json").is_file()
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out"], "which model"),
        (["shapes"], "-o"),
        (["model.ckpt", "-o", "out"], "pickle"),
        (["shapes", "-o", "out", "--nbits", "5"], "--nbits"),
        (["shapes", "-o", "out", "--stages", "une"], "Did you mean"),
        (["shapes", "-o", "out", "--sd3-version"], "Stable Diffusion 3"),
        (["shapes", "-o", "out", "--width", "68"], "multiples of 8"),
        (["shapes", "-o", "out", "--sizes", "64x64", "--width", "64"], "give one of them"),
        (["shapes", "-o", "out", "--lora", "nowhere.safetensors"], "no such file"),
        (["shapes", "-o", "out", "--recipe", "nowhere.json"], "nowhere.json: cannot be read"),
        (["shapes", "-o", "out", "--recipe", __file__], "ends in"),
        (["shapes", "-o", __file__], "is a file"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(*arguments)
    assert (said.returncode, message in said.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_apples_command_line_is_understood(tiny: Path, tmp_path: Path) -> None:
    line = f"--model-version {tiny / 'sd1'} --convert-vae-decoder --latent-h 16 --latent-w 24 -o {tmp_path / 'out'}"
    said = run(*line.split(), "--compute-unit", "CPU_AND_NE", "--min-deployment-target", "iOS17", "--json")
    assert said.returncode == 0
    manifest = manifests.load(tmp_path / "out")
    assert (set(manifest.stages), manifest.sizes) == ({"vae_decoder"}, ((48, 32),))
