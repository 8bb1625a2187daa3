"""Opening packages, and what is said of those that are damaged or mean harm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.runtimes.mlpackage import open_package
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .programs import mb, save


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    bias = np.zeros(64, np.float16)
    folder = tmp_path_factory.mktemp("package")
    return save(folder, lambda x: mb.linear(x=x, weight=weight, bias=bias), {"x": ((1, 64), "float16")})


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(original, tmp_path / "model.mlpackage"))


def weights_of(package: Path) -> Path:
    [path] = package.rglob("weight.bin")
    return path


def test_what_a_package_holds(package: Path) -> None:
    opened = open_package(package)
    assert opened.spec_path.name == "model.mlmodel"
    assert [path.name for path in opened.weight_files] == ["weight.bin"]
    assert opened.size == opened.spec_path.stat().st_size + weights_of(package).stat().st_size
    assert opened.read_spec().WhichOneof("Type") == "mlProgram"


def test_the_digest_is_of_what_the_items_hold(original: Path, package: Path) -> None:
    before = open_package(original).sha256()
    manifest = json.loads((package / "Manifest.json").read_text())
    (package / "Manifest.json").write_text(json.dumps(manifest))
    assert open_package(package).sha256() == before
    data = bytearray(weights_of(package).read_bytes())
    data[-1] ^= 1
    weights_of(package).write_bytes(data)
    assert open_package(package).sha256() != before


def _no_folder(package: Path) -> None:
    shutil.rmtree(package)


def _a_file(package: Path) -> None:
    shutil.rmtree(package)
    package.write_bytes(b"x")


def _no_manifest(package: Path) -> None:
    (package / "Manifest.json").unlink()


def _manifest(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        file = package / "Manifest.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return damage


def _with_path(which: str, path: str) -> Callable[[Any], Any]:
    def change(manifest: Any) -> Any:
        for entry in manifest["itemInfoEntries"].values():
            if entry["name"] == which:
                entry["path"] = path
        return manifest

    return change


def _text(text: str) -> Callable[[Path], None]:
    return lambda package: (package / "Manifest.json").write_text(text) and None


def _spec(content: bytes | None) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        [path] = package.rglob("model.mlmodel")
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return damage


def _weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda package: weights_of(package).write_bytes(change(weights_of(package).read_bytes())) and None


def _linked_weights(package: Path) -> None:
    outside = package.parent / "outside.bin"
    shutil.move(weights_of(package), outside)
    (package / "Data/com.apple.CoreML/weights/weight.bin").symlink_to(outside)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (_no_folder, "does not exist"),
    "a file": (_a_file, "is a file, not a package folder"),
    "no manifest": (_no_manifest, "no Manifest.json"),
    "a manifest that is no JSON": (_text("{"), "cannot be read"),
    "a manifest without items": (_text("{}"), "does not name the package's items"),
    "a manifest that is a list": (_text("[]"), "holds no object"),
    "a manifest of deep lists": (_text("[" * 100_000), "cannot be read"),
    "a spec outside": (_manifest(_with_path("model.mlmodel", "../../x")), "leads outside"),
    "an absolute spec": (_manifest(_with_path("model.mlmodel", "/etc/hostname")), "leads outside"),
    "weights outside": (_manifest(_with_path("weights", "..")), "leads outside"),
    "weights that link outside": (_linked_weights, "link that leads outside"),
    "no spec": (_spec(None), "missing"),
    "an empty spec": (_spec(b""), "holds no model"),
    "a damaged spec": (_spec(b"\xff" * 50), "not a Core ML spec"),
    "no weights": (lambda package: weights_of(package).unlink(), "missing"),
    "empty weights": (_weights(lambda data: b""), "truncated"),
    "weights cut in a blob": (_weights(lambda data: data[:5000]), "truncated"),
    "weights cut in a record": (_weights(lambda data: data[:100]), "truncated"),
    "weights by one byte too short": (_weights(lambda data: data[: 64 + 64 + 2 * 64 * 64 - 1]), "truncated"),
    "no sentinel": (_weights(lambda data: data[:64] + b"\0\0\0\0" + data[68:]), "no blob begins"),
    "another version": (_weights(lambda data: data[:4] + b"\7" + data[5:]), "version 2"),
    "another size": (_weights(lambda data: data[:72] + b"\4" + data[73:]), "bytes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_packages(name: str, package: Path) -> None:
    damage, message = DAMAGES[name]
    damage(package)
    with pytest.raises(ModelLoadError, match=message):
        ReferenceRuntime.load(package)


@pytest.mark.parametrize("name", ["weights/weight.bin", "@model_path/../weight.bin", "@model_path//etc/hostname"])
def test_weights_that_the_spec_names_outside(name: str, package: Path) -> None:
    spec = open_package(package).read_spec()
    function = spec.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        for value in operation.attributes.values():
            if value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.fileName = name
    open_package(package).spec_path.write_bytes(spec.SerializeToString())
    with pytest.raises(ModelLoadError, match=r"not below|leads outside"):
        ReferenceRuntime.load(package)
