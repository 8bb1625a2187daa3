"""The Core ML engine around its models: how soon a first picture is there, and what a step costs outside of `predict`.

    python -m benchmarks.coreml_engine [--rounds 5] [--images 9]

(a) From the start of a process to its first picture: `shapes`, converted, on the reference runtime, against `shapes` on
the torch engine, in turn, on one thread each. The file cache is warm. What a filled compile cache saves can only
be seen on a Mac.

(b) A picture of 512×512 with Stable Diffusion 1.5's shapes (latents 64×64, text 77×768, batch 2), 20 steps: all of it
is real, diffusers' loop, our adapters and `AppleRuntime`'s checks, but for Core ML itself, which gives ready arrays at
once. What is left is overhead, on one torch thread, as the engine has it on a Mac with a GPU. The bound is 3 % of 20
steps at the 7.6 a second of a Mac Studio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .report import machine, ratio, spread

STEPS, SPEED, BOUND = 20, 7.6, 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind")
    parser.add_argument("--images", type=int, default=9, help="pictures to take the overhead of")
    parser.add_argument("--child", choices=("coreml", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _first_picture(args.child, args.folder)
        return
    print(machine())
    _compare_starts(args.rounds)
    _measure_overhead(args.images)


def _compare_starts(rounds: int) -> None:
    from renderkiln.worker.demo import shapes_path

    with tempfile.TemporaryDirectory() as name:
        converted = Path(name) / "shapes"
        command = [sys.executable, "-m", "renderkiln.producer", "convert", "shapes", "-o", str(converted)]
        command += ["--stages", "text_encoder,unet,vae_decoder", "--no-check"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        folders = {"coreml": converted, "torch": shapes_path()}
        times: dict[str, dict[str, list[float]]] = {kind: {} for kind in folders}
        for round_number in range(rounds + 1):
            for kind, folder in folders.items():
                found = _start(kind, folder)
                for what, seconds in found.items() if round_number else ():  # the first round warms the file cache
                    times[kind].setdefault(what, []).append(seconds)
    for kind, title in (("torch", "torch engine"), ("coreml", "converted, reference runtime")):
        print(f"start to first picture, {title}:")
        for what, seconds in times[kind].items():
            print(f"  {what:<28} {spread(seconds)}   {ratio(seconds, times['torch'][what])}")


def _start(kind: str, folder: Path) -> dict[str, float]:
    """Seconds of a new process until its first picture, and its parts."""
    command = [sys.executable, "-m", "benchmarks.coreml_engine", "--child", kind, "--folder", str(folder)]
    began = time.perf_counter()
    # One thread for both: `shapes` is too small for more, which would measure how busy the machine is.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        answer = process.stdout.readline()
        whole = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return {"whole": whole, **json.loads(answer)}


def _first_picture(kind: str, folder: Path) -> None:
    began = time.perf_counter()
    from renderkiln.home.folder import DataFolder
    from renderkiln.worker.engine.making import EngineChoice, make_engine
    from renderkiln.worker.models.choosing import Wishes

    choice = EngineChoice(Wishes(engine=kind), device="cpu", dtype="float32")
    engine = make_engine(choice, lambda _name, _revision: folder, DataFolder(folder))
    imported = time.perf_counter()
    [image] = engine.render(_job(), {}, on_step=lambda *_: None)
    rendered = time.perf_counter()
    rest = rendered - imported - image.load_seconds
    parts = {"imports": imported - began, "loading stages": image.load_seconds, "the picture and the rest": rest}
    print(json.dumps(parts), flush=True)


def _job(scheduler: str | None = None) -> Any:
    from renderkiln.schema import JobOptions, RenderSpec, make_job

    spec = RenderSpec(prompt="a small red circle on a white background", seed=1, scheduler=scheduler)
    return make_job(spec, JobOptions(), batch="benchmark", index=0)


def _measure_overhead(images: int) -> None:
    import torch

    torch.set_num_threads(1)  # as the engine does on a Mac with a GPU
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_small_files(folder)
        core_ml = StubCoreML()
        engine = _engine(folder, core_ml)
        steps, whole, outside_loop = [], [], []
        for number in range(images + 1):
            times: list[float] = []
            core_ml.seconds = 0.0
            at_steps: list[float] = []

            def on_step(*_: int, times: list[float] = times, at_steps: list[float] = at_steps) -> None:
                times.append(time.perf_counter())
                at_steps.append(core_ml.seconds)

            began = time.perf_counter()
            [image] = engine.render(_job("dpm++ 2m"), {}, on_step=on_step)
            seconds = time.perf_counter() - began
            assert (image.width, image.height, len(times)) == (512, 512, STEPS)
            if not number:  # loads
                continue
            loop = times[-1] - times[0] - (at_steps[-1] - at_steps[0])
            steps.append(1000 * loop / (STEPS - 1))
            whole.append(1000 * (seconds - core_ml.seconds))
            outside_loop.append(whole[-1] - STEPS * steps[-1])
    a_picture = 1000 * STEPS / SPEED
    print(f"outside of predict, a step:         {spread(steps, 'ms')}")
    print(f"outside of predict, the rest:       {spread(outside_loop, 'ms', 1)}")
    print(f"outside of predict, a picture:      {spread(whole, 'ms', 1)}")
    print(f"of a picture at {SPEED} steps a second: {spread([100 * each / a_picture for each in whole], '%', 2)}")
    print(f"bound: {BOUND:.0%} of {a_picture:.0f} ms, which is {BOUND * a_picture:.0f} ms")


class StubCoreML:
    """Stands for coremltools' models: gives ready arrays, and knows how long that took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def model(self, outputs: Mapping[str, tuple[int, ...]]) -> Any:
        import numpy as np

        random = np.random.default_rng(0)
        ready = {name: random.standard_normal(shape).astype(np.float32) for name, shape in outputs.items()}
        stub = self

        class Model:
            def predict(self, _inputs: Mapping[str, Any]) -> dict[str, Any]:
                began = time.perf_counter()
                try:
                    return dict(ready)
                finally:
                    stub.seconds += time.perf_counter() - began

        return Model()


