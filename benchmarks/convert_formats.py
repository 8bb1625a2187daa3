"""Converting all stages of Stable Diffusion 1.5's geometry to Core AI beside Core ML, without the check, in turn.

python -m benchmarks.convert_formats [--rounds 2]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from .convert_sd15 import DATA, make_model, ours
from .report import machine, spread

CONTENDERS: dict[str, tuple[str, ...]] = {
    "Core ML, 16 bits": (),
    "Core AI, 16 bits": ("--format", "coreai"),
    "Core AI, 4 bits": ("--format", "coreai", "--nbits", "4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    make_model()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peaks: dict[str, dict[str, float]] = {}
    sizes: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, flags in CONTENDERS.items():
            with tempfile.TemporaryDirectory(dir=DATA) as folder:
                taken, peaks[name] = ours(Path(folder), *flags)
                kept = (Path(folder) / "out").rglob("*.ml*/**/*" if not flags else "*.aimodel/*")
                sizes[name] = sum(path.stat().st_size for path in kept if path.is_file()) / 1e9
            seconds[name].append(taken)
            print(f"  {name}: {taken:.1f} s", flush=True)
    print(machine())
    for name, taken_all in seconds.items():
        stages = ", ".join(f"{stage} {peak:.2f}" for stage, peak in peaks[name].items())
        print(f"{name}: {spread(taken_all, digits=1)}, {sizes[name]:.2f} GB on disk; peaks in GB: {stages}", flush=True)


if __name__ == "__main__":
    main()
