"""Tiny models and `shapes`, converted once for all processes of a test run, and engines over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file
from tests.engine import models
from tests.engine.conftest import Renderer

from renderkiln.home.folder import DataFolder
from renderkiln.worker.demo import shapes_path
from renderkiln.worker.engine.diffusers_engine import DiffusersEngine
from renderkiln.worker.engine.libraries import diffusers
from renderkiln.worker.engine.making import EngineChoice, make_engine
from renderkiln.worker.engine.torch_engine import TorchEngine
from renderkiln.worker.models.choosing import Wishes

from .converting import convert_model

#: How many values a vector of the system's text encoder has here.
VECTOR = 12


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """As the models are tiny; and gradients on again after a conversion: other tests train."""
    torch.set_num_threads(1)
    yield
    torch.set_grad_enabled(True)


#: In float32, as Core AI's interpreter is some thirty times slower in 16 bits.
COREAI = {"format": "coreai", "precision": "float32"}


class Library:
    """Models in diffusers' layout and, on demand, converted ones, in a folder that all processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def torch(self, name: str) -> Path:
        """The model that a converted one was made of."""
        makers: dict[str, Callable[[Path], Any]] = {
            "tiny": lambda path: models.save_sd(path, threshold=0.99),
            "xl": models.save_sdxl,
            "lcm": lambda path: models.save_sd(
                path, unet={"time_cond_proj_dim": 8}, scheduler=diffusers.LCMScheduler()
            ),
            "painter": lambda path: models.save_sd(path, unet={"in_channels": 9}),
            "edges": lambda path: models.save_controlnet(path, self.torch("tiny")),
            "depth": lambda path: models.save_controlnet(path, self.torch("tiny"), seed=4),
            "shapes": lambda path: path.symlink_to(shapes_path()),
        }
        return self._made(name, makers[name])

    def converted(self, name: str) -> Path:
        """A converted model: its name here is that of the model, and what is special about it."""
        model, _, special = name.partition("-")
        core: tuple[str, ...] = ("text_encoders", "unet", "vae_decoder")
        options: dict[str, dict[str, Any]] = {
            "": {},
            "one": {"unet_batch_one": True, "chunk_unet": True, "attention": "split-einsum-v2", "stages": core},
            "core": {"stages": core},
            "pictures": {"stages": (*core, "vae_encoder")},
            "sizes": {"stages": core, "sizes": ((32, 32), (48, 32)), "target": "macOS15"},
            "small": {
                "attention": "split-einsum",
                "unet_batch_one": True,
                "stages": (*core, "vae_encoder"),
                "unet": {"nbits": 6, "chunk_unet": True},
            },
            "coreai": {**COREAI},
            "coreai_pictures": {**COREAI, "stages": (*core, "vae_encoder")},
            "coreai_sizes": {**COREAI, "stages": core, "sizes": ((32, 32), (48, 32))},
            "coreai_controls": {
                **COREAI,
                "stages": ("text_encoder", "control-unet", "controlnet", "vae_decoder", "vae_encoder"),
                "source": {"controlnets": (str(self.torch("edges")),)},
            },
            "controls": {
                "stages": ("text_encoder", "control-unet", "controlnet", "vae_decoder", "vae_encoder"),
                "source": {"controlnets": tuple(str(self.torch(each)) for each in ("edges", "depth"))},
            },
            "multilingual": {"stages": core, "source": {"projection": self.projection}},
        }
        # Most of what is made of the tiny model in one format differs in its UNet alone.
        alike = {"": None, "coreai": None}.get(special, "tiny-coreai" if special.startswith("coreai_") else "tiny")
        like = self.converted(alike) if model == "tiny" and alike is not None else None
        return self._made(
            f"{name}.converted", lambda path: convert_model(path, self.torch(model), like=like, **options[special])
        )

    @property
    def projection(self) -> Path:
        """What `multilingual` has between the system's text encoder, whose vectors have 12 values, and its UNet."""
        random = torch.Generator().manual_seed(0)
        return self._made(
            "projection.safetensors",
            lambda path: save_file({"weight": torch.randn(models.WIDTH, VECTOR, generator=random)}, path),
        )

    def _made(self, name: str, make: Callable[[Path], Any]) -> Path:
        path = self.folder / name
        with FileLock(self.folder / f".{name}.lock"):
            if not (self.folder / f".{name}.done").exists():
                make(path)
                (self.folder / f".{name}.done").touch()
        return path


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    base = tmp_path_factory.getbasetemp()
    # Under xdist, each process has a folder of its own below the run's.
    shared = (base.parent if base.name.startswith("popen-") else base) / "converted-models"
    shared.mkdir(exist_ok=True)
    return Library(shared)


Make = Callable[[str], Renderer]


@pytest.fixture
def converted(library: Library, tmp_path: Path) -> Make:
    """`converted(name)` renders with a converted model, whatever model a spec names."""

    def make(name: str) -> Renderer:
        return Renderer(coreml_engine(library.converted(name), tmp_path))

    return make


@pytest.fixture
def original(library: Library) -> Make:
    """`original(name)` renders with the torch modules that it was made of."""

    def find(name: str, model: str) -> Path:
        return library.torch(model if model in ("edges", "depth") else name)

    return lambda name: Renderer(TorchEngine(lambda model, _: find(name, model), device="cpu"))


def coreml_engine(folder: Path, data: Path, **wishes: str) -> DiffusersEngine:
    choice = EngineChoice(Wishes(**{"engine": "coreml", **wishes}))
    return make_engine(choice, lambda _name, _revision: folder, DataFolder(data))
