"""Whole tiny models, converted for each target and attention, against torch; also made smaller, and in chunks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine import models

from renderkiln.worker.convert.attention import rewrite_attention
from renderkiln.worker.convert.compress.coremltools_quietly import checking_itself_less
from renderkiln.worker.convert.options import Attention
from renderkiln.worker.engine.libraries import diffusers, transformers
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .programs import ct

pytestmark = [
    # torch warns of what a trace takes for constant; coremltools' conversions of numbers warn in numpy.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    # Tracing looks at every attribute of transformers' models, the deprecated ones too.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
TARGETS = {"13": ct.target.macOS13, "14": ct.target.macOS14, "15": ct.target.macOS15}
#: What half-precision weights and inputs leave, in decibels; Apple's bar is 35.
BAR = 60.0


class Call(torch.nn.Module):
    """A module by what is called on it, with positional arguments and a tuple of results."""

    def __init__(self, module: Any, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *arguments: torch.Tensor) -> Any:
        return self.call(self.module, *arguments)


def half(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers that half precision holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half().float()


def shaken(module: Any) -> Any:
    """With scales and shifts that are not those of a new module: 1 and 0 would be optimised away."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def psnr(want: Any, got: Any) -> float:
    error = float(((want - got) ** 2).mean())
    return float("inf") if error == 0 else 10 * np.log10(float(np.abs(want).max()) ** 2 / error)


def convert(
    folder: Path,
    module: Any,
    call: Callable[..., Any],
    inputs: Mapping[str, torch.Tensor],
    outputs: list[str],
    **how: Any,
) -> tuple[Path, dict[str, Any]]:
    """The package, and what torch says for these inputs."""
    wrapped = Call(shaken(module), call).eval()
    example = tuple(inputs.values())
    with torch.no_grad():
        results = wrapped(*example)
        traced = torch.jit.trace(wrapped, example, check_trace=False)
    results = results if isinstance(results, tuple) else (results,)
    wide = how.pop("wide", ())
    described = [
        ct.TensorType(name, shape=tuple(value.shape), dtype=np.float32 if name in wide else np.float16)
        for name, value in inputs.items()
    ]
    with checking_itself_less():
        model = ct.convert(
            traced,
            inputs=described,
            outputs=[ct.TensorType(name, dtype=np.float32) for name in outputs],
            convert_to="mlprogram",
            skip_model_load=True,
            **{"minimum_deployment_target": ct.target.macOS13, **how},
        )
    path = folder / "model.mlpackage"
    model.save(str(path))
    return path, {name: result.numpy() for name, result in zip(outputs, results, strict=True)}


def arrays(runtime: ReferenceRuntime, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.numpy().astype(runtime.inputs[name].dtype) for name, value in inputs.items()}


def compare(path: Path, inputs: Mapping[str, torch.Tensor], want: Mapping[str, Any], bar: float = BAR) -> None:
    """Fused, one by one, and in half-precision arithmetic."""
    for how, least in (({}, bar), ({"fuse": False}, bar), ({"arithmetic": "float16"}, min(bar, 45.0))):
        runtime = ReferenceRuntime.load(path, **how)  # type: ignore[arg-type]
        got = runtime.predict(arrays(runtime, inputs))
        assert set(got) == set(want)
        for name, expected in want.items():
            assert got[name].dtype == np.float32
            assert psnr(expected, got[name]) >= least, (how, name, psnr(expected, got[name]))


def unet_inputs(channels: int = 32, attention: Attention = "original", side: int = 16) -> dict[str, torch.Tensor]:
    context = half(2, 77, channels, seed=2)
    return {
        "sample": half(2, 4, side, side),
        "timestep": torch.tensor([801.0, 801.0]),
        "encoder_hidden_states": context if attention == "original" else context.transpose(1, 2).unsqueeze(2),
    }


def call_unet(unet: Any, *arguments: torch.Tensor) -> Any:
    return unet(*arguments, return_dict=False)[0]


