"""The one face of a converted model, whichever runtime is behind it.

A runtime takes and gives numpy arrays by name. Names, shapes and dtypes are strict: what does not fit is an error and
is never reshaped, cast or guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:  # manifests are read where numpy is not installed, too
    from numpy.typing import NDArray

#: The element types that Core ML declares for inputs and outputs.
DType = Literal["float16", "float32", "int32"]
#: What computes: Core ML's own names, or `reference`, our evaluator on the CPU, which is all there is elsewhere.
ComputeUnit = Literal["cpu_and_ne", "cpu_and_gpu", "cpu_only", "all", "reference"]
Shape = tuple[int, ...]
Array: TypeAlias = "NDArray[Any]"


class TensorInfo(BaseModel):
    """One input or output of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: DType
    #: The shapes that it may have, the default one first. Outputs whose shape follows from the inputs' may have none.
    shapes: tuple[Shape, ...] = Field(default=())

    def complaint(self, array: Array) -> str | None:
        """What is wrong with an array that is meant for this tensor, or None."""
        if array.dtype.name != self.dtype or not array.dtype.isnative:
            return f"{self.name} must be {self.dtype}, and is {array.dtype}"
        if self.shapes and tuple(array.shape) not in self.shapes:
            known = " or ".join(str(shape) for shape in self.shapes)
            return f"{self.name} must be of shape {known}, and is {tuple(array.shape)}"
        return None


class Runtime(Protocol):
    """One loaded model."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """What `predict` takes, by name."""

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """What `predict` gives, by name."""

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the model once.

        Args:
            inputs: an array for each of `inputs`, of its dtype and of one of its shapes.

        Returns:
            An array for each of `outputs`, of its dtype.

        Raises:
            PredictionError: an input is missing, unknown, or does not fit; or the model cannot be evaluated.
        """
