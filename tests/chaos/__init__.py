"""Fault injection: real supervisors, renderer processes, server, ledgers and store, and a fake engine alone.

`python -m tests.chaos` (`make chaos`) does harm to a fleet for some minutes, by a plan that a seed gives, and then
looks from outside whether anything was lost or done twice. `test_chaos.py` is a short piece of the same.

- `plan` says which harm comes to which worker, `harm` does it, `work` keeps the queue filled, `fleet` owns the
  processes, `proxy` is each worker's line to the server, `watch` keeps what was seen, `verdict` reads Redis, ledgers
  and store at the end, `report` prints; `run` is all of that in order.
- `nursery` is a process that forks workers: a second of imports for each of a thousand starts would take the time.
- `inside` runs in a worker's process and `engine` in its renderer's: what cannot be done to them from outside.
"""
