"""What is made of Core ML's words."""

from __future__ import annotations

import pytest

from renderkiln.schema.errors import ModelLoadError, OutOfMemoryError, PredictionError
from renderkiln.worker.runtimes.apple.failures import load_failure, predict_failure, words

DUMPED = """{
    NSLocalizedDescription = "Unable to compute the prediction using ML Program. It can be an \\"invalid\\" input
 data.";
    NSUnderlyingError = "Error Domain=com.apple.CoreML Code=0 \\"(null)\\"";
}"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DUMPED, 'Unable to compute the prediction using ML Program. It can be an "invalid" input data'),
        ("{\n    NSLocalizedDescription = short;\n}", "short"),
        ("{\n    NSFilePath = x;\n}", "{ NSFilePath = x; }"),
        ('Error compiling model: "no".', 'Error compiling model: "no"'),
        ("", "RuntimeError"),
    ],
)
def test_words(text: str, said: str) -> None:
    assert words(RuntimeError(text)) == said


def test_long_words_are_cut() -> None:
    assert len(words(RuntimeError("no " * 10_000))) < 500


def test_only_words_of_memory_mean_memory() -> None:
    vague, clear = RuntimeError("Unable to compute the prediction"), RuntimeError("kIOGPU…ErrorOutOfMemory")
    assert isinstance(predict_failure(vague, "unet", "cpu_and_ne"), OutOfMemoryError)
    assert isinstance(predict_failure(clear, "unet", "cpu_and_ne"), OutOfMemoryError)
    assert isinstance(predict_failure(RuntimeError("no"), "unet", "cpu_and_ne"), PredictionError)
    assert isinstance(load_failure(clear, "unet", "cpu_and_ne"), OutOfMemoryError)
    assert isinstance(load_failure(vague, "unet", "cpu_and_ne"), ModelLoadError)


@pytest.mark.parametrize(("unit", "other"), [("cpu_and_gpu", "cpu_and_ne"), ("all", "cpu_and_gpu")])
def test_another_unit_is_proposed(unit: str, other: str) -> None:
    assert f"--compute-unit {other}" in str(load_failure(RuntimeError("no"), "unet", unit))  # type: ignore[arg-type]
