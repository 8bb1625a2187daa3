"""Finds patterns of operations that one torch kernel evaluates, and puts one node in their place.

Only what means the same is fused: every value in between is read by the pattern alone, and every parameter is checked.
Results differ by rounding, so that it is for single precision only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .graph import Graph, Node, shape_of
from .weights import Constant, TensorType

_FLOATS = ("fp16", "fp32")


class Matcher:
    """A graph with what patterns ask about it: who makes a value, how often it is read, what a constant holds."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.types = graph.type_of()
        self.uses = graph.uses()
        self.makers = {value.name: node for node in graph.nodes for value in node.outputs}
        #: By the id of its last node: the node that takes a pattern's place.
        self.placed: dict[int, Node] = {}
        self.removed: set[int] = set()

    def maker(self, name: str, *types: str, uses: int = 1) -> Node | None:
        """The node that makes a value, if it is of one of these types and its value is read so often."""
        node = self.makers.get(name)
        free = node is not None and id(node) not in self.removed and id(node) not in self.placed
        if node is None or not free or node.fused or node.type not in types or len(node.outputs) != 1:
            return None
        return node if self.uses.get(name, 0) == uses else None

    def one(self, node: Node, parameter: str) -> str:
        """The name of the one value bound to a parameter, or an empty one."""
        names = node.inputs.get(parameter, ())
        return names[0] if len(names) == 1 else ""

    def constant(self, name: str) -> Any:
        constant = self.graph.constants.get(name)
        return None if constant is None else constant.value

    def parameter(self, node: Node, name: str, default: Any = None) -> Any:
        """A constant parameter's value; the default where it is absent; None where it is computed."""
        return self.constant(self.one(node, name)) if name in node.inputs else default

    def number(self, name: str) -> float | None:
        """A constant that is one number. Its declared size is looked at first: what is large is not read for this."""
        constant = self.graph.constants.get(name)
        if constant is None or constant.type.shape is None or any(size != 1 for size in constant.type.shape):
            return None
        return float(np.asarray(constant.value).reshape(-1)[0])

    def shape(self, name: str) -> tuple[int, ...] | None:
        return shape_of(self.types, name)

    def rank(self, name: str) -> int | None:
        shape = self.types[name].shape
        return None if shape is None else len(shape)

    def axes(self, node: Node, parameter: str) -> tuple[int, ...] | None:
        """Constant axes of `x`, from 0, sorted."""
        values, rank = self.parameter(node, parameter), self.rank(self.one(node, "x"))
        if values is None or rank is None:
            return None
        return tuple(sorted(int(axis) % rank for axis in np.reshape(values, -1)))

    def new_constant(self, name: str, dtype: str, value: Any) -> str:
        array = np.asarray(value)
        self.graph.constants[name] = Constant(TensorType(dtype, tuple(array.shape)), lambda: array)
        return name

    def place(self, nodes: list[Node], node: Node) -> None:
        """Puts a node where the last of these is, and takes the others out."""
        self.placed[id(nodes[-1])] = node
        self.removed.update(id(each) for each in nodes[:-1])

    def finish(self) -> None:
        kept = [node for node in self.graph.nodes if id(node) not in self.removed]
        self.graph.nodes = [self.placed.get(id(node), node) for node in kept]


def fuse(graph: Graph) -> None:
    """Fuses what can be fused, in place."""
    for pattern in _PATTERNS:
        matcher = Matcher(graph)
        for node in graph.nodes:
            if id(node) not in matcher.placed and id(node) not in matcher.removed:
                pattern(matcher, node)
        matcher.finish()


def _silu(at: Matcher, node: Node) -> None:
    """`x * sigmoid(x)`."""
    if node.type != "mul":
        return
    x, y = at.one(node, "x"), at.one(node, "y")
    for value, gate in ((x, y), (y, x)):
        sigmoid = at.maker(gate, "sigmoid")
        if sigmoid is not None and at.one(sigmoid, "x") == value:
            at.place([sigmoid, node], Node("silu", {"x": (value,)}, node.outputs, node.where))
            return


