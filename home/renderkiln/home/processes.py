"""Processes of this machine."""

from __future__ import annotations

import psutil


def is_no_more(pid: int) -> bool:
    """Whether a process of this machine has ended; also where nobody has asked how, as in a container without init."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
