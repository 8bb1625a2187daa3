"""Every attention, batch, width and cut with a tiny UNet, though not each with each.

That takes minutes: `python -m benchmarks.conversion_matrix` does it with the demo model's, and its table is in
benchmarks/RESULTS.md. All these UNets hold the same weights in other forms, so that here widths and batches take turns.
What the demo model's UNet keeps when it is compressed, test_command.py has a look at.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from renderkiln.worker.convert.backends.coreml import bisect
from renderkiln.worker.convert.check import BAR, Outputs, compare, hold_to_bar, reference_outputs
from renderkiln.worker.convert.compress.palettize import palettize
from renderkiln.worker.convert.inputs import Inputs, make_inputs
from renderkiln.worker.convert.loading import load_component
from renderkiln.worker.convert.options import ATTENTIONS, BITS
from renderkiln.worker.convert.plan import StagePlan
from renderkiln.worker.convert.stages import make_stage
from renderkiln.worker.runtimes.chain import Chain
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .conftest import convert_here, plan_of

# Three conversions, eight cuts: a busy machine takes its time.
pytestmark = pytest.mark.timeout(900)
#: For each width, what the tiny UNet keeps at least, in decibels: a fence against something breaking.
KEEPS = {8: 46.0, 6: 33.0, 4: 23.0, 2: 11.0, 1: 7.0}
#: Each attention, each batch, each width; `python -m benchmarks.conversion_matrix` has all of them with all.
CASES: list[tuple[str, bool, tuple[int, ...]]] = [
    ("original", False, (8, 1)),
    ("split-einsum", True, (6,)),
    ("split-einsum-v2", False, (4, 2)),
]


class Unet:
    """One conversion of a model's UNet to 16 bits, with the inputs of its check and what torch makes of them."""

    def __init__(self, folder: Path, model: Path, attention: str, batch_one: bool) -> None:
        options: dict[str, Any] = {"attention": attention, "unet_batch_one": batch_one, "stages": ("unet",)}
        self.folder = folder
        self.converted = convert_here(folder, model, "unet", **options)
        self.plan: StagePlan = self.converted.plan
        source, _, _ = plan_of(model, **options)
        self.inputs: dict[str, Inputs] = make_inputs(self.plan, source, "sd", (), 1)
        stock = make_stage(self.plan, load_component(source, "unet"), family="sd", channels_first=False)
        self.expected: dict[str, Outputs] = reference_outputs(self.plan, stock, self.inputs, lambda *_: None)

    def measure(self, *packages: Path) -> float:
        stage = Chain([ReferenceRuntime.load(each) for each in packages])
        results = compare(self.plan, stage, self.inputs, self.expected, lambda *_: None)
        return min(each.decibels for each in results)

    def cut(self, package: Path) -> tuple[Path, Path]:
        chunks = (self.folder / f"{package.stem}-1.mlpackage", self.folder / f"{package.stem}-2.mlpackage")
        bisect(package, chunks, "unet")
        return chunks


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def unet(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Unet, tuple[int, ...]]]:
    attention, batch_one, widths = request.param
    folder = tmp_path_factory.mktemp("unet")
    yield Unet(folder, tiny / "sd1", attention, batch_one), widths
    shutil.rmtree(folder)


def test_a_unet_whole_cut_compressed_and_both(unet: tuple[Unet, tuple[int, ...]]) -> None:
    made, widths = unet
    (package,) = made.converted.packages
    assert made.converted.worst > BAR
    whole = made.measure(package)
    chunks = made.cut(package)
    assert made.measure(*chunks) == pytest.approx(whole, abs=1.0)
    sizes = [sum(file.stat().st_size for file in chunk.rglob("*") if file.is_file()) for chunk in chunks]
    assert max(sizes) < 0.65 * sum(sizes)
    for nbits in widths:
        small = made.folder / f"bits-{nbits}.mlpackage"
        palettize(package, small, nbits=nbits)
        compressed = made.measure(small)
        assert compressed > KEEPS[nbits]
        assert made.measure(*made.cut(small)) == pytest.approx(compressed, abs=0.5)
    hold_to_bar("unet", made.converted.done.check.results)  # type: ignore[union-attr]


def test_every_width_has_its_turn() -> None:
    assert {nbits for _, _, widths in CASES for nbits in widths} == set(BITS)
    assert {attention for attention, _, _ in CASES} == set(ATTENTIONS)
