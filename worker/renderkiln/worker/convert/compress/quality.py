"""How near a compressed model's outputs come to those of the original: PSNR on the reference runtime, seeded inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from renderkiln.schema.errors import PredictionError

from ...runtimes.base import Array, TensorInfo
from ...runtimes.reference.graph import Graph

#: Timesteps of the schedules that Stable Diffusion is trained on.
_TIMESTEPS = 1000
_CLIP_VOCABULARY = 49408
Arrays = Mapping[str, Array]


def vocabulary(graph: Graph) -> int:
    """How many tokens a text encoder knows: the rows of its largest table that is looked up."""
    tables = [graph.constants.get(name) for node in graph.nodes if node.type == "gather" for name in node.inputs["x"]]
    rows = [table.type.static_shape[0] for table in tables if table is not None and len(table.type.static_shape) == 2]
    return max(rows, default=_CLIP_VOCABULARY)


def random_inputs(inputs: Mapping[str, TensorInfo], tokens: int, seed: int) -> dict[str, Array]:
    """Inputs as a pipeline would give them: of the declared shapes and dtypes, and of sensible ranges.

    Args:
        inputs: what the model takes.
        tokens: how many tokens it knows, if it is a text encoder.
        seed: the same seed gives the same inputs, on every system.
    """
    random = np.random.RandomState(seed)
    sample = next((info.shapes[0] for info in inputs.values() if info.name == "sample" and info.shapes), ())
    return {name: _values(info, sample, tokens, random).astype(info.dtype) for name, info in sorted(inputs.items())}


def _values(info: TensorInfo, sample: Sequence[int], tokens: int, random: np.random.RandomState) -> Array:
    if not info.shapes:
        raise PredictionError(f"the input {info.name} has no shape of its own, so that none can be made up for it")
    shape = info.shapes[0]
    if info.name == "input_ids":
        return _prompt(shape, tokens, random)
    if info.name == "timestep":
        # A pipeline gives the same to all that is computed at once. Here they are spread, early to late: which layers
        # matter depends on the step, and each item of the batch may as well tell of another one.
        count = math.prod(shape)
        return np.floor((np.arange(count) + random.uniform(size=count)) * _TIMESTEPS / count).reshape(shape)
    if info.name == "time_ids":
        # Height and width, the corner of the crop, height and width again, in pixels.
        height, width = [8 * size for size in sample[-2:]] or (1024, 1024)
        return np.broadcast_to(np.resize([height, width, 0, 0, height, width], shape[-1]), shape)
    if info.name == "controlnet_cond":
        return random.uniform(0, 1, shape)
    if info.name in ("x", "images"):
        return random.uniform(-1, 1, shape)
    if info.name.startswith("additional_residual_"):
        return 0.1 * random.standard_normal(shape)
    if info.dtype == "int32" or info.name == "adjustment":
        return np.zeros(shape)
    return random.standard_normal(shape)


def _prompt(shape: Sequence[int], tokens: int, random: np.random.RandomState) -> Array:
    """Token ids as CLIP's tokenizer gives them: a start, words, and the end token up to the last place."""
    end, start = tokens - 1, max(tokens - 2, 0)
    ids = random.randint(max(tokens - 2, 1), size=shape)
    words = random.randint(1, max(shape[-1] // 2, 2), size=shape[:-1])
    places = np.broadcast_to(np.arange(shape[-1]), shape)
    ids[places > words[..., None]] = end
    ids[places == 0] = start
    return ids


def noise(references: Sequence[Arrays], others: Sequence[Arrays]) -> dict[str, float]:
    """For each output the power of the difference over the peak of the reference squared, averaged over samples.

    Args:
        references: the original's outputs, by name, for each set of inputs.
        others: the outputs to compare, for the same sets.

    Returns:
        0 where nothing differs, infinity where an output is not finite. `planner.psnr_of` makes decibels of it.

    Raises:
        PredictionError: an output of the original is not finite, so that nothing can be compared with it.
    """
    sums: dict[str, float] = {}
    for reference, other in zip(references, others, strict=True):
        for name, expected in reference.items():
            sums[name] = sums.get(name, 0.0) + _noise(name, expected, other[name]) / len(references)
    return sums


def _noise(name: str, expected: Array, got: Array) -> float:
    if not np.isfinite(expected).all():
        raise PredictionError(f"the original's output {name} holds NaN or infinite values on random inputs")
    if not np.isfinite(got).all():
        return math.inf
    difference = float(np.mean(np.square(got.astype(np.float64) - expected)))
    peak = float(np.abs(expected.astype(np.float64)).max(initial=0.0))
    if difference == 0.0:
        return 0.0
    return difference / peak**2 if peak > 0 else math.inf
