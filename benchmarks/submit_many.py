"""`submit_many` of 10,000 specs against RQ's own `enqueue_many` of 10,000 payloads of the same size."""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path

from rq import Queue
from rq.serializers import JSONSerializer

from renderkiln.home.folder import DataFolder
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue
from renderkiln.schema import names
from renderkiln.schema.jobs import make_job, parse_request

from .report import machine, ratio, spread

COUNT, ROUNDS = 10_000, 5


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder) / "data")
        server = EmbeddedServer(DataFolder(settings.data_dir))
        queue = RenderQueue(settings=settings)
        try:
            ours, theirs = [], []
            for round_number in range(ROUNDS + 1):
                queue.connection.flushall()
                a = _ours(queue)
                queue.connection.flushall()
                b = _theirs(queue)
                if round_number:
                    ours.append(a)
                    theirs.append(b)
        finally:
            queue.close()
            server.stop()
    print(machine())
    print(f"RQ enqueue_many of {COUNT:,}: {spread(theirs)}")
    print(f"submit_many of {COUNT:,}:     {spread(ours)}   {ratio(ours, theirs)}")


def _ours(queue: RenderQueue) -> float:
    began = time.perf_counter()
    batch = queue.submit_many({"prompt": f"a red circle number {n} on a white background"} for n in range(COUNT))
    seconds = time.perf_counter() - began
    if batch.num_queued != COUNT:
        raise AssertionError(f"{batch.num_queued} of {COUNT} were queued")
    return seconds


def _theirs(queue: RenderQueue) -> float:
    """RQ alone, with payloads as large as ours: made before the clock starts, no check, no id of their own."""
    payloads = []
    for n in range(COUNT):
        spec, options = parse_request(
            {"prompt": f"a red circle number {n} on a white background", "seed": secrets.randbelow(2**32)}
        )
        payloads.append(make_job(spec, options, batch="batch-20260101-000000-abcd", index=n).to_json())
    rq = Queue("bench", connection=queue.connection, serializer=JSONSerializer)
    began = time.perf_counter()
    rq.enqueue_many([Queue.prepare_data(names.RENDER_FUNCTION, args=(payload,), timeout=-1) for payload in payloads])
    seconds = time.perf_counter() - began
    if len(rq) != COUNT:
        raise AssertionError(f"{len(rq)} of {COUNT} were queued")
    return seconds


if __name__ == "__main__":
    main()
