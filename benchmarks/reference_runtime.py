"""The reference runtime on a UNet of Stable Diffusion 1.5's size against the torch module that it was converted from.

Both compute in single precision, batch 2, 32×32 latents (256×256 pixels), each in a process of its own, called in turn.
The package, with random weights, is made on first use in `bench-data/` (1.7 GB; making it takes minutes and 7 GB).
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .report import machine, ratio, spread

PACKAGE = Path(__file__).parent.parent / "bench-data" / "sd15-unet-256.mlpackage"
ROUNDS = 7
LATENTS = 32
BOUND_TIME, BOUND_MEMORY = 1.3, 1.2


def main() -> None:
    if not PACKAGE.exists():
        print(f"making {PACKAGE.name} …", flush=True)
        _ask(_start("make"))
    print(machine())
    ours, theirs = _start("runtime"), _start("torch")
    loads = {name: _ask(process) for name, process in (("runtime", ours), ("torch", theirs))}
    for process in (ours, theirs):
        _order(process)  # a warm-up, which also checks every shape
        _ask(process)
    times: dict[str, list[float]] = {"runtime": [], "torch": []}
    busy: dict[str, list[float]] = {"runtime": [], "torch": []}
    for _ in range(ROUNDS):
        for name, process in (("runtime", ours), ("torch", theirs)):
            _order(process)
            answer = _ask(process)
            times[name].append(answer["seconds"])
            busy[name].append(answer["cpu"])
    ends = {}
    for name, process in (("runtime", ours), ("torch", theirs)):
        assert process.stdin is not None
        process.stdin.close()
        ends[name] = _ask(process)
        process.wait()
    print(f"torch module, eager, one call:      {spread(times['torch'])}")
    print(f"reference runtime, one call:        {spread(times['runtime'])}   {ratio(times['runtime'], times['torch'])}")
    # Where something else runs on the machine, this tells more than the time on the clock.
    print(f"torch module, processor time:       {spread(busy['torch'])}")
    print(f"reference runtime, processor time:  {spread(busy['runtime'])}   {ratio(busy['runtime'], busy['torch'])}")
    peaks = {name: end["peak"] / 2**30 for name, end in ends.items()}
    print(f"torch module, peak memory:          {peaks['torch']:.2f} GiB")
    share = peaks["runtime"] / peaks["torch"]
    print(f"reference runtime, peak memory:     {peaks['runtime']:.2f} GiB   {share:.3f} ×")
    print(
        f"loading: the package {loads['runtime']['seconds']:.1f} s; making the module {loads['torch']['seconds']:.1f} s"
    )
    print(f"PSNR of the runtime's result:       {_psnr(ends['torch']['result'], ends['runtime']['result']):.1f} dB")
    print(f"bounds: {BOUND_TIME} × the time, {BOUND_MEMORY} × the memory")


def _start(what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.reference_runtime", what]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _order(process: subprocess.Popen[str]) -> None:
    print(file=process.stdin, flush=True)


def _ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    answer = process.stdout.readline()
    if not answer:
        sys.exit(f"{process.args} ended with {process.wait()}")
    return dict(json.loads(answer))


def _psnr(want: list[float], got: list[float]) -> float:
    import numpy as np

    a, b = np.array(want), np.array(got)
    return float(10 * np.log10(np.abs(a).max() ** 2 / ((a - b) ** 2).mean()))


def _module() -> Any:
    import torch

    from renderkiln.worker.engine.libraries import diffusers

    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(sample_size=LATENTS, cross_attention_dim=768).eval()


def _inputs() -> dict[str, Any]:
    import numpy as np

    random = np.random.default_rng(0)
    return {
        "sample": random.standard_normal((2, 4, LATENTS, LATENTS)).astype(np.float16),
        "timestep": np.full((2,), 500, np.float16),
        "encoder_hidden_states": random.standard_normal((2, 77, 768)).astype(np.float16),
    }


def _make() -> None:
    import coremltools
    import numpy as np
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = _module()

        def forward(self, *arguments: torch.Tensor) -> Any:
            return self.unet(*arguments, return_dict=False)[0]

    inputs = _inputs()
    example = tuple(torch.from_numpy(array).float() for array in inputs.values())
    with torch.no_grad():
        traced = torch.jit.trace(Positional().eval(), example, check_trace=False)
    model = coremltools.convert(
        traced,
        inputs=[coremltools.TensorType(n, shape=array.shape, dtype=np.float16) for n, array in inputs.items()],
        outputs=[coremltools.TensorType("noise_pred", dtype=np.float32)],
        minimum_deployment_target=coremltools.target.macOS13,
        convert_to="mlprogram",
        skip_model_load=True,
    )
    PACKAGE.parent.mkdir(exist_ok=True)
    unfinished = PACKAGE.with_name("unfinished.mlpackage")
    model.save(str(unfinished))
    shutil.rmtree(PACKAGE, ignore_errors=True)
    unfinished.rename(PACKAGE)
    _say(made=str(PACKAGE))


def _contender(what: str) -> None:
    """Loads, then calls the model once for each line that it reads, then says how much memory it took."""
    import numpy as np

    began = time.perf_counter()
    call = _runtime() if what == "runtime" else _torch()
    _say(seconds=time.perf_counter() - began)
    inputs, result = _inputs(), np.zeros(0)
    for _ in sys.stdin:
        began, busy = time.perf_counter(), time.process_time()
        result = call(inputs)
        _say(seconds=time.perf_counter() - began, cpu=time.process_time() - busy)
    # Linux gives KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    _say(peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, result=result.reshape(-1).tolist())


def _runtime() -> Any:
    from renderkiln.worker.runtimes.reference import ReferenceRuntime

    model = ReferenceRuntime.load(PACKAGE)
    return lambda inputs: model.predict(inputs)["noise_pred"]


def _torch() -> Any:
    import torch

    module = _module()
    # What the package holds: weights in half precision.
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half())

    def call(inputs: dict[str, Any]) -> Any:
        with torch.inference_mode():
            arguments = [torch.from_numpy(array).float() for array in inputs.values()]
            return module(*arguments, return_dict=False)[0].numpy()

    return call


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["make"]:
        _make()
    elif sys.argv[1:]:
        _contender(sys.argv[1])
    else:
        main()