def _normalize(at: Matcher, node: Node) -> None:
    """`(x - mean) / sqrt(mean of squares + epsilon)` over some axes, spelt out."""
    if node.type not in ("real_div", "mul"):
        return
    root = at.maker(at.one(node, "y"), "sqrt" if node.type == "real_div" else "rsqrt")
    if root is None:
        return
    extra = 0.0
    if root.type == "rsqrt":
        given = at.parameter(root, "epsilon", 1e-12)
        if given is None:
            return
        extra = float(np.asarray(given).item())
    plus = at.maker(at.one(root, "x"), "add")
    if plus is None:
        return
    x, y = at.one(plus, "x"), at.one(plus, "y")
    variance, epsilon = (x, at.number(y)) if at.number(y) is not None else (y, at.number(x))
    mean_of_squares = at.maker(variance, "reduce_mean")
    if mean_of_squares is None or epsilon is None:
        return
    square = at.maker(at.one(mean_of_squares, "x"), "square", "mul", "pow")
    centered = at.one(node, "x")
    if square is None or not _is_square(at, square, centered):
        return
    # The centred value is read by the square (by a product with itself, twice) and by the division.
    minus = at.maker(centered, "sub", uses=3 if square.type == "mul" else 2)
    if minus is None:
        return
    mean = at.maker(at.one(minus, "y"), "reduce_mean")
    source = at.one(minus, "x")
    if mean is None or at.one(mean, "x") != source or at.types[source].dtype not in _FLOATS:
        return
    axes = at.axes(mean, "axes")
    keeps = [at.parameter(each, "keep_dims", False) for each in (mean, mean_of_squares)]
    if axes is None or at.axes(mean_of_squares, "axes") != axes or not all(bool(np.asarray(k)) for k in keeps):
        return
    if at.types[source].shape != at.types[node.outputs[0].name].shape:
        return
    where = node.outputs[0].name
    inputs: dict[str, tuple[str, ...]] = {
        "x": (source,),
        "axes": (at.new_constant(f"{where}.axes", "int32", np.array(axes, np.int32)),),
        "epsilon": (at.new_constant(f"{where}.epsilon", "fp32", np.float32(epsilon + extra)),),
    }
    nodes = [mean, minus, square, mean_of_squares, plus, root, node]
    at.place(nodes, Node("layer_norm", inputs, node.outputs, node.where))


def _is_square(at: Matcher, node: Node, of: str) -> bool:
    if node.type == "square":
        return at.one(node, "x") == of
    if node.type == "mul":
        return at.one(node, "x") == at.one(node, "y") == of
    return at.one(node, "x") == of and at.number(at.one(node, "y")) == 2.0


def _group_norm(at: Matcher, node: Node) -> None:
    """A normalisation of (N, groups, C / groups, …) between two reshapes from and to (N, C, …)."""
    if node.type != "reshape":
        return
    norm = at.maker(at.one(node, "x"), "layer_norm")
    if norm is None or set(norm.inputs) != {"x", "axes", "epsilon"}:
        return
    split = at.maker(at.one(norm, "x"), "reshape")
    if split is None:
        return
    source = at.one(split, "x")
    whole, parts, back = at.shape(source), at.shape(split.outputs[0].name), at.shape(node.outputs[0].name)
    if whole is None or parts is None or back != whole or len(whole) < 2 or len(parts) < 3:
        return
    fits = parts[0] == whole[0] and parts[1] * parts[2] == whole[1] and parts[3:] == whole[2:]
    # The trailing axes may also be one: (N, groups, C / groups · H · W).
    flat = len(parts) == 3 and parts[0] == whole[0] and whole[1] % parts[1] == 0 and math.prod(whole) > 0
    if not (fits or flat) or at.axes(norm, "axes") != tuple(range(2, len(parts))):
        return
    groups = at.new_constant(f"{node.outputs[0].name}.groups", "int32", np.int32(parts[1]))
    inputs = {"x": (source,), "groups": (groups,), "epsilon": norm.inputs["epsilon"]}
    at.place([split, norm, node], Node("group_norm", inputs, node.outputs, node.where, fused=True))


def _group_norm_scaled(at: Matcher, node: Node) -> None:
    """A group norm, then a batch norm with a mean of 0 and a variance of 1: a scale and a shift for each channel."""
    if node.type != "batch_norm":
        return
    source = at.one(node, "x")
    norm = at.makers.get(source)
    if norm is None or not norm.fused or norm.type != "group_norm" or at.uses[source] != 1 or "gamma" in norm.inputs:
        return
    mean, variance = at.parameter(node, "mean"), at.parameter(node, "variance")
    epsilon = at.parameter(node, "epsilon", 1e-5)
    gamma, beta = at.parameter(node, "gamma"), at.parameter(node, "beta")
    if mean is None or variance is None or epsilon is None or gamma is None or beta is None:
        return
    # scale · x + shift, whatever the numbers: all of them are constant.
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + float(np.asarray(epsilon).item()))
    shift = beta.astype(np.float64) - scale * mean.astype(np.float64)
    name = node.outputs[0].name
    inputs = {
        **norm.inputs,
        "gamma": (at.new_constant(f"{name}.gamma", "fp32", scale.astype(np.float32)),),
        "beta": (at.new_constant(f"{name}.beta", "fp32", shift.astype(np.float32)),),
    }
    at.place([norm, node], Node("group_norm", inputs, node.outputs, node.where, fused=True))


def _group_norm_affine(at: Matcher, node: Node) -> None:
    """A group norm, then a product and a sum with constants of (1, C, 1, 1)."""
    if node.type != "add":
        return
    for value, shift in (("x", "y"), ("y", "x")):
        product = at.maker(at.one(node, value), "mul")
        beta = _channel_constant(at, at.one(node, shift), at.one(node, value))
        if product is None or beta is None:
            continue
        for source, factor in (("x", "y"), ("y", "x")):
            name = at.one(product, source)
            norm = at.makers.get(name)
            gamma = _channel_constant(at, at.one(product, factor), name)
            if norm is None or not norm.fused or norm.type != "group_norm" or at.uses[name] != 1 or gamma is None:
                continue
            if "gamma" in norm.inputs:
                continue
            out = node.outputs[0].name
            inputs = {
                **norm.inputs,
                "gamma": (at.new_constant(f"{out}.gamma", "fp32", gamma),),
                "beta": (at.new_constant(f"{out}.beta", "fp32", beta),),
            }
            at.place([norm, product, node], Node("group_norm", inputs, node.outputs, node.where, fused=True))
            return


