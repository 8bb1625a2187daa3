"""What only a Mac can show: real compiling, real predictions, on every unit, against the reference runtime.

Nothing here is doubled. Skipped elsewhere; .github/workflows/macos.yml runs it. A virtual machine has no Neural Engine:
there the units that could use one run on what is left, and the same must hold.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.convert.check import psnr
from renderkiln.worker.convert.compress.quality import random_inputs
from renderkiln.worker.runtimes import manifest as manifests
from renderkiln.worker.runtimes.apple import system
from renderkiln.worker.runtimes.apple.cache import CompileCache
from renderkiln.worker.runtimes.apple.plan import shares_of
from renderkiln.worker.runtimes.apple.runtime import AppleRuntime
from renderkiln.worker.runtimes.apple.system import COMPUTE_UNITS, ComputeUnit
from renderkiln.worker.runtimes.manifest import Manifest, PackageInfo
from renderkiln.worker.runtimes.mlpackage import open_package
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .conftest import arrays

pytestmark = [
    pytest.mark.skipif(sys.platform != "darwin", reason="Core ML is part of macOS"),
    pytest.mark.timeout(900),
]
#: Decibels that a half-precision run has to reach of the reference's; conversion asks for as much of a package.
BAR = 35.0
STAGES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The demo model, converted."""
    out = tmp_path_factory.mktemp("shapes") / "out"
    command = [sys.executable, "-m", "renderkiln.producer", "convert", "shapes", "-o", str(out)]
    subprocess.run(command, check=True, timeout=800)
    return out, manifests.load(out, digests=True)


@pytest.fixture
def real_cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "compiled")


def test_the_system_has_a_name() -> None:
    assert system.on_macos()
    assert system.macos_version() >= (13,)
    assert system.system_build().isalnum()


@pytest.mark.parametrize("unit", COMPUTE_UNITS)
def test_every_element_type_comes_out_as_declared(
    package: Path, info: PackageInfo, real_cache: CompileCache, unit: ComputeUnit
) -> None:
    runtime = AppleRuntime.load(package, info, compute_unit=unit, cache=real_cache)
    got, want = runtime.predict(arrays()), ReferenceRuntime.load(package).predict(arrays())
    assert {name: (array.dtype, array.shape) for name, array in got.items()} == {
        name: (array.dtype, array.shape) for name, array in want.items()
    }
    np.testing.assert_array_equal(got["whole"], want["whole"])
    for name in ("half", "single"):
        assert psnr(want[name].astype(np.float32), got[name].astype(np.float32)) >= BAR


@pytest.mark.parametrize("unit", COMPUTE_UNITS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_demo_model_computes_the_same(
    shapes: tuple[Path, Manifest], real_cache: CompileCache, stage: str, unit: ComputeUnit
) -> None:
    folder, manifest = shapes
    [info] = manifest.stages[stage].packages
    runtime = AppleRuntime.load(folder / info.file, info, compute_unit=unit, cache=real_cache)
    config = json.loads((folder / "text_encoder/config.json").read_text())
    given = random_inputs(runtime.inputs, config["vocab_size"], seed=0)
    got, want = runtime.predict(given), ReferenceRuntime.load(folder / info.file).predict(given)
    assert {name: psnr(array, got[name]) >= BAR for name, array in want.items()} == dict.fromkeys(want, True)


def test_the_second_load_compiles_nothing(package: Path, info: PackageInfo, real_cache: CompileCache) -> None:
    first = AppleRuntime.load(package, info, compute_unit="cpu_only", cache=real_cache)
    assert first.compiled_in is not None
    want = first.predict(arrays())
    first.close()
    second = AppleRuntime.load(package, info, compute_unit="cpu_only", cache=real_cache)
    assert second.compiled_in is None
    for name, array in second.predict(arrays()).items():
        np.testing.assert_array_equal(array, want[name])
    [entry] = real_cache.entries()
    assert (entry.in_use, entry.damaged, entry.build) == (True, False, system.system_build())
    assert real_cache.clean(max_bytes=0) == []


def test_a_damaged_compiled_model_gives_nothing_wrong(
    package: Path, info: PackageInfo, real_cache: CompileCache
) -> None:
    AppleRuntime.load(package, info, compute_unit="cpu_only", cache=real_cache).close()
    [program] = real_cache.root.rglob("model.mil")
    program.write_bytes(b" " * program.stat().st_size)  # as long as it was
    # It is compiled anew, unless the system kept what it had made of it.
    runtime = AppleRuntime.load(package, info, compute_unit="cpu_only", cache=real_cache)
    want = ReferenceRuntime.load(package).predict(arrays())
    assert psnr(want["single"], runtime.predict(arrays())["single"]) >= BAR


def test_a_compiled_model_loads_from_where_it_is(package: Path, info: PackageInfo, real_cache: CompileCache) -> None:
    AppleRuntime.load(package, info, compute_unit="cpu_only", cache=real_cache).close()
    [compiled] = real_cache.root.rglob("*.mlmodelc")
    runtime = AppleRuntime.load(compiled, info, compute_unit="cpu_only", cache=real_cache)
    assert runtime.predict(arrays())["whole"].shape == (1, 4)


def test_a_package_that_core_ml_refuses(
    package: Path, info: PackageInfo, real_cache: CompileCache, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(package, tmp_path / "broken.mlpackage"))
    opened = open_package(broken)
    spec = opened.read_spec()
    for block in spec.mlProgram.functions["main"].block_specializations.values():
        for operation in block.operations:
            if operation.type == "linear":
                operation.type = "no_such_op"
    opened.spec_path.write_bytes(spec.SerializeToString())
    lying = info.model_copy(update={"sha256": open_package(broken).sha256()})
    with pytest.raises(ModelLoadError, match=r"broken\.mlpackage"):
        AppleRuntime.load(broken, lying, compute_unit="cpu_only", cache=real_cache)


@pytest.mark.skipif("sys.platform != 'darwin' or system.macos_version() < (14, 4)", reason="plans need macOS 14.4")
def test_shares_of_the_unet(shapes: tuple[Path, Manifest], real_cache: CompileCache) -> None:
    folder, manifest = shapes
    [info] = manifest.stages["unet"].packages
    AppleRuntime.load(folder / info.file, info, compute_unit="cpu_only", cache=real_cache).close()
    [compiled] = real_cache.root.rglob("*.mlmodelc")
    found = shares_of(compiled, "cpu_only")
    assert sum(found.devices.values()) == pytest.approx(1)
    assert found.devices.get("cpu", 0) > 0.99
    assert found.operations > 100
