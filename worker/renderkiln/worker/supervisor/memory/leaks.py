"""Whether a renderer gives back what it has dropped: a look from outside, after each job."""

from __future__ import annotations

from typing import NamedTuple

#: Bytes of noise: what allocators, caches of kernels and the like may keep beside all else.
_NOISE = 256_000_000
#: Jobs in a row after which a renderer that holds too much is not thought to give it back.
_PATIENCE = 2


class Holding(NamedTuple):
    """What a renderer holds between two jobs, in bytes."""

    process: int
    #: Weights of the stages that are loaded.
    stages: int
    #: Of the process before it loaded anything.
    empty: int
    #: The largest working set of a stage, which an allocator may keep for the next time.
    working: int

    @property
    def excess(self) -> int:
        """What nothing accounts for."""
        return self.process - self.stages - self.working - self.empty


class LeakWatch:
    """Looks at one renderer after another."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def restarted(self) -> None:
        """There is a new renderer."""
        self._in_a_row = 0

    def judge(self, holding: Holding) -> str | None:
        """Why the renderer should be started anew, or None."""
        if holding.excess <= max(_NOISE, holding.empty // 2):
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        if self._in_a_row < _PATIENCE:
            return None
        return (
            f"it holds {holding.process / 1e9:.2f} GB, of which {holding.excess / 1e9:.2f} GB were not given back by "
            "stages that are gone"
        )