def _channel_constant(at: Matcher, name: str, beside: str) -> Any:
    """A constant that differs along axis 1 alone, as a vector of the length of that axis of `beside`."""
    constant, shape = at.graph.constants.get(name), at.shape(beside) if beside in at.types else None
    sizes = None if constant is None else constant.type.shape
    if constant is None or sizes is None or shape is None or len(shape) < 2:
        return None
    if len(sizes) not in (len(shape), len(shape) - 1):
        return None
    if (1,) * (len(shape) - len(sizes)) + sizes != (1, shape[1]) + (1,) * (len(shape) - 2):
        return None
    return np.asarray(constant.value, np.float32).reshape(-1)


def _attention(at: Matcher, node: Node) -> None:
    """`softmax(query · keyᵀ · scale + mask) · value`."""
    if node.type != "matmul" or _flag(at, node, "transpose_x") is not False:
        return
    softmax = at.maker(at.one(node, "x"), "softmax")
    if softmax is None:
        return
    logits = at.one(softmax, "x")
    if at.axes(softmax, "axis") != ((at.rank(logits) or 0) - 1,):
        return
    nodes = [softmax, node]
    mask: str | None = None
    plus = at.maker(logits, "add")
    if plus is not None:
        product_name, mask = at.one(plus, "x"), at.one(plus, "y")
        if not _is_mask(at, mask, logits) or at.types[product_name] != at.types[logits]:
            return
        nodes.insert(0, plus)
        logits = product_name
    scale = 1.0
    times = at.maker(logits, "mul")
    if times is not None:
        number = at.number(at.one(times, "y"))
        if number is None or at.rank(at.one(times, "y")) != 0:
            return
        scale = number
        nodes.insert(0, times)
        logits = at.one(times, "x")
    product = at.maker(logits, "matmul")
    if product is None or _flag(at, product, "transpose_x") is not False:
        return
    query, key, value = at.one(product, "x"), at.one(product, "y"), at.one(node, "y")
    turn_key, turn_value = _flag(at, product, "transpose_y"), _flag(at, node, "transpose_y")
    shapes = [at.types[each].shape for each in (query, key, value)]
    if turn_key is None or turn_value is None or any(shape is None or len(shape) != 4 for shape in shapes):
        return
    leads = {shape[:2] for shape in shapes if shape is not None}
    if len(leads) != 1 or any(size is None for size in next(iter(leads))):
        return
    nodes.insert(0, product)
    query, more, scaled = _scaled_query(at, query)
    out = node.outputs[0].name
    inputs: dict[str, tuple[str, ...]] = {
        "query": (query,),
        "key": (key,),
        "value": (value,),
        "scale": (at.new_constant(f"{out}.scale", "fp32", np.float32(scale * scaled)),),
        "turn_key": (at.new_constant(f"{out}.turn_key", "bool", np.bool_(not turn_key)),),
        "turn_value": (at.new_constant(f"{out}.turn_value", "bool", np.bool_(turn_value)),),
    }
    if mask is not None:
        inputs["mask"] = (mask,)
    at.place([*nodes], Node("attention", inputs, node.outputs, node.where, fused=True))
    for each, replacement in more:
        at.placed[id(each)] = replacement


def _flag(at: Matcher, node: Node, name: str) -> bool | None:
    value = at.parameter(node, name, False)
    return None if value is None else bool(np.asarray(value).item())


def _is_mask(at: Matcher, name: str, logits: str) -> bool:
    """Whether a mask is constant, fits, and hides no row as a whole (for which softmax and torch's kernel differ)."""
    value, rank = at.constant(name), at.rank(logits)
    if value is None or rank is None or not 2 <= np.ndim(value) <= rank:
        return False
    return bool(np.isfinite(np.asarray(value, np.float32).max(axis=-1)).all())


def _scaled_query(at: Matcher, query: str) -> tuple[str, list[tuple[Node, Node]], float]:
    """A query that was multiplied by a number just before it was transposed: the factor goes to the scale.

    Returns:
        The query's name, the nodes to be replaced with their replacements, and the factor.
    """
    turn = at.maker(query, "transpose")
    if turn is None:
        return query, [], 1.0
    times = at.maker(at.one(turn, "x"), "mul")
    number = None if times is None else at.number(at.one(times, "y"))
    if times is None or number is None or at.rank(at.one(times, "y")) != 0:
        return query, [], 1.0
    plain = Node("transpose", {**turn.inputs, "x": times.inputs["x"]}, turn.outputs, turn.where)
    at.removed.add(id(times))
    return query, [(turn, plain)], number


_PATTERNS: tuple[Callable[[Matcher, Node], None], ...] = (
    _silu,
    _normalize,
    _group_norm,
    _group_norm_scaled,
    _group_norm_affine,
    _attention,
)
