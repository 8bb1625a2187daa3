"""A supervisor's real loop in a process of its own, whose attempts render nothing but write down their job's id.

`python -m benchmarks.hostile_supervisor SOCKET MODEL FILE`: until SIGTERM; ends by writing a report as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import redis

from renderkiln.home.replies import bounded
from renderkiln.schema import names
from renderkiln.worker.supervisor.health import Health
from renderkiln.worker.supervisor.outcomes import Outcome
from renderkiln.worker.supervisor.refusals import Refusals
from renderkiln.worker.supervisor.rq_worker import Current, RenderWorker
from renderkiln.worker.supervisor.signals import Signals

NAME = "besieged"


def main() -> None:
    socket, model, report = sys.argv[1:]
    refusals, signals, done = Refusals(), Signals(), Path(report).with_suffix(".done").open("a")

    def attempt(current: Current) -> Outcome:
        done.write(current.job.id + "\n")
        done.flush()
        return Outcome()

    worker = RenderWorker(
        [names.queue("normal", model)],
        connection=bounded(redis.Redis(unix_socket_path=socket, socket_timeout=30)),
        name=NAME,
        attempt=attempt,
        on_ended=lambda current, outcome, status: None,
        signals=signals,
        announce=lambda state: None,
        health=Health(300.0),
        lease=4.0,
        refusals=refusals,
    )
    before = _peak()
    anew = -1
    while not worker.is_done:  # as `renderkiln worker` does: RQ's loop ends where it meets what it does not know
        anew += 1
        try:
            worker.work(logging_level="ERROR")
        except redis.RedisError as error:
            print(f"the loop ended: {error}", file=sys.stderr)
    counts = refusals.counts.model_dump()
    grown = _peak() - before
    Path(report).write_text(json.dumps({"refused": counts, "loops_anew": anew, "grown_mib": grown >> 20}))


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


if __name__ == "__main__":
    main()
