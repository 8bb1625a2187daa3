"""Draws the self-test picture of a converted model, which workers hold theirs against when they start.

In a process of its own, on the reference runtime, which is not what will render: so it shows what a compute unit gets
wrong. `python -m renderkiln.worker.convert.picture FOLDER` is that process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from renderkiln.schema.errors import RenderkilnError

from ..importing import imports_that_stay
from ..runtimes.manifest import Manifest

_ENCODERS = {"sd": {"text_encoder"}, "sdxl": {"text_encoder", "text_encoder_2"}}


def is_possible(manifest: Manifest) -> bool:
    """Whether the stages that there are can draw a picture."""
    there = set(manifest.stages)
    return there >= {*_ENCODERS[manifest.family], "vae_decoder"} and not there.isdisjoint({"unet", "control-unet"})


def draw(folder: Path) -> str | None:
    """Writes the picture; what went wrong, or None. A model without one is whole, so nothing is raised."""
    command = [sys.executable, "-W", "ignore", "-m", "renderkiln.worker.convert.picture", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"its process was ended by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"its process ended with exit code {done.returncode}"


def main() -> None:
    from renderkiln.home.folder import DataFolder

    with imports_that_stay():
        from ..engine import self_test
        from ..engine.making import EngineChoice, make_engine
    from ..models.choosing import Wishes, engine_of

    folder = Path(sys.argv[1])
    choice = EngineChoice(Wishes(engine=engine_of(folder), compute_unit="reference"))
    try:
        engine = make_engine(choice, lambda _name, _revision: folder, DataFolder(folder))
        self_test.save(engine.self_test_picture("converted"), folder)
    except (RenderkilnError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
