"""What Core ML's errors mean to us.

coremltools passes them on as RuntimeErrors whose text is the error's whole dictionary, printed. There are no codes to
go by; so the words are looked at, and always repeated.
"""

from __future__ import annotations

import errno
import re

from renderkiln.schema.errors import ModelLoadError, OutOfMemoryError, PredictionError, RenderFailedError

from ...memory.words import says_out_of_memory
from .system import ComputeUnit

_DESCRIPTION = re.compile(r'NSLocalizedDescription = (?:"((?:[^"\\]|\\.)*)"|([^;\n]*));', re.DOTALL)
_LENGTH = 400
#: Said by Core ML and its compilers, beside what every library says, and there of nothing but memory.
_MORE_WORDS = ("allocat", "no memory")
#: Said of any trouble in mid-run. Our inputs were checked before, so what is left is mostly memory
#: (apple/ml-stable-diffusion#96, #100).
_VAGUE = ("error computing nn outputs", "unable to compute the")


def words(error: BaseException) -> str:
    """Core ML's own words, in one line."""
    text = str(error)
    found = _DESCRIPTION.search(text)
    if found is not None:
        text = (found[1] or found[2] or "").replace('\\"', '"')
    text = " ".join(text.split()).rstrip(".")
    return f"{text[:_LENGTH]} …" if len(text) > _LENGTH else text or type(error).__name__


def compile_failure(error: Exception, name: str, needs: str | None) -> RenderFailedError:
    """What to raise when Core ML did not compile a package.

    Args:
        needs: what the package needs of the system and this one lacks, as a sentence, where that is known.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return disk_full(name)
    if _is_memory(error):
        return _no_memory(f"{name} could not be compiled", error)
    why = needs or "Convert or download the model again; if that does not help, it is not one for this system."
    return ModelLoadError(f"Core ML could not compile {name}: {words(error)}. {why}")


def load_failure(error: Exception, name: str, unit: ComputeUnit) -> RenderFailedError:
    """What to raise when Core ML did not load a compiled model."""
    if _is_memory(error):
        return _no_memory(f"{name} could not be loaded on {unit}", error)
    other = "cpu_and_gpu" if unit != "cpu_and_gpu" else "cpu_and_ne"
    return ModelLoadError(
        f"Core ML could not load {name} on {unit}: {words(error)}. Another unit may take it (--compute-unit {other}); "
        "split-einsum variants are made for the Neural Engine, original ones for the GPU."
    )


def predict_failure(error: Exception, name: str, unit: ComputeUnit) -> RenderFailedError:
    """What to raise when Core ML did not run a loaded model."""
    if _is_memory(error):
        return _no_memory(f"{name} could not be run on {unit}", error)
    said = words(error)
    if any(mark in said.casefold() for mark in _VAGUE):
        return OutOfMemoryError(
            f"{name} could not be run on {unit}: {said}. Core ML says so mostly when memory is short: close other "
            "programs, or take a smaller or more compressed model. If it stays, try another --compute-unit."
        )
    return PredictionError(f"Core ML could not run {name} on {unit}: {said}")


def disk_full(name: str) -> ModelLoadError:
    """What to raise when there is no room for a compiled model."""
    return ModelLoadError(
        f"the disk has no room for what Core ML compiles of {name}. `renderkiln models cache list` shows what is "
        "kept, `renderkiln models cache clean --max-size 0` removes it."
    )


def _is_memory(error: Exception) -> bool:
    return says_out_of_memory(error) or any(words in str(error).casefold() for words in _MORE_WORDS)


def _no_memory(what: str, error: Exception) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"{what}: memory ran out ({words(error)}). Close other programs, or take a smaller or more compressed model."
    )
