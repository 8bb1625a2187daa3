"""What just-in-time loading saves, and what it costs, with the geometry of Stable Diffusion 1.5.

    python -m benchmarks.memory_sd15 [--engine coreml] [--turn 5] [--json FILE]

The model has random weights, in half precision on disk, made on first use in `bench-data/` (2.7 GB), and its safety
checker is on. Its pictures are noise, but finite ones that no check refuses. Contenders, each in a process of its own:

- resident: every stage stays, once loaded;
- jit: the stage at work alone is loaded; the prompts of the 48 jobs that wait are encoded with the first, as the
  supervisor has it;
- swift: `reduceMemory` of Apple's Swift package: jit without that look ahead, without a cache of embeddings, and with
  everything dropped after every image;
- auto: what fits a budget 300 MB below the peak of the resident contender's warm-up, with the look ahead.

They live side by side and take turns of some prompts (`--turn`), in an order that is turned round each time, so that a
slow time of the machine hits all; one works at a time. Within a turn a contender works as a worker does, one prompt
after another. With turns of one, the memory that jit dropped may have gone back to a virtual machine's host when its
turn comes again, and loading into it takes longer. Each renders one picture beforehand, which counts for its peak and
not for its time. What is dropped comes back from the file cache: from a disk it would take longer. Processor time is
told, too. With `--engine coreml` the same model is converted first, at the one size (some minutes), and runs on the
reference runtime, which holds in float32 what a package has in half precision.

Bounds: jit's peak at most 0.72 of resident's, and at most 1.10 of what its largest stage needs (the empty process, the
stage's weights, its working set); jit takes at most 1.05 of resident's time, and auto at most 1.03. Peaks are of the
whole life, loading included. All contenders together take 9 GB of memory, and 18 GB with `--engine coreml`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .contenders import WARM_UP, Arena, Contender, Process, say_check
from .convert_sd15 import DATA, MODEL, STAGES, make_model
from .report import machine, ratio, spread

POLICIES = {"resident": "resident", "jit": "jit", "swift": "jit", "auto": "auto"}
LOOK_AHEAD = 48
BELOW = 300_000_000
PEAK, OVER_STAGE, JIT_TIME, AUTO_TIME = 0.72, 1.10, 1.05, 1.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="a diffusers folder; made unless another is given")
    parser.add_argument("--engine", choices=("torch", "coreml"), default="torch")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--turn", type=int, default=5, help="how many prompts in a row are one contender's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    parser.add_argument("--dtype", default="bfloat16", help="of the torch engine")
    parser.add_argument("--contenders", default=",".join(POLICIES), help="some of them; auto needs resident")
    parser.add_argument("--json", type=Path, help="a file for the raw numbers")
    args = parser.parse_args()
    names = args.contenders.split(",")
    if not set(names) <= set(POLICIES) or ("auto" in names and "resident" not in names):
        parser.error(f"--contenders: some of {', '.join(POLICIES)}; auto needs resident")
    if args.model == MODEL:
        make_model()
    model = args.model if args.engine == "torch" else _converted(args.model, args.size)
    names = [name for name in POLICIES if name in names]
    common = {each: getattr(args, each) for each in ("engine", "dtype", "prompts", "steps", "size")}
    with Arena() as arena:
        for name in names:
            contender = Contender(
                name,
                str(model),
                policy=POLICIES[name],
                look_ahead=LOOK_AHEAD if name in ("jit", "auto") else 0,
                keeps=name != "swift",
                **common,
            )
            if name == "auto":
                budget = arena.processes["resident"].peak_bytes - BELOW
                contender = dataclasses.replace(contender, budget_bytes=budget)
            process = arena.start(contender)
            first = process.render(WARM_UP)
            print(f"  {name}: warm after {first['seconds']:.1f} s, {process.peak_bytes / 1e9:.2f} GB", flush=True)
        for number, start in enumerate(range(0, args.prompts, args.turn)):
            for name in names if number % 2 == 0 else reversed(names):
                for prompt in range(start, min(start + args.turn, args.prompts)):
                    answer = arena.processes[name].render(prompt)
                    loading = f"{answer['load_seconds']:.1f} of them loading"
                    print(f"  prompt {prompt}, {name}: {answer['seconds']:.1f} s, {loading}", flush=True)
        processes = {name: arena.end(name) for name in names}
    _print(processes)
    if args.json:
        raw = {"machine": machine(), "contenders": [each.raw() for each in processes.values()]}
        args.json.write_text(json.dumps(raw, indent=1))


def _converted(model: Path, size: int) -> Path:
    """The folder of the converted model, made where it is not there yet."""
    folder = DATA / f"{model.name}-coreml-{size}"
    if not folder.is_dir():
        print(f"  converting {model} to {folder}", flush=True)
        with tempfile.TemporaryDirectory(dir=DATA) as name:
            out = Path(name) / "out"
            command = [sys.executable, "-m", "renderkiln.producer", "convert", str(model), "-o", str(out), "--no-check"]
            command += ["--stages", STAGES, "--width", str(size), "--height", str(size)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            out.rename(folder)
    return folder


def _print(processes: dict[str, Process]) -> None:
    resident = processes.get("resident")
    print(machine())
    for name, process in processes.items():
        seconds, peak = process.seconds, process.peak_bytes
        times = f"{spread(seconds, digits=2)} an image"
        if resident is not None:
            times += f", {ratio(seconds, resident.seconds)}; the list {sum(seconds) / sum(resident.seconds):.3f} ×"
        of = f", {peak / resident.peak_bytes:.3f} × resident" if resident is not None else ""
        stages = ", ".join(f"{stage} {count}" for stage, count in process.loads_by_stage.items() if count)
        loading = sum(each["load_seconds"] for each in process.answers)
        print(f"{name:<9} peak {peak / 1e9:.2f} GB{of} (from outside {say_check(process)})")
        print(f"          {times}")
        processor = spread(process.processor_seconds, digits=2)
        if resident is not None:
            processor += f", {ratio(process.processor_seconds, resident.processor_seconds)}"
        print(f"          processor time: {processor}")
        print(f"          loads in the list: {stages or 'none'}; {loading:.1f} s in all")
        if process.contender.budget_bytes is not None:
            print(f"          its budget: {process.contender.budget_bytes / 1e9:.2f} GB")
    jit = processes.get("jit")
    if jit is not None:
        stage, size, working = jit.largest_stage
        print(
            f"jit's largest stage: {stage}, {size / 1e9:.2f} GB in memory, and {working / 1e9:.2f} GB at work; "
            f"the empty process: {jit.empty_bytes / 1e9:.2f} GB"
        )
        for each in _stages(jit):
            print(f"  {each}")
        _bound("jit's peak", jit.peak_bytes / (size + working + jit.empty_bytes), OVER_STAGE, "its need")
    if jit is not None and resident is not None:
        _bound("jit's peak", jit.peak_bytes / resident.peak_bytes, PEAK, "resident's")
        _bound("jit's time", _middle(jit, resident), JIT_TIME, "resident's")
    if "auto" in processes and resident is not None:
        auto = processes["auto"]
        _bound("auto's time", _middle(auto, resident), AUTO_TIME, "resident's")
        print(f"auto's peak: {auto.peak_bytes / (auto.contender.budget_bytes or 1):.3f} × its budget")
    if jit is not None and "swift" in processes:
        swift = processes["swift"]
        print(f"jit against swift: time {ratio(jit.seconds, swift.seconds)}, ", end="")
        print(f"peak {jit.peak_bytes / swift.peak_bytes:.3f} ×, ", end="")
        print(f"loads {sum(jit.loads_by_stage.values())} to {sum(swift.loads_by_stage.values())}")


def _stages(process: Process) -> list[str]:
    """A line about each stage as the engine measured it."""
    return [
        f"{stage:<16} {size / 1e6:7.0f} MB, {working / 1e6:5.0f} MB at work, {seconds:.2f} s to load"
        for stage, (size, working, seconds) in process.measured.items()
    ]


def _middle(ours: Process, theirs: Process) -> float:
    return statistics.median(a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True))


def _bound(what: str, found: float, most: float, of: str) -> None:
    print(f"bound: {what} at most {most:.2f} × {of}: {found:.3f} ×, {'met' if found <= most else 'MISSED'}")


if __name__ == "__main__":
    main()
