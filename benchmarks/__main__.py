"""`python -m benchmarks [NAME…]`: runs the benchmarks, one process each, and prints what they print."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "start_up",
    "submit_many",
    "overhead",
    "whole_system",
    "judge_shapes",
    "convert_sd15",
    "convert_formats",
    "conversion_matrix",
    "converted_shapes",
    "coreai_shapes",
    "compress_shapes",
    "reference_runtime",
    "coreml_engine",
    "memory_sd15",
    "text_encoder_loads",
    "memory_over_time",
    "memory_sdxl",
)
#: Run only when they are named: the first needs a system that lets it limit memory, the other compares nothing.
MORE = ("memory_pressure", "hostile_payloads")


def main() -> None:
    names = sys.argv[1:] or NAMES
    unknown = [name for name in names if name not in NAMES + MORE]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are: {', '.join(NAMES + MORE)}")
    for name in names:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
