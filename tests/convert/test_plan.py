"""Plans: which stages, under which names, with which inputs, and when a stage need not be converted again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.engine import models

from renderkiln.schema.errors import BadInputError, UnsupportedModelError
from renderkiln.worker.convert.facts import ControlNetFacts, ModelFacts, ProjectionFacts
from renderkiln.worker.convert.interfaces import residual_shapes
from renderkiln.worker.convert.options import ATTENTIONS, BITS, STAGES, Lora, make_options, parse_recipe, parse_sizes
from renderkiln.worker.convert.plan import Plan, make_plan, safe_name
from renderkiln.worker.engine.libraries import diffusers

UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
}
TEXT = {"max_position_embeddings": 77, "hidden_size": 768, "projection_dim": 768}
VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "in_channels": 3}
CHECKER = {"vision_config": {"image_size": 224}}
#: The number of tensors that a Stable Diffusion 1 ControlNet gives.
RESIDUALS = 13


def sd15(**changes: Any) -> ModelFacts:
    values: dict[str, Any] = {
        "name": "someone/stable-diffusion-v1-5",
        "pipeline": "StableDiffusionPipeline",
        "family": "sd",
        "configs": {"unet": UNET, "text_encoder": TEXT, "vae": VAE, "safety_checker": CHECKER},
        "weights": {"unet": "a", "text_encoder": "b", "vae": "c", "safety_checker": "d"},
    }
    return ModelFacts(**{**values, **changes})


def sdxl(**changes: Any) -> ModelFacts:
    added = {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    configs = {
        "unet": {**UNET, **added},
        "text_encoder": TEXT,
        "text_encoder_2": {**TEXT, "projection_dim": 1280},
        "vae": {**VAE, "force_upcast": True},
    }
    return sd15(
        **{
            "family": "sdxl",
            "pipeline": "StableDiffusionXLPipeline",
            "configs": configs,
            "weights": dict.fromkeys(configs, "w"),
            **changes,
        }
    )


def plan(facts: ModelFacts | None = None, versions: dict[str, str] | None = None, **options: Any) -> Plan:
    return make_plan(facts or sd15(), make_options(**options), versions or {"coremltools": "9.0"})


def inputs(planned: Plan, stage: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    (found,) = [each for each in planned.stages if each.stage == stage]
    return {tensor.name: (tensor.dtype, tensor.shapes[0]) for tensor in found.inputs}


def test_stable_diffusion_has_apples_file_names() -> None:
    assert {each.stage: each.files for each in plan(chunk_unet=True).stages} == {
        stage: tuple(
            f"Stable_Diffusion_version_someone_stable-diffusion-v1-5_{stage}{part}.mlpackage" for part in parts
        )
        for stage, parts in {
            "text_encoder": ("",),
            "unet": ("_chunk1", "_chunk2"),
            "vae_decoder": ("",),
            "vae_encoder": ("",),
            "safety_checker": ("",),
        }.items()
    }


def test_stable_diffusion_has_apples_inputs() -> None:
    planned = plan()
    assert inputs(planned, "text_encoder") == {"input_ids": ("float32", (1, 77))}
    assert inputs(planned, "unet") == {
        "sample": ("float16", (2, 4, 64, 64)),
        "timestep": ("float16", (2,)),
        "encoder_hidden_states": ("float16", (2, 768, 1, 77)),
    }
    assert inputs(planned, "vae_decoder") == {"z": ("float16", (1, 4, 64, 64))}
    assert inputs(planned, "vae_encoder") == {"x": ("float16", (1, 3, 512, 512))}
    assert inputs(planned, "safety_checker") == {
        "clip_input": ("float16", (1, 3, 224, 224)),
        "images": ("float16", (1, 512, 512, 3)),
        "adjustment": ("float16", (1,)),
    }


def test_xl_has_apples_inputs_and_a_vae_in_single_precision() -> None:
    planned = plan(sdxl(), unet_batch_one=True)
    assert inputs(planned, "unet") == {
        "sample": ("float16", (1, 4, 128, 128)),
        "timestep": ("float16", (1,)),
        "encoder_hidden_states": ("float16", (1, 2048, 1, 77)),
        "time_ids": ("float16", (1, 6)),
        "text_embeds": ("float16", (1, 1280)),
    }
    assert inputs(planned, "vae_decoder") == {"z": ("float32", (1, 4, 128, 128))}
    outputs = {each.stage: each.outputs for each in planned.stages}
    assert outputs["text_encoder"] == outputs["text_encoder_2"] == ("hidden_embeds", "pooled_outputs")
    assert inputs(plan(sdxl(custom_vae=True)), "vae_encoder") == {"x": ("float16", (1, 3, 1024, 1024))}


def test_a_controlnet_brings_a_unet_that_takes_what_it_gives() -> None:
    facts = sd15(controlnets=(ControlNetFacts(name="some/canny", config=UNET, weights="x"),))
    planned = plan(facts)
    assert [each.stage for each in planned.stages][:4] == [
        "text_encoder",
        "control-unet",
        "controlnet-some_canny",
        "vae_decoder",
    ]
    residuals = {name for name in inputs(planned, "control-unet") if name.startswith("additional_residual_")}
    (controlnet,) = [each for each in planned.stages if each.kind == "controlnet"]
    assert set(controlnet.outputs) == residuals == {f"additional_residual_{n}" for n in range(RESIDUALS)}
    assert controlnet.files == ("ControlNet_some_canny.mlpackage",)
    assert inputs(planned, controlnet.stage)["controlnet_cond"] == ("float16", (2, 3, 512, 512))


def test_a_controlnet_of_another_kind_of_model_is_refused() -> None:
    config = {**UNET, "cross_attention_dim": 1024}
    facts = sd15(controlnets=(ControlNetFacts(name="some/canny", config=config, weights="x"),))
    with pytest.raises(BadInputError, match="another kind of model"):
        plan(facts)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (7, 9)])
def test_residuals_have_the_shapes_that_a_controlnet_gives(size: tuple[int, int]) -> None:
    unet = models.make_unet(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=2,
    )
    controlnet = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    height, width = size
    with torch.no_grad():
        down, middle = controlnet(
            torch.randn(2, 4, height, width),
            torch.tensor([1.0, 1.0]),
            torch.randn(2, 77, models.WIDTH),
            torch.rand(2, 3, 2 * height, 2 * width),
            return_dict=False,
        )
    expected = [tuple(each.shape) for each in (*down, middle)]
    assert residual_shapes(unet.config, 2, height, width) == expected


def test_several_sizes_are_in_every_input_that_has_one() -> None:
    facts = sd15(controlnets=(ControlNetFacts(name="canny", config=UNET, weights="x"),))
    planned = plan(facts, sizes=parse_sizes("512x512,768x512"), target="macOS15")
    by_stage = {each.stage: {tensor.name: tensor.shapes for tensor in each.inputs} for each in planned.stages}
    assert by_stage["control-unet"]["sample"] == ((2, 4, 64, 64), (2, 4, 64, 96))
    assert by_stage["control-unet"]["additional_residual_12"] == ((2, 1280, 8, 8), (2, 1280, 8, 12))
    assert by_stage["controlnet-canny"]["controlnet_cond"] == ((2, 3, 512, 512), (2, 3, 512, 768))
    assert by_stage["vae_encoder"]["x"] == ((1, 3, 512, 512), (1, 3, 512, 768))
    assert by_stage["text_encoder"]["input_ids"] == ((1, 77),)
    with pytest.raises(BadInputError, match="macOS15"):
        plan(facts, sizes=parse_sizes("512x512,768x512"))


def test_two_controlnets_of_one_name_are_refused() -> None:
    names = ("some/canny", "some_canny")
    facts = sd15(controlnets=tuple(ControlNetFacts(name=name, config=UNET, weights="x") for name in names))
    with pytest.raises(BadInputError, match="two of them would be called controlnet-some_canny"):
        plan(facts)


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [("text_encoder_2", ()), ("unet", ("text_encoder",)), ("controlnet", ()), ("control-unet", ())],
)
def test_a_recipe_for_a_stage_that_is_not_converted_is_refused(recipe: str, stages: tuple[str, ...]) -> None:
    with pytest.raises(BadInputError, match=f"there is one for {recipe}, which is not converted"):
        plan(sd15(recipes={recipe: "r"}), stages=stages)


def test_a_recipe_for_the_unet_is_for_that_with_a_controlnet_too() -> None:
    facts = sd15(controlnets=(ControlNetFacts(name="canny", config=UNET, weights="x"),), recipes={"unet": "r"})
    assert {each.stage: each.recipe for each in plan(facts).stages if each.recipe} == {"control-unet": True}


@pytest.mark.parametrize("sizes", ["500x512", "512x513", "8x4"])
def test_a_size_that_does_not_fit_is_refused(sizes: str) -> None:
    with pytest.raises(BadInputError, match="multiples of 8"):
        plan(sizes=parse_sizes(sizes))
    with pytest.raises(BadInputError, match="multiples of 64"):
        plan(sizes=parse_sizes(f"512x512,{sizes}"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("unet", "text_encoder_2")}, "has no text_encoder_2"),
        ({"stages": ("controlnet",)}, "needs --controlnet"),
        ({"stages": ("une",)}, "Did you mean 'unet'"),
        ({"nbits": 5}, "--nbits"),
        ({"attention": "fast"}, "--attention"),
        ({"target": "macOS12"}, "--deployment-target"),
        ({"sizes": ((512, 512), (512, 512))}, "twice"),
        ({"sizes": ((512, 512), (768, 512)), "attention": "split-einsum-v2"}, "not with v2"),
    ],
)
def test_what_does_not_fit_together_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        plan(**options)


@pytest.mark.parametrize(
    "field", [{"class_embed_type": "timestep"}, {"encoder_hid_dim": 4096}, {"addition_embed_type": "image"}]
)
def test_a_unet_with_more_inputs_than_we_know_is_refused(field: dict[str, Any]) -> None:
    facts = sd15()
    with pytest.raises(UnsupportedModelError, match="cannot be converted"):
        plan(facts.model_copy(update={"configs": {**facts.configs, "unet": {**UNET, **field}}}))


def test_a_consistency_model_keeps_its_guidance_input() -> None:
    facts = sd15()
    configs = {**facts.configs, "unet": {**UNET, "time_cond_proj_dim": 256}}
    assert inputs(plan(facts.model_copy(update={"configs": configs})), "unet")["timestep_cond"] == ("float16", (2, 256))


def test_a_projection_fits_the_unet_and_needs_macos_14() -> None:
    planned = plan(sd15(projection=ProjectionFacts(inputs=512, outputs=768, weights="p")))
    (stage,) = [each for each in planned.stages if each.kind == "multilingual_projection"]
    assert (stage.target, stage.inputs[0].shapes) == ("macOS14", ((1, 256, 512),))
    with pytest.raises(BadInputError, match="takes 768"):
        plan(sd15(projection=ProjectionFacts(inputs=512, outputs=1024, weights="p")))
    with pytest.raises(BadInputError, match="SDXL model, which wants a pooled embedding"):
        plan(sdxl().model_copy(update={"projection": ProjectionFacts(inputs=512, outputs=2048, weights="p")}))


def test_with_a_projection_unet_and_controlnets_read_the_tokens_of_the_system_s_text_encoder() -> None:
    projection = ProjectionFacts(inputs=512, outputs=768, weights="p")
    controlnet = ControlNetFacts(name="edges", config=UNET, weights="e")
    planned = plan(sd15(projection=projection, controlnets=(controlnet,)))
    for stage in ("control-unet", "controlnet-edges"):
        assert inputs(planned, stage)["encoder_hidden_states"] == ("float16", (2, 768, 1, 256))
    assert inputs(planned, "text_encoder")["input_ids"] == ("float32", (1, 77))


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "attention": st.sampled_from(ATTENTIONS),
        "unet_batch_one": st.booleans(),
        "nbits": st.sampled_from([None, *BITS]),
        "chunk_unet": st.booleans(),
        "sizes": st.sampled_from([(), ((512, 512),), ((768, 512),)]),
        "target": st.sampled_from(["macOS13", "macOS14", "macOS15"]),
        "stages": st.sets(st.sampled_from(["text_encoder", "unet", "control-unet", "vae_decoder"])).map(tuple),
    },
)


@given(options=OPTIONS)
def test_plans_are_the_same_each_time_and_name_no_file_twice(options: dict[str, Any]) -> None:
    first, second = plan(**options), plan(**options)
    assert first == second
    files = [name for stage in first.stages for name in stage.files]
    assert len(set(files)) == len(files)
    order = [STAGES.index(stage.kind) for stage in first.stages]
    assert order == sorted(order)
    assert {each.stage for each in first.stages} == set(
        options.get("stages") or ["text_encoder", "unet", "vae_decoder", "vae_encoder", "safety_checker"]
    )


@given(first=OPTIONS, second=OPTIONS)
def test_a_stage_has_the_same_digest_just_if_its_own_settings_are_the_same(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    for one in plan(**first).stages:
        for other in plan(**second).stages:
            same = one.model_copy(update={"settings_digest": ""}) == other.model_copy(update={"settings_digest": ""})
            assert (one.settings_digest == other.settings_digest) == same


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {**sd15().weights, "unet": "other"}},
        {"revision": "0123"},
        {"loras": ("l",)},
        {"recipes": {"unet": "r"}},
    ],
    ids=["weights", "revision", "lora", "recipe"],
)
def test_other_weights_mean_another_digest(change: dict[str, Any], tmp_path: Any) -> None:
    def digest(facts: ModelFacts, **options: Any) -> str:
        return next(each.settings_digest for each in plan(facts, **options).stages if each.stage == "unet")

    options = {"loras": (Lora(path=tmp_path, weight=1.0),)} if "loras" in change else {}
    assert digest(sd15(**change), **options) != digest(sd15())
    if options:
        heavier = {"loras": (Lora(path=tmp_path, weight=0.5),)}
        assert digest(sd15(**change), **options) != digest(sd15(**change), **heavier)


def test_other_libraries_mean_another_digest() -> None:
    digests = {plan(versions={"torch": version}).stages[0].settings_digest for version in ("2.12", "2.13")}
    assert len(digests) == 2


def test_only_what_apple_compresses_is_compressed() -> None:
    assert {each.stage: each.nbits for each in plan(nbits=6).stages} == {
        "text_encoder": 6,
        "unet": 6,
        "vae_decoder": None,
        "vae_encoder": None,
        "safety_checker": None,
    }
    by_stage = {each.stage: (each.nbits, each.recipe) for each in plan(sd15(recipes={"unet": "r"}), nbits=6).stages}
    assert by_stage["unet"] == (None, True)
    assert by_stage["text_encoder"] == (6, False)


@given(name=st.text(min_size=1, max_size=40))
def test_a_files_name_is_never_a_path(name: str) -> None:
    made = safe_name(name)
    assert made
    assert not made.startswith(".")
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_a_name_of_the_hub_is_written_as_apple_writes_it() -> None:
    assert safe_name("stabilityai/stable-diffusion-2-1-base") == "stabilityai_stable-diffusion-2-1-base"


@pytest.mark.parametrize("text", ["512", "512x", "axb", "512x512;", ""])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="WIDTHxHEIGHT"):
        parse_sizes(text)


def test_a_lora_has_a_weight_after_the_last_colon(tmp_path: Any) -> None:
    assert Lora.parse("a.safetensors") == Lora(path="a.safetensors", weight=1.0)
    assert Lora.parse("a.safetensors:0.8") == Lora(path="a.safetensors", weight=0.8)
    assert Lora.parse("a.safetensors:-1") == Lora(path="a.safetensors", weight=-1.0)
    odd = tmp_path / "a:5"
    odd.touch()
    assert Lora.parse(str(odd)) == Lora(path=odd, weight=1.0)
    with pytest.raises(BadInputError, match="is no number"):
        Lora.parse("a.safetensors:much")


def test_a_recipe_is_for_the_unet_unless_told() -> None:
    assert [parse_recipe(text)[0] for text in ("a.json", "text_encoder=a.json", "x=a.json")] == [
        "unet",
        "text_encoder",
        "unet",
    ]
