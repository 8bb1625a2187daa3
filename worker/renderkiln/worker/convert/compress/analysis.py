"""Makes a mixed-bit recipe out of measurements: for a size, for an average number of bits, or for a quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from renderkiln.schema.errors import BadInputError

from ...runtimes.mlpackage import open_package
from ...runtimes.reference import ReferenceRuntime
from .layers import find_layers, read_graph
from .palette import Histogram
from .planner import Choice, Layer, Plan, plan_for_cost, plan_for_psnr, psnr_of
from .quality import noise, random_inputs, vocabulary
from .recipe import UNTOUCHED
from .sensitivity import LayerMeasurements, Measurements
from .targets import Target

#: Bytes that a palettized layer takes beyond its indices and its palette, at most: records in the weight file, rounding
#: to 64 bytes, and the operation in the spec, which names the layer several times.
_OVERHEAD = 1024
#: Times that a plan is made again because the noise of all layers together came out stronger than predicted.
_ROUNDS = 4
CostOf = Callable[[LayerMeasurements, int], int]


def make_plan(measurements: Measurements, widths: Sequence[int], target: Target) -> Plan:
    """The bits of each layer for a target.

    Raises:
        BadInputError: the target cannot be reached with these widths.
    """
    if target.kind == "bits":
        layers = [_layer(each, widths, lambda layer, width: layer.elements * width) for each in measurements.layers]
        return plan_for_cost(layers, int(target.value * sum(each.elements for each in measurements.layers)))
    layers = [_layer(each, widths, stored_bytes) for each in measurements.layers]
    if target.kind == "psnr":
        return plan_for_psnr(layers, target.value)
    budget = target.value if target.kind == "bytes" else target.value * measurements.package_bytes
    rest = other_bytes(measurements)
    try:
        return plan_for_cost(layers, int(budget) - rest)
    except BadInputError as error:
        least = rest + sum(min(choice.cost for choice in layer.choices) for layer in layers)
        raise BadInputError(
            f"the package cannot get smaller than {least / 1e6:,.3f} MB with these widths; {budget / 1e6:,.3f} MB were "
            f"asked for"
        ) from error


def predicted_bytes(measurements: Measurements, bits: dict[str, int]) -> int:
    """What the package will take at the most."""
    return other_bytes(measurements) + sum(stored_bytes(each, bits[each.name]) for each in measurements.layers)


def stored_bytes(layer: LayerMeasurements, width: int) -> int:
    """What a layer takes in the package, at the most."""
    if width == UNTOUCHED:
        return layer.elements * layer.itemsize
    return -(-layer.elements * width // 8) + (layer.itemsize << width) + _OVERHEAD


def other_bytes(measurements: Measurements) -> int:
    """What the package takes beside its compressible layers."""
    return measurements.package_bytes - sum(each.elements * each.itemsize for each in measurements.layers)


def _layer(layer: LayerMeasurements, widths: Sequence[int], cost: CostOf) -> Layer:
    errors: dict[int, float] = {UNTOUCHED: 0.0}
    errors.update(layer.errors)
    return Layer(layer.name, tuple(Choice(width, cost(layer, width), errors[width]) for width in widths))


class Verifier:
    """Runs a package with all its layers at planned widths at once, without writing anything."""

    def __init__(self, package: Path, samples: int, seed: int) -> None:
        graph = read_graph(open_package(package))
        self._layers = find_layers(graph)
        self._histograms: dict[str, Histogram] = {}
        self._runtime = ReferenceRuntime.load(package)
        self._inputs = [random_inputs(self._runtime.inputs, vocabulary(graph), seed + each) for each in range(samples)]
        self._references = [self._runtime.predict(each) for each in self._inputs]

    def psnr(self, bits: dict[str, int]) -> float:
        """The PSNR, in dB, of the output that suffers most."""
        weights = {}
        for name, width in bits.items():
            if width != UNTOUCHED:
                layer = self._layers[name]
                if name not in self._histograms:
                    self._histograms[name] = Histogram(layer.weight)
                weights[name] = self._histograms[name].palette(width).apply(layer.weight)
        outputs = [self._runtime.predict(each, constants=weights) for each in self._inputs]
        return psnr_of(max(noise(self._references, outputs).values()))


def plan_and_verify(
    measurements: Measurements, widths: Sequence[int], target: Target, verifier: Verifier
) -> tuple[Plan, float]:
    """A plan, and the PSNR that it comes to when all layers are compressed at once.

    A quality that is asked for is aimed at a little higher, a few times, while the measured one falls short of it.
    """
    aim = target
    plan = make_plan(measurements, widths, aim)
    measured = verifier.psnr(plan.bits)
    for _ in range(_ROUNDS):
        if target.kind != "psnr" or measured >= target.value:
            break
        aim = Target("psnr", aim.value + (target.value - measured) + 0.1)
        try:
            plan = make_plan(measurements, widths, aim)
        except BadInputError:
            break
        measured = verifier.psnr(plan.bits)
    return plan, measured