@pytest.mark.parametrize(
    ("attention", "target"),
    [
        ("original", "14"),
        ("original", "15"),
        ("split-einsum", "13"),
        ("split-einsum", "15"),
        ("split-einsum-v2", "14"),
    ],
)
def test_unets(attention: Attention, target: str, tmp_path: Path) -> None:
    unet = models.make_unet(sample_size=32)
    rewrite_attention(unet, attention)
    # 1024 places: two chunks of queries where they are chunked.
    inputs = unet_inputs(attention=attention, side=32 if attention == "split-einsum-v2" else 16)
    how = {"minimum_deployment_target": TARGETS[target]}
    path, want = convert(tmp_path, unet, call_unet, inputs, ["noise_pred"], **how)
    compare(path, inputs, want)


def test_an_sdxl_unet(tmp_path: Path) -> None:
    unet = models.make_unet(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
    )
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    inputs = {**unet_inputs(64), "time_ids": sizes, "text_embeds": half(2, 32, seed=3)}

    def call(unet: Any, sample: Any, step: Any, context: Any, time_ids: Any, text_embeds: Any) -> Any:
        extra = {"time_ids": time_ids, "text_embeds": text_embeds}
        return unet(sample, step, context, added_cond_kwargs=extra, return_dict=False)[0]

    path, want = convert(tmp_path, unet, call, inputs, ["noise_pred"])
    compare(path, inputs, want)


def test_a_controlnet_and_a_unet_that_takes_its_residuals(tmp_path: Path) -> None:
    unet = models.make_unet()
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
    inputs = {**unet_inputs(), "controlnet_cond": half(2, 3, 32, 32, seed=4)}

    def call(net: Any, *arguments: Any) -> Any:
        down, middle = net(*arguments, return_dict=False)
        return (*down, middle)

    with torch.no_grad():
        residuals = call(net.eval(), *inputs.values())
    names = [f"additional_residual_{index}" for index in range(len(residuals))]
    (tmp_path / "net").mkdir()
    path, want = convert(tmp_path / "net", net, call, inputs, names)
    compare(path, inputs, want)

    def call_with(unet: Any, sample: Any, step: Any, context: Any, *rest: Any) -> Any:
        down, middle = rest[:-1], rest[-1]
        return unet(
            sample,
            step,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]

    (tmp_path / "unet").mkdir()
    given = dict(zip(names, (each.half().float() for each in residuals), strict=True))
    inputs = {**unet_inputs(), **given}
    path, want = convert(tmp_path / "unet", unet, call_with, inputs, ["noise_pred"])
    compare(path, inputs, want)


@pytest.mark.parametrize("target", ["13", "15"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_encoders(target: str, activation: str, tmp_path: Path) -> None:
    config = models.text_config(models.save_tokenizer(tmp_path / "tokenizer"))
    config._attn_implementation = "sdpa"
    config.hidden_act = activation
    encoder = transformers.CLIPTextModelWithProjection(config)
    ids = torch.randint(0, 90, (1, 77), generator=torch.Generator().manual_seed(0))
    ids[0, 20:] = config.eos_token_id

    def call(encoder: Any, ids: Any) -> Any:
        result = encoder(ids.long(), output_hidden_states=True)
        return result.hidden_states[-2], result.text_embeds

    inputs = {"input_ids": ids.float()}
    how = {"wide": ("input_ids",), "minimum_deployment_target": TARGETS[target]}
    path, want = convert(tmp_path, encoder, call, inputs, ["hidden_embeds", "pooled_outputs"], **how)
    compare(path, inputs, want)
    steps = [step.label for part in ReferenceRuntime.load(path)._parts for step in part.program.steps]
    if target == "13":
        assert sum("(attention)" in label for label in steps) == config.num_hidden_layers


@pytest.mark.parametrize("target", ["13", "15"])
def test_vaes(target: str, tmp_path: Path) -> None:
    how = {"minimum_deployment_target": TARGETS[target]}
    vae = models.make_vae()
    (tmp_path / "decoder").mkdir()
    inputs = {"z": half(1, 4, 16, 16)}
    path, want = convert(
        tmp_path / "decoder", vae, lambda vae, z: vae.decode(z, return_dict=False)[0], inputs, ["image"], **how
    )
    compare(path, inputs, want)
    (tmp_path / "encoder").mkdir()
    inputs = {"x": half(1, 3, 32, 32)}
    path, want = convert(
        tmp_path / "encoder", vae, lambda vae, x: vae.quant_conv(vae.encoder(x)), inputs, ["latent"], **how
    )
    compare(path, inputs, want)


def test_a_vae_in_single_precision(tmp_path: Path) -> None:
    inputs = {"z": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))}
    how = {"wide": ("z",), "compute_precision": ct.precision.FLOAT32}
    path, want = convert(
        tmp_path, models.make_vae(), lambda vae, z: vae.decode(z, return_dict=False)[0], inputs, ["image"], **how
    )
    compare(path, inputs, want, bar=100.0)