#: Of each stage, what it takes (name, dtype, shape) and gives, as Apple's converter declares it for SD 1.5 at 512².
STAGES: dict[str, tuple[tuple[tuple[str, str, tuple[int, ...]], ...], dict[str, tuple[int, ...]]]] = {
    "text_encoder": (
        (("input_ids", "float32", (1, 77)),),
        {"last_hidden_state": (1, 77, 768), "pooled_outputs": (1, 768)},
    ),
    "unet": (
        (
            ("sample", "float16", (2, 4, 64, 64)),
            ("timestep", "float16", (2,)),
            ("encoder_hidden_states", "float16", (2, 768, 1, 77)),
        ),
        {"noise_pred": (2, 4, 64, 64)},
    ),
    "vae_decoder": ((("z", "float16", (1, 4, 64, 64)),), {"image": (1, 3, 512, 512)}),
}


def _engine(folder: Path, core_ml: StubCoreML) -> Any:
    """The engine over stages whose loaders are ours, and whose adapters and runtime are the real ones."""
    from dataclasses import dataclass

    import torch

    from renderkiln.worker.engine.base import EngineInfo
    from renderkiln.worker.engine.converted.adapters import adapt
    from renderkiln.worker.engine.diffusers_engine import DiffusersEngine
    from renderkiln.worker.runtimes.apple.runtime import AppleRuntime
    from renderkiln.worker.runtimes.base import TensorInfo
    from renderkiln.worker.runtimes.manifest import PackageInfo

    @dataclass(frozen=True)
    class Loader:
        stage: str
        class_name: str
        size_bytes: int = 0

        def load(self) -> Any:
            takes, gives = STAGES[self.stage]
            info = PackageInfo(
                file=f"{self.stage}.mlpackage",
                size_bytes=0,
                sha256="0" * 64,
                inputs=tuple(TensorInfo(name=n, dtype=d, shapes=(s,)) for n, d, s in takes),  # type: ignore[arg-type]
                outputs=tuple(TensorInfo(name=n, dtype="float32", shapes=(s,)) for n, s in gives.items()),
            )
            runtime = AppleRuntime(core_ml.model(gives), info, self.stage, "cpu_and_gpu", None, 0.0)
            return adapt(self.stage, self.class_name, runtime)

    class Stages:
        info = EngineInfo("coreml", "cpu_and_gpu", "float16", attention_slicing=False)
        device = torch.device("cpu")
        sizes = ((512, 512),)
        self_test = None

        def dtype(self, _component: str, _config: Any) -> torch.dtype:
            return torch.float32

        def has(self, stage: str) -> bool:
            return stage in STAGES

        def check(self, _spec: Any) -> None:
            return

        def loader(self, stage: str, class_name: str) -> Loader:
            return Loader(stage, class_name)

    stages: Any = Stages()
    return DiffusersEngine(lambda _name, _revision: folder, lambda model, folder: stages, stages.info)


def _write_small_files(folder: Path) -> None:
    """SD 1.5's configs, with the tokenizer and the scheduler of `shapes`."""
    import shutil

    from renderkiln.worker.demo import shapes_path

    for name in ("tokenizer", "scheduler"):
        shutil.copytree(shapes_path() / name, folder / name)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    }
    configs: dict[str, dict[str, Any]] = {
        "text_encoder": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        "unet": {"sample_size": 64, "cross_attention_dim": 768},
        "vae": {"block_out_channels": [128, 256, 512, 512], "sample_size": 512},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, config in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
