"""Whether a renderer grows: 200 images in a row by one worker, with a switch between two models every 20.

    python -m benchmarks.memory_over_time [--images 200] [--every 20]

The models are the packaged `shapes` and a copy of it under another name. The list goes through the whole system (queue,
embedded server, `renderkiln worker`, ledger), once with `--memory auto` and once with `--memory jit`, each with a
worker of its own. One image of each model comes beforehand and is not among them: under auto both stay in memory, and
a second model that comes is no growth. After every 20 images, when the renderer is idle, what it holds is measured from
outside.

Bound: at the end, the renderer holds at most 3 % more than after the first 20 images.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from itertools import islice
from typing import Any

from renderkiln.worker.demo import shapes_path
from renderkiln.worker.demo.vocabulary import held_out_prompts
from renderkiln.worker.memory.process import resident_bytes

from .demo_worker import place, renderer_of
from .report import machine

COPY, MOST = "shapes-copy", 1.03
MODELS = ("shapes", COPY)


@dataclass(frozen=True)
class Found:
    """What one worker did."""

    #: What its renderer held after each turn of a model, in bytes, and the most that it held during it.
    held: list[int]
    peaks: list[int]
    loads: int
    evictions: int
    #: Process ids of its renderers.
    renderers: set[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="images between two switches of the model")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    if args.images < 2 * args.every:
        parser.error("--images: at least one switch between the models")
    print(machine())
    for policy in ("auto", "jit"):
        found = _run(policy, args.images, args.every, args.steps)
        before, first, *_, last = found.held
        print(f"--memory {policy}: {args.images} images of {args.steps} steps, a switch every {args.every}")
        print(f"  held after one image of each: {before / 1e6:.0f} MB")
        print(f"  held after each turn: {', '.join(f'{each / 1e6:.0f}' for each in found.held[1:])} MB")
        print(f"  most during a turn:   {', '.join(f'{each / 1e6:.0f}' for each in found.peaks[1:])} MB")
        print(f"  loads {found.loads}, dropped to make room {found.evictions}, renderers {len(found.renderers)}")
        verdict = "met" if last <= MOST * first else "MISSED"
        print(f"  bound: held at the end at most {MOST} × after the first turn: {last / first:.4f} ×, {verdict}")


def _run(policy: str, images: int, every: int, steps: int) -> Found:
    prompts = held_out_prompts(images)

    def request(number: int, model: str) -> dict[str, Any]:
        return {"prompt": prompts[number], "seed": number, "num_inference_steps": steps, "model": model}

    # One of each, with seeds of their own, and then the turns.
    turns = [[request(0, model) | {"seed": images} for model in MODELS]]
    turns += [
        [request(number, MODELS[turn % 2]) for number in range(begin, min(begin + every, images))]
        for turn, begin in enumerate(range(0, images, every))
    ]
    with place() as here:
        shutil.copytree(shapes_path(), here.folder.models / COPY)
        worker = here.start_worker("--memory", policy)
        held, renderers = [], set()
        try:
            for turn, requests in enumerate(turns):
                batch = here.queue.submit_many(requests, name=f"turn-{turn}")
                results = list(here.queue.as_completed(batch, timeout=60 + 30 * len(requests)))
                bad = [each for each in results if each.status.value != "finished"]
                if bad or len(results) != len(requests):
                    raise AssertionError(f"turn {turn}: {bad[:1]}; the worker said {here.said()}")
                renderers.add(renderer_of(worker))
                held.append(resident_bytes(renderer_of(worker)) or 0)
        finally:
            worker.terminate()
            worker.wait()
        attempts, _ = here.recorded()
    if len(attempts) != sum(map(len, turns)):
        raise AssertionError(f"{len(attempts)} attempts for {sum(map(len, turns))} images")
    left = iter(attempts)
    peaks = [max(each.peak_bytes or 0 for each in islice(left, len(requests))) for requests in turns]
    counted = attempts[len(turns[0]) :]
    loads, evictions = sum(each.loads or 0 for each in counted), sum(each.evictions or 0 for each in counted)
    return Found(held, peaks, loads, evictions, renderers)


if __name__ == "__main__":
    main()
