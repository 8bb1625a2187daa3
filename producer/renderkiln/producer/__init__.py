"""Who asks: the client, prompt lists and the command line. Never imports a worker, torch or numpy.

Queue a job and wait for its picture:

    from renderkiln.producer import RenderQueue

    queue = RenderQueue()
    job = queue.submit(prompt="a red circle on a white background", seed=7)
    print(queue.wait(job).images[0].url)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .queue import RenderQueue, SubmittedBatch, SubmittedJob

__all__ = ["RenderQueue", "SubmittedBatch", "SubmittedJob"]


def __getattr__(name: str) -> Any:
    # The client brings redis and RQ with it; `import renderkiln.producer` alone stays light.
    if name in __all__:
        from . import queue

        return getattr(queue, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
