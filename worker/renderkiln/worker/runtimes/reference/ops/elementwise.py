"""Element by element: arithmetic, comparisons, logic, casts, `select`, `clip`."""

from __future__ import annotations

import torch

from .registry import TORCH, Bound, Call, op

_BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "floor_div": torch.floor_divide,
    # The remainder has the divisor's sign, as torch's has and C's has not.
    "mod": torch.remainder,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}

_UNARY = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,  # halves to even
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
}


@op(*_BINARY)
def binary(call: Call) -> Bound:
    return call.bind(_BINARY[call.node.type], "x", "y")


@op("real_div")
def real_div(call: Call) -> Bound:
    call.refuse_integers()
    return call.bind(torch.div, "x", "y")


@op("pow")
def power(call: Call) -> Bound:
    return call.bind(torch.pow, "x", "y")


@op(*_UNARY)
def unary(call: Call) -> Bound:
    return call.bind(_UNARY[call.node.type], "x")


@op("log")
def log(call: Call) -> Bound:
    epsilon = call.number("epsilon", 1e-45)
    return call.bind(lambda x: torch.log(x + epsilon), "x")


@op("rsqrt")
def rsqrt(call: Call) -> Bound:
    epsilon = call.number("epsilon", 1e-12)
    return call.bind(lambda x: torch.rsqrt(x + epsilon), "x")


@op("inverse")
def inverse(call: Call) -> Bound:
    epsilon = call.number("epsilon", 1e-4)
    return call.bind(lambda x: torch.reciprocal(x + epsilon), "x")


@op("clip")
def clip(call: Call) -> Bound:
    low, high = call.number("alpha"), call.number("beta")
    return call.bind(lambda x: torch.clamp(x, low, high), "x")


@op("threshold")
def threshold(call: Call) -> Bound:
    low = call.number("alpha")
    return call.bind(lambda x: torch.clamp(x, min=low), "x")


@op("select")
def select(call: Call) -> Bound:
    return call.bind(torch.where, "cond", "a", "b")


@op("identity")
def identity(call: Call) -> Bound:
    return call.bind(lambda x: x, "x", moves=True)


_FLOATS = ("fp16", "fp32")
_CASTS = (*_FLOATS, "int8", "uint8", "int16", "uint16", "int32", "bool")


@op("cast")
def cast(call: Call) -> Bound:
    """Toward zero from floating point to whole numbers; what is not zero is true."""
    target = call.text("dtype", known=_CASTS)
    source = call.type("x").dtype
    if TORCH[target] == TORCH.get(source) and target != "uint16":
        # From single to half precision nothing happens here; it is rounded by whoever rounds all results.
        return call.bind(lambda x: x, "x", moves=target == source)
    if target == "uint16":
        return call.bind(lambda x: x.to(torch.int32) & 0xFFFF, "x")
    if target in ("int8", "uint8", "int16") and source in _FLOATS:
        # By way of a wider type: what does not fit wraps around, and torch leaves the direct way undefined.
        narrow = TORCH[target]
        return call.bind(lambda x: x.to(torch.int32).to(narrow), "x")
    carrier = TORCH[target]
    return call.bind(lambda x: x.to(carrier), "x")
