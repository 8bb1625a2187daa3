"""Which engine renders a model here, and why: by what the machine and the model have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.models.choosing import Form, System, Wishes, choose
from renderkiln.worker.models.layout import COREAI, COREML_VARIANTS
from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.base import TensorInfo
from renderkiln.worker.runtimes.coreai.system import why_no_wheel
from renderkiln.worker.runtimes.manifest import Manifest, PackageInfo, StageInfo

NOT_HERE = "is not installed: pip install 'renderkiln[worker,coreai]'"
LINUX = System(is_mac=False, no_coreai=None, coreai_on_all_units=False)
MAC_15 = System(is_mac=True, no_coreai="needs macOS 26 or later", coreai_on_all_units=False)
MAC_26 = System(is_mac=True, no_coreai=None, coreai_on_all_units=False)
MAC_27 = System(is_mac=True, no_coreai=None, coreai_on_all_units=True)
MAC_27_WITHOUT = System(is_mac=True, no_coreai=NOT_HERE, coreai_on_all_units=True)


def model(folder: Path, *variants: str, weights: bool) -> Path:
    """A folder that has these variants, and weights for torch or not; nothing of it can be loaded."""
    tensor = TensorInfo(name="x", dtype="float32", shapes=((1,),))
    for variant in variants:
        suffix = "aimodel" if variant == COREAI else "mlpackage"
        info = PackageInfo(file=f"unet.{suffix}", size_bytes=1, sha256="0" * 64, inputs=(tensor,), outputs=(tensor,))
        below = folder / variant
        below.mkdir(parents=True)
        stages = {"unet": StageInfo(stage="unet", packages=(info,))}
        said = {"model": "m", "pipeline": "P", "family": "sd", "variant": variant, "sizes": ((64, 64),)}
        manifest.save(Manifest(**said, stages=stages), below)  # type: ignore[arg-type]
    (folder / "unet").mkdir(parents=True)
    if weights:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    return folder


ALL = ("original", "split-einsum", COREAI)


@pytest.mark.parametrize(
    ("system", "variants", "weights", "engine", "why"),
    [
        (MAC_27, ALL, True, "coreai", "runs it on all units"),
        (MAC_27, (COREAI,), False, "coreai", "runs it on all units"),
        (MAC_27, ("original",), True, "coreml", "converted to it"),
        (MAC_27, (), True, "torch", "not converted"),
        (MAC_27_WITHOUT, ALL, True, "coreml", "converted to it"),
        (MAC_27_WITHOUT, (COREAI,), True, "torch", "has weights"),
        (MAC_26, ALL, True, "coreml", "converted to it"),
        (MAC_26, (COREAI,), True, "torch", "interpreters"),
        (MAC_26, (COREAI,), False, "coreai", "nothing else"),
        (MAC_15, ALL, False, "coreml", "converted to it"),
        (LINUX, ALL, True, "torch", "interpreters"),
        (LINUX, ALL, False, "coreml", "no weights for torch"),
        (LINUX, (COREAI,), False, "coreai", "nothing else"),
        (LINUX, (), True, "torch", "not converted"),
    ],
)
def test_what_auto_means(
    tmp_path: Path, system: System, variants: tuple[str, ...], weights: bool, engine: str, why: str
) -> None:
    choice = choose(model(tmp_path, *variants, weights=weights), Wishes(), system=system)
    assert (choice.form.engine if choice.form else "torch") == engine
    assert why in choice.why


def test_what_was_measured_goes_before_the_rule_and_wishes_before_that(tmp_path: Path) -> None:
    folder = model(tmp_path, *ALL, weights=True)
    measured = choose(folder, Wishes(), ("split-einsum", "cpu_and_ne"), MAC_27)
    assert measured.form == Form("split-einsum", folder / "split-einsum", "cpu_and_ne", "coreml")
    assert "measured" in measured.why
    coreai = choose(folder, Wishes(), (COREAI, "cpu_and_ne"), MAC_27).form
    assert coreai == Form(COREAI, folder / COREAI, "cpu_and_ne", "coreai")
    wished = choose(folder, Wishes(engine="coreai"), ("split-einsum", "cpu_and_ne"), MAC_27).form
    assert wished == Form(COREAI, folder / COREAI, "cpu_and_gpu", "coreai")
    assert choose(folder, Wishes(engine="torch"), (COREAI, "cpu_and_ne"), MAC_27).form is None
    named = choose(folder, Wishes(variant="original"), None, MAC_27).form
    assert named is not None
    assert (named.engine, named.variant) == ("coreml", "original")


def test_before_macos_27_there_is_the_interpreter_alone(tmp_path: Path) -> None:
    folder = model(tmp_path, COREAI, weights=False)
    for system in (MAC_26, LINUX):
        form = choose(folder, Wishes(engine="coreai"), (COREAI, "cpu_and_ne"), system).form
        assert form is not None
        assert form.unit == "reference"


@pytest.mark.parametrize(
    ("variants", "wishes", "system", "message"),
    [
        (("original",), Wishes(engine="coreai"), LINUX, "no stages that are converted to Core AI.*--format coreai"),
        ((COREAI,), Wishes(engine="coreml"), LINUX, "no stages that are converted to Core ML"),
        ((COREAI,), Wishes(engine="coreai"), MAC_15, "is converted to Core AI, which needs macOS 26"),
        ((COREAI,), Wishes(), MAC_27_WITHOUT, r"is converted to Core AI, which is not installed: pip install"),
        (("original", COREAI), Wishes(engine="coreml", variant="split-einsum"), MAC_27, "it has original$"),
    ],
)
def test_what_cannot_be_chosen_says_what_to_do(
    tmp_path: Path, variants: tuple[str, ...], wishes: Wishes, system: System, message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        choose(model(tmp_path, *variants, weights=False), wishes, system=system)


_SYSTEMS = st.builds(System, st.booleans(), st.sampled_from([None, NOT_HERE]), st.booleans())


@given(
    variants=st.sets(st.sampled_from([*COREML_VARIANTS, COREAI])),
    weights=st.booleans(),
    system=_SYSTEMS,
    tuned=st.none() | st.tuples(st.sampled_from([*COREML_VARIANTS, COREAI]), st.just("cpu_and_gpu")),
)
def test_auto_finds_what_there_is(
    tmp_path_factory: Any, variants: set[str], weights: bool, system: System, tuned: tuple[str, str] | None
) -> None:
    folder = model(tmp_path_factory.mktemp("model"), *sorted(variants), weights=weights)
    try:
        choice = choose(folder, Wishes(), tuned, system)
    except ModelLoadError:
        assert variants == {COREAI}  # and nothing here can run it
        assert not weights
        assert system.no_coreai is not None
        return
    if choice.form is None:
        assert weights or not variants
    else:
        assert choice.form.variant in variants
        assert (choice.form.engine == "coreai") == (choice.form.variant == COREAI)
        assert not (choice.form.engine == "coreai" and system.no_coreai)
    assert choice.why.startswith("as ")


@pytest.mark.parametrize(
    ("python", "system", "machine", "macos", "says"),
    [
        ((3, 10), "Linux", "x86_64", (), "needs Python 3.11 or later, and this is 3.10"),
        ((3, 12), "Darwin", "arm64", (15, 6), "needs macOS 26 or later on Apple silicon, and this is macOS 15.6"),
        ((3, 12), "Darwin", "x86_64", (26, 0), "on Apple silicon"),
        ((3, 12), "Linux", "aarch64", (), "Linux on aarch64"),
        ((3, 12), "Darwin", "arm64", (26, 1), None),
        ((3, 12), "Linux", "x86_64", (), None),
    ],
)
def test_where_core_ai_does_not_exist_and_what_it_needs(
    python: tuple[int, int], system: str, machine: str, macos: tuple[int, ...], says: str | None
) -> None:
    found = why_no_wheel(python, system, machine, macos)
    assert found is None if says is None else says in str(found)


@pytest.mark.parametrize(
    ("python", "system", "machine", "release", "is_there"),
    [
        ("3.10", "darwin", "arm64", "25.1.0", False),
        ("3.11", "darwin", "arm64", "25.1.0", True),
        ("3.13", "darwin", "arm64", "26.0.0", True),
        ("3.12", "darwin", "arm64", "24.6.0", False),
        ("3.12", "darwin", "arm64", "9.8.0", False),
        ("3.12", "darwin", "x86_64", "25.1.0", False),
        ("3.12", "linux", "x86_64", "6.1.0-amd64", True),
        ("3.12", "linux", "aarch64", "6.1.0", False),
        ("3.10", "linux", "x86_64", "6.1.0", False),
    ],
)
def test_the_extra_is_empty_where_there_are_no_wheels(
    python: str, system: str, machine: str, release: str, is_there: bool
) -> None:
    from importlib.metadata import requires

    wanted = [Requirement(line) for line in requires("renderkiln") or ()]
    environment = {
        "python_version": python,
        "sys_platform": system,
        "platform_machine": machine,
        "platform_release": release,
        "extra": "coreai",
    }
    ours = [each for each in wanted if each.marker and "extra" in str(each.marker)]
    found = {each.name for each in ours if each.marker and each.marker.evaluate(environment)}
    assert found == ({"coreai-core", "coreai-opt", "coreai-torch"} if is_there else set())
