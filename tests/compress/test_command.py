"""`renderkiln compress` and `renderkiln recipe`, on packages and on folders."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.compress.conftest import LAYERS, Command
from tests.disks import resize, small_disk, with_small_files

from renderkiln.worker.convert.compress.recipe_file import read_recipe
from renderkiln.worker.runtimes import manifest as manifests
from renderkiln.worker.runtimes.manifest import CheckReport, Manifest, PackageInfo, Psnr, StageInfo
from renderkiln.worker.runtimes.mlpackage import open_package
from renderkiln.worker.runtimes.reference import ReferenceRuntime

ENCODER, UNET, DECODER = (
    f"Stable_Diffusion_version_a_model_{each}.mlpackage" for each in ("text_encoder", "unet", "vae_decoder")
)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A folder as Apple's converter writes it; each stage is our small model."""
    path = tmp_path / "converted"
    for name in (ENCODER, UNET, DECODER):
        shutil.copytree(made / "small.mlpackage", path / name)
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "vocab.json").write_text("{}")
    (path / "Resources").mkdir()
    return path


def add_manifest(folder: Path) -> Manifest:
    stages = {}
    for stage, file in (("text_encoder", ENCODER), ("unet", UNET), ("vae_decoder", DECODER)):
        package, runtime = open_package(folder / file), ReferenceRuntime.load(folder / file)
        info = PackageInfo(
            file=file,
            size_bytes=package.size,
            sha256=package.sha256(),
            inputs=tuple(runtime.inputs.values()),
            outputs=tuple(runtime.outputs.values()),
        )
        stages[stage] = StageInfo(
            stage=stage,
            packages=(info,),
            bits=16,
            settings_digest="0" * 64,
            seconds=1,
            check=CheckReport(bar=35, results=(Psnr(inputs="real", output="states", decibels=70),)),
        )
    manifest = Manifest(
        model="a/model",
        pipeline="StableDiffusionPipeline",
        family="sd",
        variant="original",
        sizes=((512, 512),),
        stages=stages,
        versions={},
    )
    manifests.save(manifest, folder)
    return manifest


def test_a_package_is_compressed_and_the_table_says_how(small: Path, tmp_path: Path, command: Command) -> None:
    code, out, err = command("compress", small, "-o", tmp_path / "six.mlpackage", "--nbits", 6)
    assert (code, err) == (0, "")
    heading, row, path = out.splitlines()[0].split(), out.splitlines()[1].split(), out.splitlines()[-1]
    assert heading == ["stage", "MB", "before", "MB", "after", "bits", "PSNR", "dB", "seconds"]
    assert (row[0], row[3]) == ("small", "6")
    assert 35 < float(row[4]) < 60
    assert path == str(tmp_path / "six.mlpackage")


def test_json_has_all_that_the_table_has_and_each_layer(small: Path, tmp_path: Path, command: Command) -> None:
    code, out, _ = command("compress", small, "-o", tmp_path / "six.mlpackage", "--nbits", 6, "--json")
    (stage,) = json.loads(out)["stages"]
    assert code == 0
    assert stage["layers"] == dict.fromkeys(LAYERS, 6)
    assert stage["bytes_after"] == open_package(tmp_path / "six.mlpackage").size < stage["bytes_before"]
    assert stage["psnr_decibels"] == min(stage["psnr_by_output"].values())
    assert set(stage["psnr_by_output"]) == {"states", "few"}


def test_a_recipe_can_be_combined_with_a_width_for_the_rest(small: Path, tmp_path: Path, command: Command) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("layers:\n  wide_*: 8\n")
    arguments = ["-o", tmp_path / "out.mlpackage", "--recipe", recipe, "--nbits", 2, "--no-check", "--json"]
    code, out, _ = command("compress", small, *arguments)
    (stage,) = json.loads(out)["stages"]
    assert code == 0
    assert stage["layers"] == dict.fromkeys(LAYERS, 2) | {"wide_weight_to_fp16": 8}
    assert (stage["psnr_decibels"], stage["unchecked"]) == (None, "not asked for")


