"""The UNet of `shapes` in every form: each attention × batch × whole or cut × bits, 72 in all.

    python -m benchmarks.conversion_matrix [--jobs 2]

Each attention and batch is converted once, as `renderkiln convert` does it in a stage's process; from that package the
others are made by the same steps as there: palettes, then the cut, then the check. What is printed is the PSNR in
decibels of what was written, on the reference runtime against torch, the worst of two random inputs and a real one. A
16-bit package below 35 dB is printed as an error, and the benchmark then ends with 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from .report import machine

ATTENTIONS = ("original", "split-einsum", "split-einsum-v2")
BITS = (16, 8, 6, 4, 2, 1)
Rows = dict[str, list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="conversions at once, one thread each")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(machine())
    print("| attention | batch | packages |" + "".join(f" {bits} bits |" for bits in BITS))
    print("|---" * (3 + len(BITS)) + "|", flush=True)
    began, failed = time.perf_counter(), 0
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {way: pool.submit(convert, *way) for way in product(ATTENTIONS, (False, True))}
        for (attention, batch_one), rows in waiting.items():
            for packages, cells in rows.result().items():
                failed += "failed" in cells
                print(f"| {attention} | {1 if batch_one else 2} | {packages} | {' | '.join(cells)} |", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    sys.exit(1 if failed else 0)


def convert(attention: str, batch_one: bool) -> Rows:
    """For one package and for two chunks, the worst PSNR at each number of bits, or `failed`."""
    import torch

    from renderkiln.home.folder import DataFolder
    from renderkiln.schema.errors import ConversionCheckError
    from renderkiln.worker.convert.backends.coreml import bisect
    from renderkiln.worker.convert.check import compare, hold_to_bar, reference_outputs
    from renderkiln.worker.convert.compress.palettize import palettize
    from renderkiln.worker.convert.inputs import make_inputs
    from renderkiln.worker.convert.jobs import StageJob
    from renderkiln.worker.convert.loading import load_component
    from renderkiln.worker.convert.options import make_options
    from renderkiln.worker.convert.plan import make_plan
    from renderkiln.worker.convert.source import find_source, read_facts
    from renderkiln.worker.convert.stage_work import convert_stage
    from renderkiln.worker.convert.stages import make_stage
    from renderkiln.worker.runtimes.chain import Chain
    from renderkiln.worker.runtimes.reference import ReferenceRuntime

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    options = make_options(attention=attention, unet_batch_one=batch_one, stages=("unet",))
    rows: Rows = {"one": [], "two chunks": []}
    with tempfile.TemporaryDirectory(prefix="renderkiln-bench-") as name:
        folder = Path(name)
        source = find_source("shapes", DataFolder(folder))
        (plan,) = make_plan(read_facts(source, options), options, {}).stages
        job = StageJob(plan=plan, source=source, family="sd", folder=folder)
        (made,) = convert_stage(job, lambda *_: None).packages
        inputs = make_inputs(plan, source, "sd", (), job.random_inputs)
        stock = make_stage(plan, load_component(source, "unet"), family="sd", channels_first=False)
        expected = reference_outputs(plan, stock, inputs, lambda *_: None)

        def measure(bits: int, *packages: Path) -> str:
            stage = Chain([ReferenceRuntime.load(each) for each in packages])
            results = compare(plan, stage, inputs, expected, lambda *_: None)
            try:
                if bits == 16:
                    hold_to_bar(plan.stage, results)
            except ConversionCheckError as error:
                print(error, file=sys.stderr, flush=True)
                return "failed"
            return f"{min(each.decibels for each in results):.1f}"

        for bits in BITS:
            package = folder / made.file if bits == 16 else folder / f"{bits}.mlpackage"
            if bits != 16:
                palettize(folder / made.file, package, nbits=bits)
            chunks = (folder / f"{bits}-1.mlpackage", folder / f"{bits}-2.mlpackage")
            bisect(package, chunks, plan.stage)
            rows["one"].append(measure(bits, package))
            rows["two chunks"].append(measure(bits, *chunks))
    return rows


if __name__ == "__main__":
    main()
