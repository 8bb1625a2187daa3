"""Python imports this at its start where the folder is on PYTHONPATH: what a measuring process shall believe, and do
wrong.

MEASURED_ON=mac: it is on a Mac, of which only coremltools' compiled binding is not real. MEASURED_FAULT: what happens
in this process; with ` in NAME`, only where a package lies in a folder of that name. MEASURED_READY: a pipe, to which a
process that hangs writes its number. Other processes than measuring ones are left as they are.
"""

import os
import signal
import sys
from pathlib import Path

is_meant = "renderkiln.worker.measuring.child" in sys.orig_argv
if is_meant and os.environ.get("MEASURED_ON") == "mac":
    from tests.apple.binding import Recording, install
    from tests.apple.test_plan import small_plan

    from renderkiln.worker.models import choosing
    from renderkiln.worker.runtimes.apple import system

    system.on_macos = lambda: True
    choosing._IS_MAC = True
    recording = Recording()
    install(recording)
    recording.plan = small_plan()

fault, _, where = os.environ.get("MEASURED_FAULT", "").partition(" in ") if is_meant else ("", "", "")
if fault == "hang":
    if "MEASURED_READY" in os.environ:
        Path(os.environ["MEASURED_READY"]).write_text(str(os.getpid()))
    signal.pause()
elif fault == "refused":
    print("MILCompilerForANE error: failed. Error=_ANECompiler : ANECCompile() FAILED.", file=sys.stderr)
elif fault:
    import numpy as np

    from renderkiln.worker.runtimes.reference import ReferenceRuntime

    def at_once():
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "crash":
            print("libc++abi: terminating", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT)

    class Faulty:
        """A runtime that gives a value for a picture in the place of what its model computes."""

        def __init__(self, runtime):
            self._runtime = runtime
            self.inputs, self.outputs = runtime.inputs, runtime.outputs

        def predict(self, inputs):
            at_once()
            outputs = self._runtime.predict(inputs)
            value = {"black": -1.0, "nan": np.nan}[fault]
            return {name: np.full_like(array, value) for name, array in outputs.items()}

    load = ReferenceRuntime.load

    def load_faulty(path, **options):
        runtime = load(path, **options)
        is_faulty = where in path.parts and "image" in runtime.outputs
        return Faulty(runtime) if is_faulty else runtime

    ReferenceRuntime.load = load_faulty
