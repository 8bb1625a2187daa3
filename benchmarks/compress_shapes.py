"""What the demo model's UNet costs and loses at each number of bits, and what a mixed recipe of the same size loses.

    python -m benchmarks.compress_shapes

PSNR is that of `noise_pred` on the reference runtime, against the 16-bit package, on inputs that the recipes were
not made with.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from renderkiln.worker.convert.compress.analysis import make_plan
from renderkiln.worker.convert.compress.folder import Comparison, StageReport, compress
from renderkiln.worker.convert.compress.recipe import Recipe, of_layers
from renderkiln.worker.convert.compress.sensitivity import Measurements, measure
from renderkiln.worker.convert.compress.targets import Target
from renderkiln.worker.runtimes.mlpackage import open_package

from .report import machine

WIDTHS = (2, 4, 6, 8)
AVERAGES = (6.0, 4.0, 3.0, 2.5)
UNSEEN = Comparison(samples=4, seed=1000)


def main() -> None:
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the model is small, and the machine may be busy
    print(machine())
    with tempfile.TemporaryDirectory(prefix="renderkiln-bench-") as name:
        folder = Path(name)
        converting = [sys.executable, "-m", "renderkiln.producer", "convert", "shapes", "-o", str(folder / "converted")]
        subprocess.run([*converting, "--stages", "unet", "--no-check"], check=True, stdout=subprocess.DEVNULL)
        (package,) = (folder / "converted").glob("*.mlpackage")
        print(f"{'16 bits, as converted':<28} {open_package(package).size / 1e6:6.2f} MB")
        for nbits in reversed(WIDTHS):
            _show(f"{nbits} bits", compress(package, folder / f"{nbits}.mlpackage", nbits=nbits, comparison=UNSEEN)[0])
        began = time.perf_counter()
        measured = measure(package, WIDTHS, samples=2)
        seconds = time.perf_counter() - began
        print(f"{len(measured.layers)} layers at {len(WIDTHS)} widths measured in {seconds:.0f} s")
        for average in AVERAGES:
            recipe, predicted = _planned(measured, average)
            target = folder / f"mixed-{average}.mlpackage"
            report = compress(package, target, recipe=recipe, comparison=UNSEEN)[0]
            _show(f"mixed, {average:g} bits on average", report, f"   predicted {predicted:.1f} dB")


def _planned(measured: Measurements, average: float) -> tuple[Recipe, float]:
    plan = make_plan(measured, (*WIDTHS, 16), Target("bits", average))
    return of_layers(plan.bits), plan.psnr


def _show(what: str, report: StageReport, more: str = "") -> None:
    print(
        f"{what:<28} {report.bytes_after / 1e6:6.2f} MB   {report.worst:5.1f} dB   {report.seconds:5.1f} s{more}",
        flush=True,
    )


if __name__ == "__main__":
    main()
