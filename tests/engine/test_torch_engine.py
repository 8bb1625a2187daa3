"""The torch engine against diffusers' own pipelines: the same pictures, to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from renderkiln.schema import errors
from renderkiln.worker.engine import torch_engine
from renderkiln.worker.engine.libraries import diffusers
from renderkiln.worker.engine.torch_engine import TorchEngine
from renderkiln.worker.memory.planning import StageKey

from . import models
from .conftest import Renderer

INIT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), "RGB")
MASK = Image.new("L", (32, 32), 0)
MASK.paste(255, (16, 0, 32, 32))
CALL = {"prompt": "a red circle", "num_inference_steps": 3}


def pixels(rgb: bytes) -> np.ndarray:
    return np.frombuffer(rgb, np.uint8).reshape(32, 32, 3)


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_text_to_image_equals_the_plain_pipeline(render: Renderer, plain: Any, guidance_scale: float) -> None:
    ours = render(seed=7, guidance_scale=guidance_scale, negative_prompt="blue")[0]
    theirs = plain(
        diffusers.StableDiffusionPipeline,
        "tiny",
        seed=7,
        guidance_scale=guidance_scale,
        negative_prompt="blue",
        **CALL,
    )
    assert ours.rgb == theirs
    assert (ours.k, ours.seed, ours.width, ours.height) == (0, 7, 32, 32)


def test_a_size_of_ones_own(render: Renderer, plain: Any) -> None:
    ours = render(width=48, height=24)[0]
    theirs = plain(diffusers.StableDiffusionPipeline, "tiny", seed=0, width=48, height=24, **CALL)
    assert (ours.width, ours.height) == (48, 24)
    assert ours.rgb == theirs


def test_image_to_image_equals_the_plain_pipeline(render: Renderer, plain: Any) -> None:
    ours = render(init_image=render.picture(INIT), strength=0.7, seed=3, num_inference_steps=10)[0]
    theirs = plain(
        diffusers.StableDiffusionImg2ImgPipeline,
        "tiny",
        seed=3,
        image=INIT,
        strength=0.7,
        **{**CALL, "num_inference_steps": 10},
    )
    assert ours.rgb == theirs
    # PNDM runs one step more than it was asked for; seven of ten were left over from the picture.
    assert render.steps == [(0, step, 8) for step in range(1, 9)]


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_inpainting_equals_the_plain_pipeline_where_it_paints(render: Renderer, plain: Any, strength: float) -> None:
    init, mask = render.picture(INIT), render.picture(MASK)
    ours = pixels(render(init_image=init, mask_image=mask, strength=strength, seed=3)[0].rgb)
    theirs = plain(
        diffusers.StableDiffusionInpaintPipeline,
        "tiny",
        seed=3,
        image=INIT,
        mask_image=MASK,
        strength=strength,
        **CALL,
    )
    assert np.array_equal(ours[:, 16:], pixels(theirs)[:, 16:])
    assert np.array_equal(ours[:, :16], np.asarray(INIT)[:, :16])


@pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint"])
def test_sdxl_equals_the_plain_pipeline(render: Renderer, plain: Any, task: str) -> None:
    kinds: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
        "txt2img": (diffusers.StableDiffusionXLPipeline, {}, {}),
        "img2img": (
            diffusers.StableDiffusionXLImg2ImgPipeline,
            {"init_image": render.picture(INIT)},
            {"image": INIT, "strength": 0.8},
        ),
        "inpaint": (
            diffusers.StableDiffusionXLInpaintPipeline,
            {"init_image": render.picture(INIT), "mask_image": render.picture(MASK)},
            {"image": INIT, "mask_image": MASK, "strength": 0.8},
        ),
    }
    kind, fields, call = kinds[task]
    sized = {} if task == "img2img" else {"width": 32, "height": 32}
    ours = pixels(render(model="tiny-xl", seed=5, guidance_scale=7.5, **fields)[0].rgb)
    theirs = pixels(plain(kind, "tiny-xl", seed=5, guidance_scale=7.5, **call, **sized, **CALL))
    assert np.array_equal(ours[:, 16:], theirs[:, 16:])


def test_image_k_is_the_same_alone_and_after_others(render: Renderer, make_engine: Any) -> None:
    together = render(num_images=3, seed=11, scheduler="euler a")
    alone = Renderer(make_engine(device="cpu"))(seed=13, scheduler="euler a")[0]
    assert [image.seed for image in together] == [11, 12, 13]
    assert together[2].rgb == alone.rgb
    assert together[0].rgb != together[1].rgb


def test_seeds_wrap_around(render: Renderer) -> None:
    assert [image.seed for image in render(num_images=2, seed=2**32 - 1)] == [2**32 - 1, 0]


def test_skips_what_is_there(render: Renderer) -> None:
    assert [image.k for image in render(num_images=4, skip=(0, 2))] == [1, 3]
    assert {k for k, _, _ in render.steps} == {1, 3}
    assert render(model="not-there", num_images=2, skip=(0, 1)) == []


def test_numpy_noise_is_apples(render: Renderer, plain: Any) -> None:
    drawn = np.random.RandomState(9).randn(1, 4, 16, 16).astype(np.float16)
    theirs = plain(diffusers.StableDiffusionPipeline, "tiny", seed=9, latents=torch.from_numpy(drawn).float(), **CALL)
    ours = render(seed=9, rng="numpy")[0].rgb
    assert ours == theirs
    assert ours != render(seed=9)[0].rgb


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_numpy_noise_reaches_pictures_too(render: Renderer, strength: float, masked: bool) -> None:
    fields: dict[str, Any] = {"init_image": render.picture(INIT), "strength": strength, "seed": 9}
    if masked:
        fields["mask_image"] = render.picture(MASK)
    first, second = render(rng="numpy", **fields)[0], render(rng="numpy", **fields)[0]
    assert first.rgb == second.rgb
    assert first.rgb != render(**fields)[0].rgb


def test_clip_skip_takes_an_earlier_layer(render: Renderer) -> None:
    assert render(clip_skip=1)[0].rgb != render()[0].rgb


def test_loads_on_first_use_and_only_what_is_needed(render: Renderer, engine: TorchEngine) -> None:
    first, second = render()[0], render()[0]
    assert [stage.stage for stage in engine.describe().stages] == ["text_encoder", "unet", "vae_decoder"]
    assert (first.loads, second.loads) == (3, 0)
    assert first.load_seconds > 0 == second.load_seconds
    assert first.rgb == second.rgb
    render(init_image=render.picture(INIT))
    assert "vae_encoder" in [stage.stage for stage in engine.describe().stages]


def test_sizes_are_known_before_loading(engine: TorchEngine, library: Path) -> None:
    engine.warm_up("tiny")
    with engine.residency.use(StageKey("tiny", "vae_encoder")):
        pass
    stages = {stage.stage: stage for stage in engine.describe().stages}
    for stage, folder in (("unet", "unet"), ("text_encoder", "text_encoder")):
        name = "model" if stage == "text_encoder" else "diffusion_pytorch_model"
        weights = load_file(library / "tiny" / folder / f"{name}.safetensors")
        assert stages[stage].size_bytes == sum(tensor.nbytes for tensor in weights.values())
        assert stages[stage].load_seconds > 0
    weights = load_file(library / "tiny" / "vae" / "diffusion_pytorch_model.safetensors")
    halves = stages["vae_encoder"].size_bytes + stages["vae_decoder"].size_bytes
    assert halves == sum(tensor.nbytes for tensor in weights.values())


def test_each_half_of_the_vae_holds_its_own_weights_only(engine: TorchEngine) -> None:
    engine.warm_up("tiny")
    with engine.residency.use(StageKey("tiny", "vae_decoder")) as decoder:
        held = sum(parameter.nbytes for parameter in decoder.parameters())
    (stage,) = [stage for stage in engine.describe().stages if stage.stage == "vae_decoder"]
    assert held == stage.size_bytes


def test_another_model_takes_the_place_of_the_first(render: Renderer, engine: TorchEngine) -> None:
    first = render()[0].rgb
    other = render(model="other")[0].rgb
    assert {stage.model for stage in engine.describe().stages} == {"other"}
    assert first != other
    assert render()[0].rgb == first


def test_a_model_that_changed_on_disk_is_read_anew(tmp_path: Path) -> None:
    models.save_sd(tmp_path / "model")
    render = Renderer(TorchEngine(lambda name, revision: tmp_path / name, device="cpu"))
    first = render(model="model")[0].rgb
    shutil.rmtree(tmp_path / "model")
    models.save_sd(tmp_path / "model", seed=1)
    assert render(model="model")[0].rgb != first


def test_a_cancel_between_steps_leaves_the_engine_usable(render: Renderer, engine: TorchEngine) -> None:
    reference = render(seed=4, scheduler="dpm++ 2m")[0].rgb
    render.steps.clear()

    def cancel(k: int, step: int, num_steps: int) -> None:
        if (k, step) == (1, 2):
            raise errors.CanceledError("canceled by a person")

    with pytest.raises(errors.CanceledError, match="by a person"):
        render(num_images=3, on_step=cancel)
    assert render.steps[-1] == (1, 2, 4)  # PNDM: one more than asked for
    engine.residency.drop_all()  # nothing is lent any more
    assert render(seed=4, scheduler="dpm++ 2m")[0].rgb == reference


def test_what_on_step_raises_is_not_disguised(render: Renderer) -> None:
    def broken(k: int, step: int, num_steps: int) -> None:
        raise BrokenPipeError("the supervisor is gone")

    with pytest.raises(BrokenPipeError):
        render(on_step=broken)


def test_warm_up_says_what_it_did(engine: TorchEngine) -> None:
    done = engine.warm_up("tiny")
    assert (done.model, done.device, done.dtype) == ("tiny", "cpu", "float32")
    assert [stage.stage for stage in done.stages] == ["text_encoder", "unet", "vae_decoder"]
    assert done.seconds > 0
    engine.close()
    assert engine.describe().stages == ()


def test_notes_tell_what_was_not_heeded(render: Renderer) -> None:
    assert render()[0].notes == ()
    (note,) = render(prompt="x" * 80)[0].notes
    assert "80 tokens" in note
    assert "xxxxx" in note
    (note,) = render(negative_prompt="blue", guidance_scale=1)[0].notes
    assert "no effect" in note


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions_render_too(make_engine: Callable[..., TorchEngine], dtype: str) -> None:
    render = Renderer(make_engine(device="cpu", dtype=dtype))
    first, second = render(rng="numpy")[0], render(rng="numpy")[0]
    assert first.rgb == second.rgb
    assert render.engine.describe().dtype == dtype


def test_sliced_attention_gives_the_same_picture(
    render: Renderer, make_engine: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a Mac with little memory does, here on the CPU.
    monkeypatch.setattr(torch_engine, "wants_attention_slicing", lambda device: True)
    engine = make_engine(device="cpu")
    assert engine.describe().attention_slicing
    sliced, whole = pixels(Renderer(engine)()[0].rgb), pixels(render()[0].rgb)
    assert np.abs(sliced.astype(int) - whole).max() <= 1
    with engine.residency.use(StageKey("tiny", "unet")) as unet:
        assert {type(processor).__name__ for processor in unet.attn_processors.values()} == {"SlicedAttnProcessor"}


def test_a_latent_consistency_model_equals_its_own_pipeline(tmp_path: Path) -> None:
    scheduler = diffusers.LCMScheduler(beta_schedule="scaled_linear")
    folder = models.save_sd(tmp_path / "lcm", unet={"time_cond_proj_dim": 16}, scheduler=scheduler)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "LatentConsistencyModelPipeline"))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == "LatentConsistencyModelPipeline"
    theirs = pipeline(generator=torch.Generator().manual_seed(0), guidance_scale=8.5, **CALL).images[0]
    render = Renderer(TorchEngine(lambda name, revision: folder, device="cpu"))
    ours = render(model="lcm", guidance_scale=8.5)[0]
    assert ours.rgb == theirs.tobytes()


class TestBadRequests:
    def test_a_picture_that_did_not_come(self, render: Renderer) -> None:
        with pytest.raises(errors.ImageInputError, match="did not come"):
            render(init_image="sha256:" + "0" * 64)

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"scheduler": "ddim", "num_inference_steps": 1000}, "'ddim' cannot make 1000 steps"),
            ({"num_inference_steps": 1000}, "'PNDMScheduler' cannot make 1000 steps"),
        ],
    )
    def test_steps_that_a_scheduler_cannot_make(self, render: Renderer, fields: Any, said: str) -> None:
        with pytest.raises(errors.InvalidSpecError, match=said):
            render(**fields)
        assert render.engine.describe().stages == ()

    def test_a_model_that_is_not_there(self, render: Renderer) -> None:
        with pytest.raises(errors.ModelNotFoundError):
            render(model="not-there")

    def test_a_model_for_inpainting_wants_pictures(self, tmp_path: Path) -> None:
        models.save_sd(tmp_path / "model", unet={"in_channels": 9})
        render = Renderer(TorchEngine(lambda name, revision: tmp_path / name, device="cpu"))
        render.engine.warm_up("model")
        with pytest.raises(errors.InvalidSpecError, match="made for inpainting"):
            render(model="model")
        fields = {"init_image": render.picture(INIT), "mask_image": render.picture(MASK)}
        kept = pixels(render(model="model", **fields)[0].rgb)[:, :16]
        assert np.array_equal(kept, np.asarray(INIT)[:, :16])


class TestBadPictures:
    def test_nan_is_a_failure_and_says_where(self, library: Path, tmp_path: Path) -> None:
        render = self.renderer(library, tmp_path, "unet", "conv_out.bias", float("nan"))
        with pytest.raises(errors.BadImageError, match=r"NaN after step 1 of 4 \(float32 on cpu\)"):
            render(model="broken")

    def test_infinite_pixels_do_not_pass_for_white(self, library: Path, tmp_path: Path) -> None:
        render = self.renderer(library, tmp_path, "vae", "decoder.conv_out.bias", float("inf"))
        with pytest.raises(errors.BadImageError, match="infinite values in the decoded picture"):
            render(model="broken")

    def test_all_black_is_a_failure(self, library: Path, tmp_path: Path) -> None:
        render = self.renderer(library, tmp_path, "vae", "decoder.conv_out.bias", -1e6)
        with pytest.raises(errors.BadImageError, match="all black"):
            render(model="broken")

    @staticmethod
    def renderer(library: Path, tmp_path: Path, component: str, tensor: str, value: float) -> Renderer:
        """Over a model with one tensor filled with a value."""
        shutil.copytree(library / "tiny", tmp_path / "broken")
        path = tmp_path / "broken" / component / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        weights[tensor].fill_(value)
        save_file(weights, path, {"format": "pt"})
        return Renderer(TorchEngine(lambda name, revision: tmp_path / name, device="cpu"))


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checked")
    models.save_sd(folder / "strict", threshold=-2)
    models.save_sd(folder / "lax", threshold=2)
    return folder


class TestSafetyChecker:
    def test_a_flagged_picture_is_a_failure(self, checked: Path) -> None:
        render = Renderer(TorchEngine(lambda name, revision: checked / name, device="cpu"))
        with pytest.raises(errors.SafetyFilteredError, match=r"image 0 \(seed 5\)"):
            render(model="strict", seed=5)
        assert "safety_checker" in [stage.stage for stage in render.engine.describe().stages]

    def test_off_means_not_run(self, checked: Path) -> None:
        render = Renderer(TorchEngine(lambda name, revision: checked / name, device="cpu"))
        unchecked = render(model="strict", safety_checker=False)[0].rgb
        assert "safety_checker" not in [stage.stage for stage in render.engine.describe().stages]
        assert render(model="lax")[0].rgb == unchecked


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory."),
            RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ],
    )
    def test_has_its_own_type_and_leaves_the_engine_usable(
        self, render: Renderer, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(diffusers.UNet2DConditionModel, "forward", fail)
            with pytest.raises(errors.OutOfMemoryError, match=r"memory ran out on cpu"):
                render()
        assert render()[0].rgb

    def test_while_loading_too(self, render: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(diffusers.UNet2DConditionModel, "from_config", fail)
            with pytest.raises(errors.OutOfMemoryError, match="no room for unet"):
                render()
        assert [stage.stage for stage in render.engine.describe().stages] == ["text_encoder"]
        assert render()[0].rgb

    def test_other_faults_are_named(self, render: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("something else")

        monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", fail)
        with pytest.raises(errors.RenderFailedError, match="RuntimeError: something else"):
            render()
