"""The model libraries, imported in the one order in which they keep quiet.

Progress bars and advice on standard error are not for a renderer; what matters in them comes as notes of a
picture. transformers begins to advise while diffusers imports it, so it is told first. Both import torchao where it is
installed, as it is with Core AI's converter; that tells of libraries for other machines, and torch of its classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch  # noqa: F401 -- before the levels, as it sets its own

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

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
