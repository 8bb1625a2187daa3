"""The model libraries, imported in the one order in which they keep quiet.

Progress bars and advice on standard error are not for a renderer; what matters in them comes as notes of a
picture. transformers begins to advise while diffusers imports it, so it is told first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..quiet import keep_torchao_quiet

keep_torchao_quiet()
import transformers  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

import diffusers  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

__all__ = ["diffusers", "known_warnings_ignored", "transformers"]


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """Keeps quiet what some schedulers are known to warn of on every use, and what changes no picture."""
    with warnings.catch_warnings():
        # The KDPM2 schedulers hand torch tensors to numpy functions.
        warnings.filterwarnings("ignore", "__array_wrap__ must accept context", DeprecationWarning)
        # torchsde, under DPMSolverSDE, at times rounds the ends of an interval apart, and then clips them.
        warnings.filterwarnings("ignore", "Should have t[ab]", UserWarning)
        yield
