"""A recipe says how many bits each layer's weights get: by the weight's name, by a pattern, or by default.

Recipes are JSON or YAML files, written by `renderkiln recipe` and by people:

    nbits: 4                      # all that no line below names
    layers:
      conv_in_weight_to_fp16: 8   # a name as it stands in the package
      "*_attn2_to_v_*": 6         # a pattern; of several that match, the first one in the file counts
      "time_embedding_*": 16      # left alone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from renderkiln.schema.errors import RecipeError, did_you_mean

#: Bits of an index into a palette. 3 needs a package made for macOS 15 or later.
Width = Literal[1, 2, 3, 4, 6, 8]
WIDTHS: tuple[int, ...] = get_args(Width)
#: What a recipe calls a weight that stays as it is.
UNTOUCHED: Literal[16] = 16


def _whole(value: object) -> object:
    if type(value) is not int:  # to Python, True and 1.0 are equal to 1
        raise ValueError("must be a whole number")
    return value


Bits = Annotated[Literal[1, 2, 3, 4, 6, 8, 16], BeforeValidator(_whole)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^\S+$")]


class Recipe(BaseModel):
    """How many bits each layer gets."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Annotated[Literal[1], BeforeValidator(_whole)] = 1
    #: Free text: where the recipe comes from.
    note: str = Field(default="", max_length=10_000)
    #: For every layer that `layers` does not name. Without it those layers stay as they are.
    nbits: Bits = UNTOUCHED
    #: Names or patterns of weights (`*`, `?`, `[…]`), and their bits. A name counts before patterns.
    layers: dict[Pattern, Bits] = Field(default_factory=dict, max_length=100_000)

    def bits_of(self, name: str) -> int:
        """The bits of the weight of that name; `UNTOUCHED` if it stays as it is."""
        exact = self.layers.get(name)
        if exact is not None:
            return exact
        for pattern, bits in self.layers.items():
            if _is_pattern(pattern) and fnmatchcase(name, pattern):
                return bits
        return self.nbits

    def assign(self, names: Iterable[str], *, nbits: int | None = None) -> dict[str, int]:
        """The bits of each weight.

        Args:
            names: all weights that can be compressed.
            nbits: takes the place of the recipe's own default.

        Raises:
            RecipeError: a line names no weight; it would be silently without effect.
        """
        known = tuple(names)
        self.check_names(known)
        recipe = self if nbits is None else self.model_copy(update={"nbits": nbits})
        return {name: recipe.bits_of(name) for name in known}

    def check_names(self, names: Iterable[str]) -> None:
        """Raises a `RecipeError` if a line of `layers` names none of these weights."""
        known = set(names)
        for pattern in self.layers:
            if pattern in known:
                continue
            if not _is_pattern(pattern):
                hint = did_you_mean(pattern, known)
                raise RecipeError(
                    f"no weight that can be compressed is named {pattern!r}.{hint}", field=f"layers.{pattern}"
                )
            if not any(fnmatchcase(name, pattern) for name in known):
                raise RecipeError(f"no weight that can be compressed matches {pattern!r}", field=f"layers.{pattern}")


def uniform(nbits: int) -> Recipe:
    """The recipe that gives every layer the same bits.

    Raises:
        RecipeError: no palette has indices of that many bits.
    """
    if nbits not in WIDTHS:
        raise RecipeError(f"a palette's indices have {_one_of(WIDTHS)} bits, not {nbits}", field="nbits")
    return Recipe(nbits=nbits)  # type: ignore[arg-type]


def of_layers(bits: Mapping[str, int], *, note: str = "") -> Recipe:
    """The recipe that names each layer: what the planner chose."""
    return Recipe.model_validate({"note": note, "layers": dict(bits)})


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def _one_of(widths: Iterable[int]) -> str:
    *most, last = widths
    return f"{', '.join(map(str, most))} or {last}"