# coremltools tries whether a constant that marks "none" fits half precision.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning:coremltools")
def test_a_safety_checker(tmp_path: Path) -> None:
    checker = models.make_safety_checker(0.1)

    def call(checker: Any, clip: Any, images: Any, adjustment: Any) -> Any:
        normalize = torch.nn.functional.normalize
        embeds = normalize(checker.visual_projection(checker.vision_model(clip)[1]))
        special = embeds @ normalize(checker.special_care_embeds).t() - checker.special_care_embeds_weights + adjustment
        care = (special > 0).any(dim=1, keepdim=True).float() * 0.01
        scores = embeds @ normalize(checker.concept_embeds).t() - checker.concept_embeds_weights + adjustment + care
        found = (scores > 0).any(dim=1).float()
        return images * (1 - found[:, None, None, None]), found, scores

    inputs = {
        "clip_input": half(1, 3, 32, 32),
        "images": half(1, 32, 32, 3, seed=1),
        "adjustment": torch.zeros(1),
    }
    outputs = ["filtered_images", "has_nsfw_concepts", "concept_scores"]
    path, want = convert(tmp_path, checker, call, inputs, outputs)
    runtime = ReferenceRuntime.load(path)
    got = runtime.predict(arrays(runtime, inputs))
    assert psnr(want["concept_scores"], got["concept_scores"]) > BAR
    np.testing.assert_array_equal(got["has_nsfw_concepts"], want["has_nsfw_concepts"])
    np.testing.assert_allclose(got["filtered_images"], want["filtered_images"], atol=1e-3)


@pytest.fixture(scope="module")
def small_unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]]:
    inputs = unet_inputs()
    folder = tmp_path_factory.mktemp("unet")
    path, want = convert(folder, models.make_unet(), call_unet, inputs, ["noise_pred"])
    return path, inputs, want


def test_a_unet_for_the_oldest_target(small_unet: tuple[Path, dict[str, torch.Tensor], dict[str, Any]]) -> None:
    compare(*small_unet)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_palettized_unet(bits: int, small_unet: Any, tmp_path: Path) -> None:
    path, inputs, want = small_unet
    optimize = ct.optimize.coreml
    config = optimize.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=64)
    model = ct.models.MLModel(str(path), skip_model_load=True)
    smaller = optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=config))
    smaller.save(str(tmp_path / "small.mlpackage"))
    del model, smaller
    gc.collect()
    runtime = ReferenceRuntime.load(tmp_path / "small.mlpackage")
    got = runtime.predict(arrays(runtime, inputs))["noise_pred"]
    assert psnr(want["noise_pred"], got) > (30 if bits == 8 else 5)


def test_a_quantized_unet(small_unet: Any, tmp_path: Path) -> None:
    path, inputs, want = small_unet
    optimize = ct.optimize.coreml
    config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=64)
    model = ct.models.MLModel(str(path), skip_model_load=True)
    smaller = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=config))
    smaller.save(str(tmp_path / "small.mlpackage"))
    del model, smaller
    gc.collect()
    runtime = ReferenceRuntime.load(tmp_path / "small.mlpackage")
    assert psnr(want["noise_pred"], runtime.predict(arrays(runtime, inputs))["noise_pred"]) > 30


def test_a_unet_in_two_chunks(small_unet: Any, tmp_path: Path) -> None:
    path, inputs, want = small_unet
    ct.models.utils.bisect_model(
        str(path), str(tmp_path), merge_chunks_to_pipeline=True, check_output_correctness=False
    )
    gc.collect()
    [chunked] = tmp_path.glob("*.mlpackage")
    compare(chunked, inputs, want)
