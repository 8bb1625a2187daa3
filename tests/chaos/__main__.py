"""`python -m tests.chaos`: does harm to a fleet by a plan, and prints what came of it. Ends with 1 where it was bad."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .plan import make_plan, pick
from .report import as_json, as_text
from .run import Order, forget, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="what the plan and the jobs are drawn from")
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2000, help="at least so many")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--lease", type=float, default=4.0, help="seconds")
    parser.add_argument("--step", type=float, default=30.0, help="milliseconds of a step of the fake engine")
    parser.add_argument("--unlike", action="store_true", help="each host draws differently, as different chips do")
    parser.add_argument("--only", help="faults whose name holds this, in turn, instead of a mixture")
    parser.add_argument("--json", type=Path, help="a file for the same as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the folder, with logs and ledgers")
    given = parser.parse_args()
    order = Order(given.seed, given.jobs, given.workers, given.lease, given.step / 1000, given.unlike)
    if given.only:
        kinds = sorted({fault.kind for fault in make_plan(0, 1000, 1) if given.only in fault.kind})
        if not kinds:
            parser.error(f"no fault is called {given.only!r}")
        plan = pick(order.seed, [kinds[number % len(kinds)] for number in range(given.faults)], order.workers)
    else:
        plan = make_plan(order.seed, given.faults, order.workers)
    outcome = run(order, plan, lambda said: print(said, file=sys.stderr, flush=True))
    print(as_text(outcome))
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(outcome), indent=1))
    is_good = outcome.verdict.is_clean and not outcome.wrong and not outcome.crashes
    if given.keep or not is_good:
        print(f"kept: {outcome.root}")
    else:
        forget(outcome)
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
