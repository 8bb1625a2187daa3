"""How often the text encoder is loaded for a list of prompts, where it may not stay: one stage in memory at a time.

    python -m benchmarks.text_encoder_loads [--count 100]

A list of different prompts for the demo model, two steps each, goes through the whole system: queue, embedded server,
`renderkiln worker --memory jit --burst`, ledger. The ledger keeps how many stages an attempt loaded, not which; UNet
and VAE make way for each other and are loaded once each for every image, so that what an attempt loaded beyond two is
the text encoder. That is checked twice: in the ledger's samples of what was in memory, in which the text encoder comes
(warming up included), and against an engine in this process that is handed the same jobs, with the 48 next ones to look
at, and counts by stage. There, too, one without a look ahead shows what would be loaded.

Bound: the text encoder is loaded at most 4 times for 100 prompts.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

from renderkiln.home.memory_records import MemorySample
from renderkiln.home.settings import Settings
from renderkiln.worker.demo.vocabulary import held_out_prompts

from .demo_worker import place
from .report import machine

STEPS, MOST = 2, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="prompts")
    args = parser.parse_args()
    # `held_out_prompts` can say two drawings with the same words, which would be one encoding.
    prompts = list(dict.fromkeys(held_out_prompts(2 * args.count)))[: args.count]
    look_ahead = int(Settings.model_fields["look_ahead"].default)
    loads, seen = _through_the_system(prompts)
    print(machine())
    print(f"{len(prompts)} prompts through a worker under jit: {sum(loads)} loads")
    odd = [each for each in loads if each not in (2, 3)]
    if odd:
        raise AssertionError(f"an attempt is thought to load UNet and VAE, and the text encoder or not: {odd}")
    found = sum(each - 2 for each in loads)
    print(f"  of these, UNet and VAE, one each an image: {2 * len(loads)}; the text encoder: {found}")
    print(f"  the text encoder came into memory in the ledger's samples, warming up included: {seen}")
    print(f"an engine that is handed {look_ahead} jobs ahead: {_say(_in_process(prompts, look_ahead))}")
    print(f"an engine that is handed none:        {_say(_in_process(prompts, 0))}")
    verdict = "met" if found <= MOST else "MISSED"
    print(f"bound: the text encoder at most {MOST} times for 100 prompts: {found}, {verdict}")


def _through_the_system(prompts: list[str]) -> tuple[list[int], int]:
    """How many stages each attempt loaded, and how often the text encoder was seen to come into memory."""
    with place() as here:
        requests = [{"prompt": p, "seed": n, "num_inference_steps": STEPS} for n, p in enumerate(prompts)]
        batch = here.queue.submit_many(requests, name="text-encoder-loads")
        worker = here.start_worker("--memory", "jit", "--burst")
        try:
            code = worker.wait(timeout=60 + 10 * len(prompts))
        finally:
            worker.kill()
            worker.wait()
        bad = [each for each in here.queue.results(batch) if each.status.value != "finished"]
        attempts, samples = here.recorded()
        if code or bad or len(attempts) != len(prompts):
            raise AssertionError(f"{len(attempts)} attempts for {len(prompts)} prompts; the worker said {here.said()}")
    return [each.loads or 0 for each in attempts], _arrivals(samples)


def _arrivals(samples: list[MemorySample]) -> int:
    there = [any(stage == "text_encoder" for _, stage, _ in sample.stages) for sample in samples]
    return sum(now and not before for before, now in pairwise([False, *there]))


def _in_process(prompts: list[str], look_ahead: int) -> dict[str, int]:
    """Loads by stage of an engine under jit, each job with those after it to look at, as `supervisor.ahead` has it."""
    from renderkiln.home.folder import DataFolder
    from renderkiln.schema import JobOptions, RenderSpec, make_job
    from renderkiln.worker.demo import shapes_path
    from renderkiln.worker.engine.base import Ahead
    from renderkiln.worker.engine.making import EngineChoice, make_engine
    from renderkiln.worker.memory.planning import Rule
    from renderkiln.worker.models.choosing import Wishes

    folder = shapes_path()
    choice = EngineChoice(Wishes(engine="torch"), device="cpu")
    engine = make_engine(choice, lambda _name, _revision: folder, DataFolder(folder))
    engine.residency.set_rule(Rule("jit"))
    specs = [RenderSpec(prompt=p, seed=n, num_inference_steps=STEPS) for n, p in enumerate(prompts)]
    for number, spec in enumerate(specs):
        job = make_job(spec, JobOptions(), batch="benchmark", index=number)
        waiting = specs[number + 1 : number + 1 + look_ahead]
        for _ in engine.render(job, {}, on_step=lambda *_: None, ahead=Ahead(waiting, lambda: None)):
            pass
    return engine.residency.counts.by_stage


def _say(loads: dict[str, int]) -> str:
    return ", ".join(f"{stage} {count}" for stage, count in loads.items())


if __name__ == "__main__":
    main()
