"""The engine: renders jobs with diffusers' own pipelines, whatever runs the stages.

Images are denoised one at a time, on every device: batches crash or come out wrong on mps, and on any device
the bits of an image depend on what shares its batch, so that image k of a job could not be made again alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from renderkiln.schema.errors import (
    OutOfMemoryError,
    RenderFailedError,
    RenderkilnError,
    SafetyFilteredError,
)
from renderkiln.schema.jobs import Job, JobOptions, make_job
from renderkiln.schema.spec import RenderSpec

from ..memory.residency import Residency
from ..memory.stages import Measured
from . import prompts, quality, self_test
from .base import Ahead, Engine, EngineInfo, OnStep, RenderedImage, WarmUp
from .decoding import decode
from .denoising import denoise
from .device import give_memory_back, is_out_of_memory
from .embeddings import EmbeddingCache
from .inputs import Inputs, keep_unmasked
from .libraries import diffusers, known_warnings_ignored, transformers
from .model_stages import OpenStages
from .pipelines import Pipelines, Task
from .requests import Request, check

log = logging.getLogger("renderkiln.renderer")

#: Finds a model's folder by name and revision; raises ModelNotFoundError.
FindModel = Callable[[str, str | None], Path]
#: What changes when a model's folder is fetched or converted anew.
Identity = tuple[Path, tuple[tuple[str, int], ...]]
#: Models whose pipelines (tokenizers and settings, a few MB each; no weights) stay when another takes over.
_MODELS_KEPT = 8
_T = TypeVar("_T")


class _StepFailedError(Exception):
    """Carries what `on_step` raised through the pipeline: that is not a fault of the rendering."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason
        super().__init__(str(reason))


@dataclass
class _Denoised:
    """An image between the UNet and the VAE."""

    k: int
    spec: RenderSpec
    #: (1, 4, h, w)
    latents: torch.Tensor
    seconds: float
    loads: int
    load_seconds: float


