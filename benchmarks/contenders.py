"""Contenders of the memory benchmarks: processes that live side by side, and render a prompt when they are told to.

    python -m benchmarks.contenders JSON    (a `Contender`; started by the benchmarks)

Each answers one order, the number of a prompt on its standard input, with one line of JSON. A process reports the most
that it ever held itself: the engine's meter resets the system's own record with every call of a stage, and so what it
found is folded together here. The parent looks from outside, 20 times a second, as a check.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Seconds between two looks at the contenders from outside.
_EVERY = 0.05
#: The number of the prompt that is for warming up; the others count from 0.
WARM_UP = -1


@dataclass(frozen=True)
class Contender:
    """How one process renders.

    Attributes:
        model: folder.
        budget_bytes: counts under the policy auto alone.
        look_ahead: prompts that wait and are handed over with each; 0: none.
        keeps: whether embeddings are kept from prompt to prompt, and stages as the policy has it; else, all that is in
            memory is dropped after every image.
    """

    name: str
    model: str
    engine: str
    policy: str
    budget_bytes: int | None = None
    look_ahead: int = 0
    keeps: bool = True
    dtype: str = "bfloat16"
    prompts: int = 20
    steps: int = 20
    size: int = 256


@dataclass
class Process:
    """A contender that lives, as its parent sees it."""

    contender: Contender
    process: subprocess.Popen[str]
    #: Bytes, before the engine was made and anything was loaded.
    empty_bytes: int = 0
    #: The most that was seen from outside, in bytes.
    sampled_bytes: int = 0
    warm_up: dict[str, Any] = field(default_factory=dict)
    #: An answer for each prompt, in their order.
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.contender.name

    def render(self, prompt: int) -> dict[str, Any]:
        """Has a prompt rendered, and waits for it."""
        answer = self._ask(str(prompt))
        if prompt == WARM_UP:
            self.warm_up = answer
        else:
            self.answers.append(answer)
        return answer

    def read(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self.process.wait()}; what it said is above")
        said: dict[str, Any] = json.loads(line)
        return said

    def _ask(self, order: str) -> dict[str, Any]:
        print(order, file=self.process.stdin, flush=True)
        return self.read()

    @property
    def peak_bytes(self) -> int:
        """The most that it ever held, by itself."""
        return max(int(each["peak_bytes"]) for each in (self.warm_up, *self.answers))

    @property
    def seconds(self) -> list[float]:
        """Of each image, in the order of the prompts."""
        return [each["seconds"] for each in self.answers]

    @property
    def processor_seconds(self) -> list[float]:
        """Of all its threads, for each image."""
        return [each["processor_seconds"] for each in self.answers]

    @property
    def loads_by_stage(self) -> dict[str, int]:
        """Of the list, without warming up."""
        before = self.warm_up["loads_by_stage"]
        return {stage: count - before.get(stage, 0) for stage, count in self.answers[-1]["loads_by_stage"].items()}

    @property
    def measured(self) -> dict[str, tuple[int, int, float]]:
        """Of each stage, as the engine measured it: bytes of weights, bytes beside them at work, seconds of a load."""
        last = (self.answers or [self.warm_up])[-1]
        return {stage: (size, working, seconds) for stage, (size, working, seconds) in last["measured"].items()}

    @property
    def largest_stage(self) -> tuple[str, int, int]:
        """The stage of the largest weights: its name, its bytes, and those of its working set."""
        stage, (size, working, _) = max(self.measured.items(), key=lambda item: item[1][0])
        return stage, size, working

    def raw(self) -> dict[str, Any]:
        """All that was measured, for a file."""
        return {
            "contender": dataclasses.asdict(self.contender),
            "empty_bytes": self.empty_bytes,
            "peak_bytes": self.peak_bytes,
            "sampled_bytes": self.sampled_bytes,
            "warm_up": self.warm_up,
            "answers": self.answers,
        }


class Arena:
    """Starts contenders and looks at them from outside; ends them when the block ends."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Arena:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._sampler.join()
        for name in list(self.processes):
            self.end(name)

    def start(self, contender: Contender) -> Process:
        """A contender that has imported what it needs, and loaded nothing."""
        command = [sys.executable, "-m", "benchmarks.contenders", json.dumps(dataclasses.asdict(contender))]
        started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process = Process(contender, started)
        self.processes[contender.name] = process
        process.empty_bytes = process.read()["empty_bytes"]
        return process

    def end(self, name: str) -> Process:
        """Ends a contender; what it measured stays with whoever has it."""
        process = self.processes.pop(name)
        process.process.stdin.close()  # type: ignore[union-attr]
        process.process.wait()
        process.process.stdout.close()  # type: ignore[union-attr]
        return process

    def _sample(self) -> None:
        from renderkiln.worker.memory.process import resident_bytes

        while not self._done.wait(_EVERY):
            for process in list(self.processes.values()):
                process.sampled_bytes = max(process.sampled_bytes, resident_bytes(process.process.pid) or 0)


