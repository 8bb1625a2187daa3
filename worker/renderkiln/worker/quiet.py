"""Keeps quiet what libraries say at import of what they bring along. Imports none of them."""

from __future__ import annotations

import logging


def keep_torchao_quiet() -> None:
    """Before anything imports torchao: diffusers, transformers and coremltools do where it is installed.

    It comes with Core AI's converter, and tells of libraries for other machines, and torch of its classes.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)
    # torch sets this logger's level itself when it is imported; a filter stays.
    logging.getLogger("torch.utils._pytree").addFilter(_errors_alone)


def _errors_alone(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
