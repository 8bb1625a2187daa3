"""What Core AI makes of `shapes`: float32, 16 bits, and weights of 4 bits, on Apple's own interpreter.

    python -m benchmarks.coreai_shapes [--keep FOLDER] [--only torch float32 int4 float16]

Pictures are judged, and compared with those that the torch engine makes of the same prompts and seeds. The interpreter
takes 35 times as long for 16 bits as for float32, some two minutes a picture: so every picture is kept, and the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from renderkiln.worker.demo import shapes_path
from renderkiln.worker.demo.judge import matches, tally
from renderkiln.worker.demo.vocabulary import held_out_drawings, prompt_of

from .converted_shapes import convert, engine_for, psnr, render_one
from .report import machine


@dataclass(frozen=True)
class Contender:
    """What renders, from how many prompts."""

    count: int
    #: Of `renderkiln convert --format coreai`; None: torch, float32.
    flags: tuple[str, ...] | None = None


CONTENDERS = {
    "torch": Contender(50),
    "float32": Contender(10, ("--precision", "float32")),
    "int4": Contender(50, ("--precision", "float32", "--nbits", "4")),
    "float16": Contender(50, ("--precision", "float16")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="where pictures and converted models are kept")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        for name in args.only:
            draw(name, folder, args.steps)
        for name in args.only:
            print(line(name, folder), flush=True)


def draw(name: str, folder: Path, steps: int) -> None:
    """Renders what is not there yet."""
    contender, pictures, model = CONTENDERS[name], folder / name, folder / f"{name}.model"
    pictures.mkdir(parents=True, exist_ok=True)
    if contender.flags is None:
        engine = engine_for(shapes_path(), "torch")
    else:
        convert(model, "--format", "coreai", *contender.flags)
        engine = engine_for(model, "coreai")
    for index, drawing in enumerate(held_out_drawings(contender.count)):
        target = pictures / f"{index:03}.png"
        if not target.exists():
            began = time.monotonic()
            picture = render_one(engine, prompt_of(drawing), index, steps)
            picture.save(target.with_suffix(".part"), format="PNG")
            target.with_suffix(".part").replace(target)
            print(f"{name} {index}: {time.monotonic() - began:.1f} s", flush=True)


def line(name: str, folder: Path) -> str:
    """How its pictures are judged, and how near they are to torch's, where those are there."""
    drawings = held_out_drawings(CONTENDERS[name].count)
    found = [Image.open(folder / name / f"{index:03}.png") for index in range(len(drawings))]
    said = f"{name:8} {tally([matches(drawing, picture) for drawing, picture in zip(drawings, found, strict=True)])}"
    originals = [folder / "torch" / f"{index:03}.png" for index in range(len(drawings))]
    if name == "torch" or not all(path.exists() for path in originals):
        return said
    near = [psnr(picture, Image.open(path)) for picture, path in zip(found, originals, strict=True)]
    return f"{said}; PSNR {statistics.median(near):.1f} dB (worst {min(near):.1f})"


if __name__ == "__main__":
    main()