def say_check(process: Process, tolerance: float = 0.03) -> str:
    """The peak as it was seen from outside, and whether it contradicts what the process says of itself.

    A look every 50 ms misses short peaks; it must never see more than the process knows of.
    """
    seen = f"{process.sampled_bytes / 1e9:.2f} GB"
    return seen if process.sampled_bytes <= (1 + tolerance) * process.peak_bytes else f"{seen}: MORE THAN IT SAYS"


def _serve(contender: Contender) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    from renderkiln.worker.importing import imports_that_stay

    with imports_that_stay():  # as a renderer has it
        from renderkiln.home.folder import DataFolder
        from renderkiln.schema import JobOptions, RenderSpec, make_job
        from renderkiln.worker.engine.base import Ahead
        from renderkiln.worker.engine.embeddings import CacheLimits, EmbeddingCache
        from renderkiln.worker.engine.making import EngineChoice, make_engine
        from renderkiln.worker.memory.planning import Rule
        from renderkiln.worker.memory.process import resident_bytes
        from renderkiln.worker.models.choosing import Wishes

    say({"empty_bytes": resident_bytes(os.getpid())})
    folder = Path(contender.model)
    wishes = Wishes(contender.engine, "auto" if contender.engine == "torch" else "reference", "auto")
    cache = EmbeddingCache(CacheLimits() if contender.keeps else CacheLimits(0))
    choice = EngineChoice(wishes, device="cpu", dtype=contender.dtype)
    engine = make_engine(choice, lambda _name, _revision: folder, DataFolder(folder), cache=cache)
    residency = engine.residency
    residency.set_rule(Rule(contender.policy, contender.budget_bytes))  # type: ignore[arg-type]

    def spec(number: int) -> RenderSpec:
        return RenderSpec(
            prompt=f"a picture of something, number {number}",
            seed=1000 + number,
            num_inference_steps=contender.steps,
            width=contender.size,
            height=contender.size,
        )

    for line in sys.stdin:
        number = int(line)
        waiting = range(number + 1, min(contender.prompts, number + 1 + contender.look_ahead))
        # A worker warms up before it knows of a job.
        ahead = Ahead([spec(each) for each in waiting], lambda: None) if waiting and number != WARM_UP else None
        job = make_job(spec(number), JobOptions(), batch="benchmark", index=max(0, number))
        before = residency.counts.copy()
        began, processor = time.perf_counter(), time.process_time()
        [image] = engine.render(job, {}, on_step=lambda *_: None, ahead=ahead)
        if not contender.keeps:
            residency.drop_all()
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        took = residency.counts.since(before)
        measured = residency.measured(job.spec.model)
        say(
            {
                "prompt": number,
                "seconds": seconds,
                "processor_seconds": processor,
                "loads": took.loads,
                "load_seconds": took.load_seconds,
                "peak_bytes": residency.take_peak(),
                "held_bytes": resident_bytes(os.getpid()),
                "loads_by_stage": residency.counts.by_stage,
                "measured": {
                    stage: (size, each.working_bytes, each.load_seconds) for stage, (size, each) in measured.items()
                },
                "values": len(set(image.rgb)),
            }
        )


if __name__ == "__main__":
    _serve(Contender(**json.loads(sys.argv[1])))
