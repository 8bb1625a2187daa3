"""Tiny models, made once a session, and an engine over them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from renderkiln.schema import JobOptions, RenderSpec, make_job
from renderkiln.schema.errors import ModelNotFoundError
from renderkiln.worker.engine.base import Ahead, RenderedImage
from renderkiln.worker.engine.torch_engine import TorchEngine
from renderkiln.worker.memory.meter import Meter
from renderkiln.worker.memory.planning import Rule, StageKey
from renderkiln.worker.memory.residency import Residency

from . import models
from .watching import Watch

JIT = Rule("jit")
#: The fewest stages to put to work: both prompts, one step, the picture.
SHORT: dict[str, Any] = {"scheduler": "ddim", "num_inference_steps": 1}
SHORT_ORDER = ["text_encoder", "text_encoder", "unet", "vae_decoder"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The models are too small to share: threads would wait for each other for most of the time.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: `tiny`, `other` and `tiny-xl`, and ControlNets for the first and the last."""
    folder = tmp_path_factory.mktemp("models")
    models.save_sd(folder / "tiny")
    models.save_sd(folder / "other", seed=1)
    models.save_sdxl(folder / "tiny-xl")
    models.save_controlnet(folder / "edges", folder / "tiny")
    models.save_controlnet(folder / "depth", folder / "tiny", seed=4)
    models.save_controlnet(folder / "edges-xl", folder / "tiny-xl")
    return folder


@pytest.fixture
def make_engine(library: Path) -> Callable[..., TorchEngine]:
    def find_model(name: str, revision: str | None) -> Path:
        if not (library / name).is_dir():
            raise ModelNotFoundError(f"no model {name!r}")
        return library / name

    return lambda **settings: TorchEngine(find_model, **settings)


@pytest.fixture
def engine(make_engine: Callable[..., TorchEngine]) -> TorchEngine:
    return make_engine(device="cpu")


class Renderer:
    """Renders a spec given as keywords; keeps what `on_step` heard."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.inputs: dict[str, bytes] = {}
        self.steps: list[tuple[int, int, int]] = []

    def picture(self, image: Image.Image) -> str:
        """Makes a picture known as an input; gives its reference."""
        file = io.BytesIO()
        image.save(file, "PNG")
        reference = "sha256:" + hashlib.sha256(file.getvalue()).hexdigest()
        self.inputs[reference] = file.getvalue()
        return reference

    def __call__(self, **asked: Any) -> list[RenderedImage]:
        return list(self.begin(**asked))

    def begin(
        self,
        *,
        num_images: int = 1,
        skip: tuple[int, ...] = (),
        on_step: Any = None,
        ahead: Ahead | None = None,
        enough: Callable[[], bool] = lambda: False,
        **fields: Any,
    ) -> Iterator[RenderedImage]:
        """The same, image by image."""
        spec = RenderSpec(**{"model": "tiny", "prompt": "a red circle", "num_inference_steps": 3, **fields})
        job = make_job(spec, JobOptions(num_images=num_images), batch="test", index=0)

        def heard(k: int, step: int, num_steps: int) -> None:
            self.steps.append((k, step, num_steps))
            if on_step is not None:
                on_step(k, step, num_steps)

        return self.engine.render(job, self.inputs, skip=skip, on_step=heard, ahead=ahead, enough=enough)


class Still(Meter):
    """Sees nothing, so that what is expected of a stage counts, and nothing that the machine does besides."""

    def __init__(self) -> None:
        pass

    def now(self) -> int:
        return 0

    begin = end = take_highest = now


MakeJit = Callable[..., tuple[Renderer, Watch]]


@pytest.fixture(scope="session")
def originals() -> dict[tuple[StageKey, type], Any]:
    """What was loaded of the library's models, for `make_jit`."""
    return {}


@pytest.fixture
def make_jit(make_engine: Callable[..., TorchEngine], originals: dict[tuple[StageKey, type], Any]) -> MakeJit:
    """Makes an engine that keeps one stage in memory, unless told otherwise, and who watches it.

    What it loads are copies of what was loaded once: loading takes most of the time of so small a model.
    """

    def make(rule: Rule = JIT, **settings: Any) -> tuple[Renderer, Watch]:
        engine = make_engine(device="cpu", **settings)
        engine.residency = Residency(meter=Still())
        engine.residency.set_rule(rule)
        return Renderer(engine), Watch(engine, originals)

    return make


@pytest.fixture
def render(engine: TorchEngine) -> Renderer:
    return Renderer(engine)


@pytest.fixture(scope="session")
def plain(library: Path) -> Callable[..., bytes]:
    """What diffusers' own pipeline, loaded as usual, makes of the same request: RGB bytes."""
    loaded: dict[tuple[Any, str], Any] = {}

    def run(kind: Any, model: str, *, seed: int, scheduler: Any = None, **call: Any) -> bytes:
        if (kind, model) not in loaded:
            loaded[kind, model] = kind.from_pretrained(library / model, use_safetensors=True, local_files_only=True)
            loaded[kind, model].set_progress_bar_config(disable=True)
        pipeline = loaded[kind, model]
        own = pipeline.scheduler
        if scheduler is not None:
            pipeline.scheduler = scheduler(own.config)
        try:
            generator = torch.Generator("cpu").manual_seed(seed)
            output = pipeline(generator=generator, output_type="pil", **call)
        finally:
            pipeline.scheduler = own
        data: bytes = output.images[0].convert("RGB").tobytes()
        return data

    return run
