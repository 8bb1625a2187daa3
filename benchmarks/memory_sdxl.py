"""What Stable Diffusion XL needs of memory, with every stage resident and with one stage at a time.

    python -m benchmarks.memory_sdxl [--measure]

Computed first, at 1024×1024: the weights of the base model's geometry, counted on modules that hold no values; the
working sets that are expected before anything was measured; and the planner's walk through a list of jobs. In float16
the engine holds the VAE in float32, in which its working set is twice as large; in bfloat16 it does not.

`--measure` renders, too: at 256×256, in two steps, in bfloat16, one contender after the other, each in a process of its
own, with random weights that are made on first use in `bench-data/` (7 GB of disk). That takes 9 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from renderkiln.worker.memory.planning import Policy, Rule, StageCost, StageKey, foresee
from renderkiln.worker.memory.sizes import EMPTY_RENDERER, LOAD_RATE, expected_working
from renderkiln.worker.models.weights import VAE_HALVES

from .contenders import WARM_UP, Arena, Contender, say_check
from .convert_sd15 import DATA, write_tokenizer
from .report import machine

MODEL = DATA / "sdxl"
SIDE, MEASURED_SIDE, STEPS = 1024, 256, 2
DISK, MEMORY = 7_500_000_000, 9_000_000_000
POLICIES: tuple[Policy, ...] = ("resident", "jit")

#: The configs of stabilityai/stable-diffusion-xl-base-1.0, as far as they differ from the classes' defaults.
UNET: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
_TOKENS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
CLIP_L: dict[str, Any] = {
    **_TOKENS,
    "pad_token_id": 49407,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
BIG_G: dict[str, Any] = {
    **_TOKENS,
    "pad_token_id": 1,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}
#: That the real model has.
PARAMETERS = {"text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "unet": 2_567_463_684, "vae": 83_653_863}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="render, too: 7 GB of disk, 9 GB of memory")
    parser.add_argument("--json", type=Path, help="a file for the raw numbers of what was measured")
    args = parser.parse_args()
    print(machine())
    values = _count()
    print(f"computed, {SIDE}×{SIDE}, {EMPTY_RENDERER / 1e9:.2f} GB of them the empty renderer:")
    for dtype in ("bfloat16", "float16"):
        _print_plan(values, dtype, SIDE)
    if args.measure:
        _make_sure()
        print(f"measured, {MEASURED_SIDE}×{MEASURED_SIDE}, {STEPS} steps, after what is computed for that:")
        _print_plan(values, "bfloat16", MEASURED_SIDE)
        raw = _measure()
        if args.json:
            args.json.write_text(json.dumps({"machine": machine(), "contenders": raw}, indent=1))


def _modules() -> Mapping[str, tuple[Any, Any]]:
    """Of each component, its class and what is handed to it."""
    from renderkiln.worker.engine.libraries import diffusers, transformers

    small, large = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection
    unet, vae = diffusers.UNet2DConditionModel, diffusers.AutoencoderKL
    return {
        "text_encoder": (small, lambda: small(transformers.CLIPTextConfig(**CLIP_L))),
        "text_encoder_2": (large, lambda: large(transformers.CLIPTextConfig(**BIG_G))),
        "unet": (unet, lambda: unet(**UNET)),
        "vae": (vae, lambda: vae(**VAE)),
    }


def _count() -> dict[str, int]:
    """How many values the weights of each stage are, in the order in which stages are put to work."""
    import torch

    found = {}
    for component, (_, make) in _modules().items():
        with torch.device("meta"):
            module = make()
        sizes = {name: value.numel() for name, value in module.named_parameters()}
        if sum(sizes.values()) != PARAMETERS[component]:
            raise AssertionError(f"{component} has {sum(sizes.values())} parameters, not {PARAMETERS[component]}")
        stage = "vae_decoder" if component == "vae" else component
        prefixes = VAE_HALVES.get(stage, ("",))
        found[stage] = sum(count for name, count in sizes.items() if name.startswith(prefixes))
    return found


def _costs(values: Mapping[str, int], dtype: str, side: int) -> list[StageCost]:
    found = []
    for stage, count in values.items():
        wide = 2 if dtype == "float16" and stage in VAE_HALVES else 1
        size = 2 * count * wide
        working = expected_working(stage, 2 * count, side * side) * wide
        # Text encoders are needed once for many jobs.
        uses = 0.0 if stage.startswith("text_encoder") else 1.0
        found.append(StageCost(StageKey("sdxl", stage), size, working, size / LOAD_RATE, uses))
    return found


def _print_plan(values: Mapping[str, int], dtype: str, side: int) -> None:
    costs = _costs(values, dtype, side)
    resident, jit = (foresee(costs, Rule(policy), EMPTY_RENDERER) for policy in POLICIES)
    print(
        f"  {dtype}: resident {resident.peak_bytes / 1e9:.2f} GB, jit {jit.peak_bytes / 1e9:.2f} GB, "
        f"{jit.peak_bytes / resident.peak_bytes:.3f} ×; jit loads {', '.join(key.stage for key in jit.loads)} "
        "for every job after the first"
    )
    for each in costs:
        print(f"    {each.key.stage:<15} {each.size_bytes / 1e9:.2f} GB, {each.working_bytes / 1e9:.2f} GB at work")


def _measure() -> list[dict[str, Any]]:
    """Prints and gives what the contenders took, one after the other: both at once would be too much for many."""
    peaks, raw = {}, []
    for policy in POLICIES:
        with Arena() as arena:
            contender = Contender(
                policy, str(MODEL), "torch", policy, prompts=1, steps=STEPS, size=MEASURED_SIDE, dtype="bfloat16"
            )
            process = arena.start(contender)
            process.render(WARM_UP)
            process.render(0)
            arena.end(policy)
        peaks[policy] = process.peak_bytes
        raw.append(process.raw())
        print(f"  {policy:<9} peak {process.peak_bytes / 1e9:.2f} GB (from outside {say_check(process)})", flush=True)
        for stage, (size, working, seconds) in process.measured.items():
            print(f"    {stage:<15} {size / 1e9:.2f} GB, {working / 1e9:.2f} GB at work, {seconds:.1f} s to load")
    print(f"  jit against resident: {peaks['jit'] / peaks['resident']:.3f} ×")
    return raw


def _make_sure() -> None:
    """Makes the model where it is not there yet; ends with a sentence where there is no room."""
    available = psutil.virtual_memory().available
    if available < MEMORY:
        sys.exit(f"--measure takes {MEMORY / 1e9:.0f} GB of memory, and {available / 1e9:.1f} GB are available")
    if MODEL.is_dir():
        return
    DATA.mkdir(exist_ok=True)
    free = shutil.disk_usage(DATA).free
    if free < DISK:
        sys.exit(f"--measure makes {DISK / 1e9:.1f} GB of weights in {MODEL}, and {free / 1e9:.1f} GB are free there")
    _make(MODEL)


def _make(folder: Path) -> None:
    """A model of that geometry, in half precision; under a name of its own until it is whole."""
    import torch

    from renderkiln.worker.engine.libraries import diffusers

    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        for component, (kind, make) in _modules().items():
            print(f"  making {component}", flush=True)
            module = make().to(torch.float16)
            module.save_pretrained(partial / component)
            del module  # one at a time
            index[component] = ["diffusers" if component in ("unet", "vae") else "transformers", kind.__name__]
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(partial / name)
        (partial / name / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
        index[name] = ["transformers", "CLIPTokenizer"]
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.save_pretrained(partial / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (partial / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


if __name__ == "__main__":
    main()
