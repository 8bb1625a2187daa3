"""What the supervisor costs per job: empty jobs, against RQ's own SimpleWorker.

    python -m benchmarks.overhead [--jobs 500] [--rounds 5]

RQ runs a function that returns at once. Ours is the real supervisor with its ledger, store, lease and events, and a
renderer process that answers every job at once with one picture of 64×64, which is then encoded, written, flushed and
recorded: that a job has a result at all is part of what is measured. Server, workers and their files are on this
machine; the two take turns. A job's time is from its start to the next one's. A part's time is that of the calls
named, where they run; the picture is written in a thread of its own, on which the attempt waits, as it has no other
image to render meanwhile.

Bound: the median of what ours adds is under 15 ms.
"""

from __future__ import annotations

import argparse
import functools
import json
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from typing import Any

from .demo_worker import place
from .report import machine, spread

BOUND = 15.0
WARM_UP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("rq", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(_rq(args.jobs) if args.only == "rq" else _ours(args.jobs)))
        return
    print(machine())
    bare, ours, parts = [], [], defaultdict[str, list[float]](list)
    for _ in range(args.rounds):
        bare.append(_run("rq", args.jobs)["median"])
        found = _run("ours", args.jobs)
        ours.append(found["median"])
        for name, value in found["parts"].items():
            parts[name].append(value)
    print(f"bare RQ, a job: {spread(bare, 'ms', 2)}")
    print(f"renderkiln, a job: {spread(ours, 'ms', 2)}")
    for name, values in parts.items():
        print(f"  {name:<44} {spread(values, 'ms', 2)}")
    added = statistics.median(b - a for a, b in zip(bare, ours, strict=True))
    print(f"bound: adds at most {BOUND:g} ms at the median: {added:.2f} ms, {'met' if added < BOUND else 'MISSED'}")


def _run(which: str, jobs: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.overhead", "--only", which, "--jobs", str(jobs)]
    said: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
    )
    return said


def nothing(argument: str) -> None:
    """RQ's empty job; its argument is as long as one of ours."""


def _between(starts: list[float]) -> float:
    """Median of the times from one start to the next, in milliseconds."""
    return statistics.median(1000 * (b - a) for a, b in zip(starts[WARM_UP:], starts[WARM_UP + 1 :], strict=False))


def _rq(jobs: int) -> dict[str, Any]:
    from rq import Queue, SimpleWorker
    from rq.serializers import JSONSerializer

    starts: list[float] = []

    class Timed(SimpleWorker):  # type: ignore[misc]  # RQ is untyped to us
        def execute_job(self, *args: Any, **kwargs: Any) -> None:
            starts.append(time.perf_counter())
            super().execute_job(*args, **kwargs)

    with place() as here:
        connection = here.queue.connection
        queue = Queue("bare", connection=connection, serializer=JSONSerializer)
        queue.enqueue_many([Queue.prepare_data(nothing, args=("x" * 300,)) for _ in range(jobs + WARM_UP)])
        Timed([queue], connection=connection, serializer=JSONSerializer).work(burst=True, logging_level="ERROR")
    return {"median": _between(starts)}


def _ours(jobs: int) -> dict[str, Any]:
    from renderkiln.home.connect import connect
    from renderkiln.home.ledger import Ledger
    from renderkiln.home.store import Store
    from renderkiln.worker.supervisor import child, delivery, service
    from renderkiln.worker.supervisor.rq_worker import RenderWorker

    took: dict[str, list[float]] = defaultdict(list)
    starts: list[float] = []

    def timed(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                took[part].append(time.perf_counter() - began)

        setattr(owner, name, wrapper)

    def start(*args: Any, **kwargs: Any) -> None:
        starts.append(time.perf_counter())
        execute(*args, **kwargs)

    execute = RenderWorker.execute_job
    RenderWorker.execute_job = start  # type: ignore[method-assign]
    timed(RenderWorker, "dequeue_job_and_maintain_ttl", "taking the next job from its queue")
    timed(RenderWorker, "_claim", "starting it (lease, status, event)")
    timed(RenderWorker, "_write_end", "its end in Redis (status, result, event)")
    for name in ("attempt_started", "images_of", "images_by_digest", "image_recorded", "attempt_ended"):
        timed(Ledger, name, "ledger (three changes, each flushed)")
    timed(delivery, "encode", "encoding the picture")
    timed(Store, "put", "writing it (file and folder flushed)")
    popen = subprocess.Popen

    def start_renderer(command: list[str], **kwargs: Any) -> Any:
        command = [part.replace("renderkiln.worker.renderer", "benchmarks.overhead") for part in command]
        return popen(command, **kwargs)

    child.subprocess.Popen = start_renderer  # type: ignore[misc,assignment]
    with place() as here:
        settings = here.settings.model_copy(update={"memory": "resident"})
        here.queue.submit_many({"prompt": "nothing", "seed": seed} for seed in range(jobs + WARM_UP))
        service.run_worker(settings, lambda: connect(here.settings), service.WorkerOptions(burst=True, warm="none"))
        finished = here.queue.connection.zcard("rq:finished:renderkiln:normal:shapes")
    if finished != jobs + WARM_UP:
        raise AssertionError(f"{finished} jobs were finished")
    whole = _between(starts)
    parts = {part: 1000 * sum(values) / len(starts) for part, values in took.items()}
    return {"median": whole, "parts": parts | {"the rest": whole - sum(parts.values())}}


def _render_nothing(descriptor: int, memory: int) -> None:
    """A renderer whose pictures are ready."""
    from renderkiln.schema.jobs import parse_job
    from renderkiln.worker.protocol import Done, Picture, Render

    with Connection(descriptor) as connection, socket.socket(fileno=memory):
        while True:
            try:
                order = connection.recv()
            except EOFError:
                return
            if isinstance(order, Render):
                job = parse_job(order.job_json)
                pixel = bytes(job.spec.seed.to_bytes(8, "big")[-3:])
                connection.send(Picture(0, job.spec.seed, 64, 64, pixel * 64 * 64, 0.0, 0.0))
                connection.send(Done())


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1].isdigit():  # as the supervisor starts it
        _render_nothing(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
