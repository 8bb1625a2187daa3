"""How long `renderkiln --help` and `import renderkiln.producer` take beside `python -c pass`."""

from __future__ import annotations

import subprocess
import sys
import time

from .report import machine, ratio, spread

ROUNDS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import renderkiln.producer": ["-c", "import renderkiln.producer"],
    "from renderkiln.producer import RenderQueue": ["-c", "from renderkiln.producer import RenderQueue"],
    "renderkiln --help": ["-m", "renderkiln.producer", "--help"],
}
HEAVY = ("torch", "diffusers", "numpy", "sqlalchemy")


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(ROUNDS + 1):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if round_number:  # the first round warms the file cache
                times[name].append(time.perf_counter() - began)
    print(machine())
    base = times["python -c pass"]
    for name, values in times.items():
        print(f"{name:<46} {spread(values)}   {ratio(values, base)}")
    for name, arguments in COMMANDS.items():
        print(f"{name:<46} loads of {', '.join(HEAVY)}: {', '.join(_heavy(arguments)) or 'none'}")


def _heavy(arguments: list[str]) -> list[str]:
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], check=True, capture_output=True, text=True
    ).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in listing.splitlines()}
    return [name for name in HEAVY if name in loaded]


if __name__ == "__main__":
    main()
