"""Compiles models before they are needed, each in a process of its own.

Compiling and the first load hold Python still for up to minutes, and the memory that they take comes back only with the
process's end. So the command that shows progress, and can be interrupted, starts a child for each package:
`python -m renderkiln.worker.runtimes.apple.ahead` takes one `Job` on standard input and answers with one `Answer`.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from renderkiln.schema.errors import ModelLoadError, OutOfMemoryError, RenderkilnError

from ..manifest import PackageInfo
from .cache import CompileCache
from .system import ComputeUnit, on_macos

#: Printed by the system where the Neural Engine's compiler gives up; the model then loads all the same, and is slow, or
#: ends the process that runs it (apple/coremltools#2758).
REFUSED = "ANECCompile() FAILED"
_LOG_LINES = 3


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Record):
    """One package to compile and load once."""

    path: Path
    info: PackageInfo
    compute_unit: ComputeUnit
    cache: Path


class Done(_Record):
    """It was loaded."""

    #: The seconds that compiling took; None where that had been done before.
    compiled_in: float | None
    load_seconds: float
    #: The largest resident set that the process has had.
    peak_bytes: int
    #: Whether the Neural Engine's compiler refused it.
    refused: bool = False


class Answer(_Record):
    """What the child says: that it is done, or the kind of an error of ours and its message."""

    done: Done | None = None
    kind: str = ""
    message: str = ""


def compile_ahead(job: Job) -> Done:
    """Compiles a package in a child process, and loads it once: the second half is what takes minutes for the Neural
    Engine, whose result the system keeps.

    Raises:
        ModelLoadError: as `AppleRuntime.load`, or the child died.
        OutOfMemoryError: memory ran out.
    """
    # In a session of its own: Ctrl-C is the command's to hear.
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, log = process.communicate(job.model_dump_json())
        except BaseException:
            process.kill()
            raise
    if not said:
        raise _died(job.path.name, process.returncode, log)
    answer = Answer.model_validate_json(said)
    if answer.done is None:
        raise (OutOfMemoryError if answer.kind == OutOfMemoryError.kind else ModelLoadError)(answer.message)
    return answer.done.model_copy(update={"refused": REFUSED in log})


def _died(name: str, code: int, log: str) -> RenderkilnError:
    if code == -9:
        return OutOfMemoryError(f"{name}: the process that compiled it was killed; it is likely that memory ran out")
    lines = " | ".join(log.strip().splitlines()[-_LOG_LINES:]) or "nothing on standard error"
    return ModelLoadError(f"{name}: the process that compiled it ended with {code}: {lines}")


def _child() -> None:
    # Standard output is for the answer alone; what libraries and Core ML print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer = _load(Job.model_validate_json(sys.stdin.read()))
    answers.write(answer.model_dump_json())
    answers.close()


def _load(job: Job) -> Answer:
    from .runtime import AppleRuntime

    try:
        runtime = AppleRuntime.load(job.path, job.info, compute_unit=job.compute_unit, cache=CompileCache(job.cache))
    except RenderkilnError as error:
        return Answer(kind=error.kind, message=str(error))
    # In kilobytes, but for macOS, which counts bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if on_macos() else 1024)
    done = Done(compiled_in=runtime.compiled_in, load_seconds=runtime.load_seconds, peak_bytes=peak)
    runtime.close()
    return Answer(done=done)


if __name__ == "__main__":
    _child()