class DiffusersEngine(Engine):
    """Renders the jobs of any number of models.

    Args:
        find_model: see `FindModel`.
        open_stages: opens the stages of a model's folder; two models may well have different kinds of them.
        info: what this engine says of itself before a model was opened.
        cache: of encoded prompts.
        denoise_ahead: images of a job that are denoised, at most, before the VAE is loaded to decode them; counts where
            UNet and VAE may not be in memory together.
    """

    def __init__(
        self,
        find_model: FindModel,
        open_stages: OpenStages,
        info: EngineInfo,
        cache: EmbeddingCache | None = None,
        denoise_ahead: int = 8,
    ) -> None:
        self._find_model, self._open_stages = find_model, open_stages
        self._info = info
        self._cache = cache or EmbeddingCache()
        self._denoise_ahead = max(1, denoise_ahead)
        self.residency = Residency(hand_back=give_memory_back)
        self._models: dict[str, tuple[Identity, Pipelines]] = {}
        #: What was measured on this machine before of a model's stages, by `stages_name` and stage.
        self.known_costs: dict[str, Mapping[str, Measured]] = {}

    def render(
        self,
        job: Job,
        inputs: Mapping[str, bytes],
        *,
        skip: Collection[int] = (),
        on_step: OnStep,
        ahead: Ahead | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[RenderedImage]:
        """See `Engine.render`."""
        wanted = [k for k in range(job.num_images) if k not in skip]
        if not wanted:
            return
        counts = self.residency.counts
        before = counts.loads, counts.load_seconds
        start = time.perf_counter()
        request = self._typed(lambda: self._prepare(job, inputs, ahead))
        encoding = time.perf_counter() - start, counts.loads - before[0], counts.load_seconds - before[1]
        while wanted:
            group = wanted[: self._group_size(request)]
            del wanted[: len(group)]
            denoised, failure = self._denoise_all(request, group, on_step, enough)
            stops = len(denoised) < len(group)
            while denoised:  # not kept longer than need be
                each = denoised.pop(0)
                image = self._typed(partial(self._finish, request, each))
                # Preparing is the first image's.
                yield replace(
                    image,
                    seconds=image.seconds + encoding[0],
                    loads=image.loads + encoding[1],
                    load_seconds=image.load_seconds + encoding[2],
                )
                encoding = 0.0, 0, 0.0
            if failure is not None:
                try:
                    raise failure
                finally:
                    del failure  # it holds on to this frame, and what it came through
            if stops or (wanted and enough()):
                return

    def warm_up(self, model: str, revision: str | None = None) -> WarmUp:
        """See `Engine.warm_up`."""
        start = time.perf_counter()
        likeness = self._typed(lambda: self._warm_up(model, revision))
        seconds = time.perf_counter() - start
        return WarmUp(model, seconds, self._info.device, self._info.dtype, self.residency.loaded(), likeness)

    def self_test_picture(self, model: str, revision: str | None = None) -> np.ndarray:
        """The picture of a converted model's self-test: (H, W, 3) uint8. Raises RenderkilnError."""
        return self._typed(lambda: self._self_test(self._open(model, revision)))

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        versions = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
        return replace(self._info, versions={**versions, **self._info.versions}, stages=self.residency.loaded())

    def close(self) -> None:
        """See `Engine.close`."""
        self.residency.drop_all()

    def _open(self, model: str, revision: str | None) -> Pipelines:
        """The pipelines of a model."""
        folder = self._find_model(model, revision)
        name = stages_name(model, revision)
        if self.residency.rule.policy != "auto":  # which keeps of other models what the budget has room for
            self.residency.drop_others(name)
        identity = _identity(folder)
        known = self._models.pop(name, None)
        if known is None or known[0] != identity:  # not seen yet, or fetched anew since
            self.residency.forget(name)
            known = identity, Pipelines(name, folder, self._open_stages(model, folder), self.residency, _check_decoded)
        self._info = known[1].stages.info
        self._models[name] = known
        if len(self._models) > _MODELS_KEPT:
            oldest = next(iter(self._models))
            del self._models[oldest]
            self.residency.forget(oldest)
        return known[1]

    # Before the first image.

    def _prepare(self, job: Job, inputs: Mapping[str, bytes], ahead: Ahead | None) -> Request:
        pipelines = self._open(job.spec.model, job.spec.revision)
        request = check(job, pipelines, inputs)
        self._begin(request)
        self._encode(request, job.spec, ahead)
        return request

    def _begin(self, request: Request) -> None:
        request.pipeline.vae.begin_job()
        self.residency.begin_job(request.order, request.pixels, self.known_costs.get(request.pipelines.name))

    def _encode(self, request: Request, spec: RenderSpec, ahead: Ahead | None) -> None:
        """Encodes the job's prompts, and, where the text encoder will have to go again, those of the jobs that wait."""
        embed = request.embed or request.pipelines.embedder(spec)
        with torch.inference_mode():
            if embed is not None:
                request.prompts = prompts.encode_with(embed, request.pipeline, spec)
                request.notes += request.prompts.notes
                return
            encoder = _encoder(request.pipelines, self._models[request.pipelines.name][0])
            encoding = prompts.Prompts(request.pipeline, encoder, self._cache)
            if encoding.are_known(spec):
                request.prompts = encoding.encode(spec)
                return
            with self.residency.together(request.text_encoders) as together:
                request.prompts = encoding.encode(spec)
                self.residency.load_ahead(request.unet)
                if ahead is not None and together and not self.residency.has_room_for(*request.order):
                    self._look_ahead(request.prompts, encoding, ahead)

    def _look_ahead(self, encoded: prompts.EncodedPrompts, encoding: prompts.Prompts, ahead: Ahead) -> None:
        """Encodes as many of the next jobs' prompts as are kept until their turn comes.

        Args:
            encoded: this job's, as a measure.
        """
        for spec in ahead.specs[: self._cache.room_bytes // encoded.size_bytes]:
            try:
                ahead.between()
            except Exception as error:
                raise _StepFailedError(error) from None
            if spec.text_encoder != "model":
                continue
            try:
                encoding.encode(spec)
            except Exception as error:  # whose fault it is will be found out in its own job
                log.warning("a prompt of a later job could not be encoded: %s: %s", type(error).__name__, error)
                if isinstance(error, OutOfMemoryError) or is_out_of_memory(error):
                    return

    # Image by image.

    def _group_size(self, request: Request) -> int:
        return 1 if self.residency.has_room_for(request.unet, request.decoder) else self._denoise_ahead

    def _denoise_all(
        self, request: Request, group: Sequence[int], on_step: OnStep, enough: Callable[[], bool]
    ) -> tuple[list[_Denoised], RenderkilnError | None]:
        """The images of a group up to where it ends: by itself, when it is enough, or with a failure."""
        denoised: list[_Denoised] = []
        for k in group:
            try:
                denoised.append(self._typed(partial(self._denoise, request, k, on_step)))
            except OutOfMemoryError:
                raise
            except RenderkilnError as error:
                if not denoised:
                    raise
                _clear_frames(error)
                return denoised, error
            if enough():
                break
        return denoised, None

    def _denoise(self, request: Request, k: int, on_step: OnStep) -> _Denoised:
        start, counts = time.perf_counter(), self.residency.counts
        loads, load_seconds = counts.loads, counts.load_seconds
        spec = request.job.image_spec(k)

        def step_done(step: int, num_steps: int) -> None:
            try:
                on_step(k, step, num_steps)
            except Exception as error:
                raise _StepFailedError(error) from None

        at_each_step = (*request.controlnets, request.unet)
        with torch.inference_mode(), self.residency.together(at_each_step, whatever_it_takes=True):
            latents = denoise(request, spec, step_done)
        seconds = time.perf_counter() - start
        return _Denoised(k, spec, latents, seconds, counts.loads - loads, counts.load_seconds - load_seconds)

    def _finish(self, request: Request, image: _Denoised) -> RenderedImage:
        start, counts = time.perf_counter(), self.residency.counts
        loads, load_seconds = counts.loads, counts.load_seconds
        decoded, hidden = self._decode(request, image.latents)
        if hidden:
            raise SafetyFilteredError(
                f"the model's safety checker hid image {image.k} (seed {image.spec.seed}); "
                "change the prompt or the seed, or switch safety_checker off"
            )
        rgb = quality.to_rgb(decoded)
        quality.check_not_black(rgb, dtype=self._info.dtype, device=self._info.device)
        if request.inputs is not None:
            rgb = keep_unmasked(rgb, request.inputs)
        notes = request.notes
        if request.pipeline.vae.decoded_in_tiles:
            notes += ("Decoded in tiles, as memory was short: flat areas may differ a little from tile to tile.",)
        return RenderedImage(
            k=image.k,
            seed=image.spec.seed,
            width=rgb.shape[1],
            height=rgb.shape[0],
            rgb=np.ascontiguousarray(rgb).tobytes(),
            seconds=image.seconds + time.perf_counter() - start,
            loads=image.loads + counts.loads - loads,
            load_seconds=image.load_seconds + counts.load_seconds - load_seconds,
            notes=notes,
        )

    def _decode(self, request: Request, latents: torch.Tensor) -> tuple[torch.Tensor, bool]:
        assert request.prompts is not None
        with torch.inference_mode():
            return decode(request.pipeline, latents, request.prompts.arguments["prompt_embeds"].dtype)

    def _warm_up(self, model: str, revision: str | None) -> float | None:
        """Renders a step on every stage that a plain job needs; on every one that there is of a converted model."""
        pipelines = self._open(model, revision)
        rgb = self._self_test(pipelines)
        stored = pipelines.stages.self_test
        if stored is None:
            return None
        if pipelines.stages.has("vae_encoder") and not pipelines.only_inpaints:
            self._self_test(pipelines, "img2img")
        quality.check_not_black(rgb, dtype=self._info.dtype, device=self._info.device)
        return self_test.likeness(rgb, stored) if stored.is_file() else None

    def _self_test(self, pipelines: Pipelines, task: Task = "txt2img") -> np.ndarray:
        size = pipelines.native_size
        if pipelines.only_inpaints:
            task = "inpaint"
        # Of two steps, those that start from a picture at the default strength run one.
        spec = self_test.spec_of(1 if task == "txt2img" else 2)
        grey, mask = Image.new("RGB", size, "grey"), Image.new("L", size, 255)
        pictures = None if task == "txt2img" else Inputs(grey, mask if task == "inpaint" else None)
        job = make_job(spec, JobOptions(), batch="self-test", index=0)
        pipeline = pipelines.get(task, safety_checker=True)
        embed = pipelines.test_embedder()
        request = Request(job, pipelines, pipeline, task, size, pictures, (), (), embed=embed)
        self._begin(request)
        self._encode(request, spec, ahead=None)
        with torch.inference_mode():
            image, _ = self._decode(request, denoise(request, spec, lambda _step, _num_steps: None))
        return quality.to_rgb(image)

    def _typed(self, work: Callable[[], _T]) -> _T:
        """Runs `work`; whatever it raises comes out as a RenderkilnError, but for what `on_step` raised."""
        try:
            with known_warnings_ignored():
                return work()
        except _StepFailedError as error:
            raise error.reason from None
        except RenderkilnError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise RenderFailedError(f"{type(error).__name__}: {error}") from error
            message = f"memory ran out on {self._info.device} ({self._info.dtype}): {error}"
        # Outside the handler: its traceback holds on to the tensors of the step that failed.
        give_memory_back()
        raise OutOfMemoryError(message)


def stages_name(model: str, revision: str | None) -> str:
    """What the residency manager tells a model's stages apart by."""
    return model if revision is None else f"{model}@{revision}"


def _clear_frames(error: BaseException) -> None:
    """Lets go of what was at hand where an error came from, the stage that was at work above all."""
    reason: BaseException | None = error
    while reason is not None:
        traceback.clear_frames(reason.__traceback__)
        reason = reason.__cause__ or reason.__context__


def _encoder(pipelines: Pipelines, identity: Identity) -> str:
    """A name for what encodes a model's prompts, which changes with its files and its arithmetic."""
    info, folder = pipelines.stages.info, identity[0]
    files = sorted(
        file for part in ("text_encoder", "tokenizer") for file in folder.glob(f"{part}*/*") if file.is_file()
    )
    about = [[file.parent.name, file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    how = [info.engine, info.device, info.dtype, info.variant, torch.__version__, transformers.__version__]
    said = [pipelines.name, str(folder), identity[1], about, how]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _check_decoded(decoded: torch.Tensor) -> None:
    quality.check_finite(decoded, "in the decoded picture")


def _identity(folder: Path) -> Identity:
    files = sorted([folder / "model_index.json", *folder.glob("manifest.json"), *folder.glob("*/manifest.json")])
    return folder, tuple((file.name, file.stat().st_mtime_ns) for file in files if file.is_file())
