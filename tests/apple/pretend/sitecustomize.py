"""Python imports this at its start where the folder is on PYTHONPATH: a process that a test starts believes, too, that
it is on a Mac. PRETEND_FAULT holds what its Core ML does wrong.
"""

import os
import sys

from tests.apple.binding import Recording, core_ml_error, install

recording = Recording()
fault = os.environ.get("PRETEND_FAULT", "")
if fault == "refused":
    print("MILCompilerForANE error: failed. Error=_ANECompiler : ANECCompile() FAILED.", file=sys.stderr)
elif fault == "killed":
    os.kill(os.getpid(), 9)
elif fault == "aborted":
    print("libc++abi: terminating", file=sys.stderr)
    sys.stderr.flush()
    os._exit(134)
elif fault:
    recording.faults["load"] = [core_ml_error(fault)]
install(recording)
