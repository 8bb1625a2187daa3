"""Lets a command that is told to end clean up behind itself."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What `kill`, a shutdown, and the closing of a terminal send.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_as_ctrl_c(left: str) -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does; what is ignored (`nohup`) stays so.

    Only the main thread can set handlers.

    Args:
        left: what an interruption leaves behind, to be said on standard error.
    """
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: {left}", file=sys.stderr)
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
