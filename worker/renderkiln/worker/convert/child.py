"""`python -m renderkiln.worker.convert.child`: converts one stage, then ends, which is what gives its memory back.

Libraries are imported before the job is asked for: the next stage's process gets ready while a stage is at work.
It ends when its parent is gone, as nobody is left then who would want the result.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from typing import IO

from renderkiln.schema.errors import RenderkilnError

from .jobs import EVENTS, Done, Failed, Phase, StageJob


def main() -> None:
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    events = _own_standard_output()
    # Importing and converting make millions of small objects that all live to the end: looking through them again and
    # again for cycles takes a seventh of the time and finds nothing.
    gc.disable()
    from .stage_work import convert_stage  # torch, diffusers, coremltools

    line = sys.stdin.readline()
    if not line:
        return

    def tell(event: Phase | Done | Failed) -> None:
        events.write(json.dumps(EVENTS.dump_python(event, mode="json")) + "\n")
        events.flush()

    try:
        done = convert_stage(StageJob.model_validate_json(line), lambda *phase: tell(_phase(*phase)))
        tell(done)
    except RenderkilnError as error:
        tell(Failed(kind=error.kind, message=str(error)))
    except MemoryError:
        tell(Failed(kind="out_of_memory", message="there is not enough memory"))
    except OSError as error:
        # Told before anything else: the log lies on the disk that may be full.
        tell(Failed(kind="conversion", message=f"{error.strerror or error}"))


def _phase(phase: str, done: int = 0, of: int = 0) -> Phase:
    return Phase(phase=phase, done=done, of=of)


def _own_standard_output() -> IO[str]:
    """Standard output for our events alone; what libraries print goes to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
