"""Several models that run one after another as one: the chunks of a UNet that was cut in two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from renderkiln.schema.errors import ModelLoadError

from .base import Array, Runtime, TensorInfo

Tensors = Mapping[str, TensorInfo]


class Chain:
    """A `Runtime` of runtimes: each takes what the chain is given and what those before it gave, by name.

    Raises:
        ModelLoadError: what one gives is not of the dtype that a later one takes.
    """

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._runtimes = tuple(runtimes)
        inputs, outputs = interface((runtime.inputs, runtime.outputs) for runtime in runtimes)
        self._inputs, self._outputs = MappingProxyType(inputs), MappingProxyType(outputs)

    @property
    def inputs(self) -> Tensors:
        """See `Runtime.inputs`."""
        return self._inputs

    @property
    def outputs(self) -> Tensors:
        """See `Runtime.outputs`: those of the last."""
        return self._outputs

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Runtime.predict`."""
        pool = dict(inputs)
        last: dict[str, Array] = {}
        for runtime in self._runtimes:
            last = runtime.predict({name: pool[name] for name in runtime.inputs if name in pool})
            pool.update(last)
        return last


def interface(models: Iterable[tuple[Tensors, Tensors]]) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """What a chain takes and gives, from what each of its models takes and gives.

    Raises:
        ModelLoadError: a model takes a tensor of another dtype than one before it gives, or than another takes.
    """
    inputs: dict[str, TensorInfo] = {}
    known: dict[str, TensorInfo] = {}
    outputs: dict[str, TensorInfo] = {}
    for takes, gives in models:
        for name, info in takes.items():
            before = known.setdefault(name, info)
            if before is info:
                inputs[name] = info
            elif before.dtype != info.dtype:
                raise ModelLoadError(f"{name} is {before.dtype} in one chunk and {info.dtype} in the next")
        known.update(gives)
        outputs = dict(gives)
    return inputs, outputs
