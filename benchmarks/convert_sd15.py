"""Converting all stages of Stable Diffusion 1.5, without the check, against tracing and `ct.convert` in one process.

The model has SD 1.5's geometry and random weights, made on first use in `bench-data/` (2.7 GB). Both sides run in
turn, on the same files, into a new folder each. The plain side's safety checker gives scores alone; ours blackens
pictures, too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .report import machine, ratio, spread

ROUNDS = 3
DATA = Path("bench-data")
MODEL = DATA / "sd15"
STAGES = "text_encoder,unet,vae_decoder,vae_encoder,safety_checker"


def main() -> None:
    make_model()
    mine, plain = [], []
    peaks: dict[str, float] = {}
    plain_peak = 0.0
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=DATA) as name:
            seconds, peaks = ours(Path(name))
            mine.append(seconds)
        with tempfile.TemporaryDirectory(dir=DATA) as name:
            seconds, plain_peak = _plain(Path(name))
            plain.append(seconds)
        print(f"  round: ours {mine[-1]:.1f} s, plain {plain[-1]:.1f} s", flush=True)
    print(machine())
    print(f"tracing and ct.convert, one process: {spread(plain, digits=1)}, peak {plain_peak:.2f} GB")
    print(f"renderkiln convert --no-check:       {spread(mine, digits=1)}   {ratio(mine, plain)}")
    for stage, peak in peaks.items():
        print(f"  peak of {stage:<28} {peak:.2f} GB")


def make_model() -> None:
    """Makes the model where it is not there yet."""
    if not (MODEL / "safety_checker").is_dir():
        subprocess.run([sys.executable, "-m", "benchmarks.convert_sd15", "--make", str(MODEL)], check=True)


def ours(out: Path, *flags: str) -> tuple[float, dict[str, float]]:
    """Seconds of a conversion of all stages, without the check, and the peak of each stage's process in GB."""
    command = [sys.executable, "-m", "renderkiln.producer", "convert", str(MODEL), "-o", str(out / "out"), *flags]
    command += ["--stages", STAGES, "--no-check", "--json"]
    began = time.perf_counter()
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    return seconds, {each["stage"]: each["peak_bytes"] / 1e9 for each in json.loads(said.stdout)["stages"]}


def _plain(out: Path) -> tuple[float, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.convert_sd15", "--plain", str(out)]
    began = time.perf_counter()
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return time.perf_counter() - began, float(said.stdout.split()[-1])


def _convert_plainly(out: Path) -> None:
    """The other contender, as its user would write it. Each model is dropped before the next one is loaded."""
    import resource

    import coremltools as ct
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
    from transformers import CLIPTextModel

    class Text(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = CLIPTextModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32)

        def forward(self, input_ids: torch.Tensor) -> Any:
            output = self.model(input_ids)
            return output.last_hidden_state, output.pooler_output

    class Unet(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = UNet2DConditionModel.from_pretrained(MODEL / "unet", torch_dtype=torch.float32)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> Any:
            return self.model(sample, timestep, text.squeeze(2).transpose(1, 2), return_dict=False)

    class Vae(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float32)

    class Decoder(Vae):
        def forward(self, z: torch.Tensor) -> Any:
            return self.model.decoder(self.model.post_quant_conv(z))

    class Encoder(Vae):
        def forward(self, x: torch.Tensor) -> Any:
            return self.model.quant_conv(self.model.encoder(x))

    class Checker(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = StableDiffusionSafetyChecker.from_pretrained(MODEL / "safety_checker", dtype=torch.float32)

        def forward(self, clip_input: torch.Tensor) -> Any:
            model = self.model
            embeddings = model.visual_projection(model.vision_model(clip_input).pooler_output)
            return cosine_distance(embeddings, model.concept_embeds) - model.concept_embeds_weights

    def convert(kind: Any, name: str, inputs: dict[str, torch.Tensor], outputs: list[str]) -> None:
        traced = torch.jit.trace(kind().eval(), tuple(inputs.values()), check_trace=False)
        model = ct.convert(
            traced,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.macOS13,
            inputs=[
                ct.TensorType(key, value.shape, dtype=np.float32 if key == "input_ids" else np.float16)
                for key, value in inputs.items()
            ],
            outputs=[ct.TensorType(key, dtype=np.float32) for key in outputs],
            skip_model_load=True,
        )
        model.save(str(out / f"{name}.mlpackage"))

    torch.set_grad_enabled(False)
    ids = torch.zeros(1, 77, dtype=torch.int32)
    convert(Text, "text_encoder", {"input_ids": ids}, ["last_hidden_state", "pooled_outputs"])
    unet = {"sample": torch.rand(2, 4, 64, 64), "timestep": torch.full((2,), 500.0)}
    convert(Unet, "unet", {**unet, "encoder_hidden_states": torch.rand(2, 768, 1, 77)}, ["noise_pred"])
    convert(Decoder, "vae_decoder", {"z": torch.rand(1, 4, 64, 64)}, ["image"])
    convert(Encoder, "vae_encoder", {"x": torch.rand(1, 3, 512, 512)}, ["latent"])
    convert(Checker, "safety_checker", {"clip_input": torch.rand(1, 3, 224, 224)}, ["concept_scores"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def write_tokenizer(folder: Path) -> None:
    """One of CLIP's size, which knows letters alone."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"<|{number}|>" for number in range(49406 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _make(folder: Path) -> None:
    """A model with SD 1.5's geometry, in half precision, under a name of its own until it is whole."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    torch.manual_seed(0)
    write_tokenizer(partial / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                projection_dim=768,
                num_hidden_layers=12,
                num_attention_heads=12,
                bos_token_id=49406,
                eos_token_id=49407,
                pad_token_id=49407,
            )
        ),
        tokenizer=CLIPTokenizer.from_pretrained(partial / "tokenizer", model_max_length=77),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=StableDiffusionSafetyChecker(
            CLIPConfig(
                projection_dim=768,
                vision_config={
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                    "image_size": 224,
                    "patch_size": 14,
                },
            )
        ),
        feature_extractor=CLIPImageProcessor(),
    ).to(torch.float16)
    pipeline.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        _convert_plainly(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--make"]:
        _make(Path(sys.argv[2]))
    else:
        main()