def test_of_a_folder_what_apple_compresses_is_compressed_and_the_rest_is_copied(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    target = tmp_path / "smaller"
    code, out, _ = command("compress", folder, "-o", target, "--nbits", 4, "--json")
    assert code == 0
    assert [stage["stage"] for stage in json.loads(out)["stages"]] == ["text_encoder", "unet"]
    for name in (ENCODER, UNET):
        assert open_package(target / name).size < open_package(folder / name).size
    assert open_package(target / DECODER).sha256() == open_package(folder / DECODER).sha256()
    assert (target / "tokenizer" / "vocab.json").read_text() == "{}"
    # What was compiled from the packages as they were would not be what the folder says that it holds.
    assert not (target / "Resources").exists()


def test_a_folders_manifest_is_brought_up_to_date(folder: Path, tmp_path: Path, command: Command) -> None:
    before = add_manifest(folder)
    target = tmp_path / "smaller"
    assert command("compress", folder, "-o", target, "--nbits", 4)[0] == 0
    after = manifests.load(target, digests=True)
    unet = after.stages["unet"]
    assert unet.bits == 4
    assert unet.size_bytes < before.stages["unet"].size_bytes
    assert unet.settings_digest != before.stages["unet"].settings_digest
    assert unet.check is not None
    assert unet.check.results == before.stages["unet"].check.results  # type: ignore[union-attr]
    assert 20 < unet.check.worst.decibels < 45
    assert after.stages["vae_decoder"] == before.stages["vae_decoder"]
    assert manifests.load(folder, digests=True) == before


def test_a_failure_in_a_folder_leaves_nothing(folder: Path, tmp_path: Path, command: Command) -> None:
    (weights,) = open_package(folder / UNET).weight_files
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    code, _, err = command("compress", folder, "-o", tmp_path / "to" / "smaller", "--nbits", 4)
    assert code == 1
    assert "truncated" in err
    assert not (tmp_path / "to").exists() or list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("whole", [False, True])
def test_a_full_disk_is_said_and_leaves_nothing(folder: Path, tmp_path: Path, command: Command, whole: bool) -> None:
    """Of a folder at first the copies do not fit, then not the smaller packages; of a package not its parts."""
    before = add_manifest(folder)
    source = folder if whole else folder / UNET
    disk = tmp_path / "disk"
    with small_disk(disk, "1m") as mounted:
        target = disk / ("smaller" if whole else "smaller.mlpackage")
        how = ["compress", source, "-o", target, "--nbits", 6, "--no-check"]
        for size in ("8k", "64k", "128k", "192k") if whole else ("8k", "24k", "64k", "80k"):
            if mounted:
                resize(disk, size)
                code, out, err = command(*how)
            else:
                limited = with_small_files([sys.executable, "-m", "renderkiln.producer", *map(str, how)], 8000)
                said = subprocess.run(limited, capture_output=True, text=True, timeout=150)
                code, out, err = said.returncode, said.stdout, said.stderr
            assert (code, out) == (1, ""), size
            # Where only the length of files is limited, coremltools does not say why it could not write.
            sentence = r"\S+ cannot be (copied|written): .*(full|No space)" if mounted else ".+"
            assert re.fullmatch(f"renderkiln: {sentence}.*\n", err), size
            assert list(disk.iterdir()) == [], size
    assert manifests.load(folder, digests=True) == before


def test_a_recipe_is_made_for_a_size_and_used(small: Path, tmp_path: Path, command: Command) -> None:
    recipe, kept, target = tmp_path / "recipe.json", tmp_path / "kept.json", tmp_path / "mixed.mlpackage"
    how = ["--nbits", "2,4,8", "--measurements", kept]
    code, out, err = command("recipe", small, "-o", recipe, "--target-size", "4.2bits", *how)
    assert (code, err) == (0, "")
    assert all(name in out for name in LAYERS)
    bits = read_recipe(recipe).layers
    assert set(bits) == set(LAYERS)
    assert sum(LAYERS[name] * width for name, width in bits.items()) <= 4.2 * sum(LAYERS.values())
    # Another target from the same measurements, for scripts.
    code, out, _ = command("recipe", small, "-o", tmp_path / "b.yaml", "--target-psnr", 30, *how, "--json")
    said = json.loads(out)
    assert code == 0
    assert min(said["predicted_psnr_decibels"], said["measured_psnr_decibels"]) >= 30
    code, out, _ = command("compress", small, "-o", target, "--recipe", tmp_path / "b.yaml", "--json")
    (stage,) = json.loads(out)["stages"]
    assert stage["psnr_decibels"] == pytest.approx(said["measured_psnr_decibels"], abs=0.01)
    assert stage["bytes_after"] <= said["bytes_at_most"]


def test_bad_input_ends_with_2_and_leaves_nothing(small: Path, tmp_path: Path, command: Command) -> None:
    recipe, out = tmp_path / "recipe.json", tmp_path / "out.mlpackage"
    recipe.write_text('{"layers": {"wide_wieght_to_fp16": 4}}')
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for arguments, sentence in (
        (["compress"], "what shall be compressed?"),
        (["compress", small], "where to?"),
        (["compress", small, "-o", out], "how small?"),
        (["compress", small, "-o", out, "--nbits", 5], "1, 2, 3, 4, 6 or 8"),
        (["compress", small, "-o", out, "--recipe", recipe], "Did you mean 'wide_weight_to_fp16'"),
        (["compress", small, "-o", out, "--recipe", tmp_path / "none.json"], "No such file"),
        (["compress", tmp_path / "none", "-o", out, "--nbits", 4], "does not exist"),
        (["compress", tmp_path / "empty", "-o", tmp_path / "to", "--nbits", 4], "holds no manifest.json"),
        (["compress", small.parent, "-o", small.parent, "--nbits", 4], "never overwritten"),
        (["compress", small.parent, "-o", out, "--nbits", 4], "should name a folder"),
        (["recipe", small, "-o", out], "--target-size or --target-psnr"),
        (["recipe", small, "-o", tmp_path / "r.txt", "--target-psnr", 30], ".json, .yaml or .yml"),
        (["recipe", small, "-o", recipe, "--target-psnr", 30], "exists already"),
        (["recipe", small, "-o", tmp_path / "r.json", "--target-size", "5TB"], "is no size"),
        (["recipe", small, "-o", tmp_path / "r.json", "--target-psnr", 30, "--nbits", "5"], "number of bits"),
        (["recipe", small.parent, "-o", tmp_path / "r.json", "--target-psnr", 30], "is a folder"),
    ):
        code, said, err = command(*arguments)
        assert (code, said) == (2, ""), arguments
        assert sentence in err, arguments
        assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_help_has_an_example_each(command: Command) -> None:
    for name in ("compress", "recipe"):
        code, out, _ = command(name, "--help")
        assert code == 0
        assert f"Example: renderkiln {name}" in out
