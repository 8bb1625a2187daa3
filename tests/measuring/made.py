"""Measurements without a machine."""

from __future__ import annotations

from typing import Any

from renderkiln.worker.measuring.records import Candidate, Failure, Measurement, Numbers


def measured(
    seconds: float, peak: int, variant: str = "original", unit: str = "cpu_and_gpu", **more: Any
) -> Measurement:
    """A form that took so many seconds a picture, and so many bytes."""
    numbers = Numbers(
        device=unit,
        dtype="float16",
        width=512,
        height=512,
        steps=20,
        load_seconds=2.5,
        first_seconds=seconds + 1,
        latencies=(seconds,),
        latency_seconds=seconds,
        iterations_per_second=20 / seconds,
        peak_bytes=peak,
        likeness=None,
        **more,
    )
    return Measurement(Candidate("coreml", variant, unit), numbers)


def failed(variant: str = "split-einsum", unit: str = "cpu_and_ne") -> Measurement:
    """A form that cannot be used."""
    return Measurement(Candidate("coreml", variant, unit), failure=Failure("bad_image", "the picture is all black"))
