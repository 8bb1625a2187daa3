"""The little language inside prompts: `{red|green} hat` and `__colors__`.

    {red|green|}     one of the alternatives; they may be empty, and hold further braces and wildcards
    __colors__       one of the lines of colors.txt in the folder of wildcards; __trees/oak__ is trees/oak.txt
    \\{  \\}  \\|  \\__  the characters themselves; any other backslash stays as it is

Everything else is text, `(word:1.2)` and `[a|b]` too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

MAX_DEPTH = 32

_SPECIAL = re.compile(r"\\__|\\[{}|]|[{}|]|__(?![\s_])([\w ./\\:~*-]{1,200}?)(?<!\s)__")
_SPECIAL_TEXT = re.compile(r"[{}|]|__")
_WEIGHT = re.compile(r"\s*\d+(\.\d+)?::")
_SEVERAL = re.compile(r"\s*[\d-]*\$\$")


class TemplateError(Exception):
    """Raised when a template cannot be read; `at` is the offset of the character that is wrong."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True, eq=False)
class Choice:
    """One of several templates."""

    options: tuple[Template, ...]


@dataclass(frozen=True)
class Wildcard:
    """A line of a file; `at` is where the name stands in the template."""

    name: str
    at: int


Template: TypeAlias = "tuple[str | Choice | Wildcard, ...]"


def parse(text: str) -> Template:
    """A template from its text.

    Raises:
        TemplateError: a brace is not matched, alternatives are nested too deeply, or hold what Dynamic
        Prompts
            reads and we do not.
    """
    #: The alternatives being read: where each opened, those complete, and the one in the making.
    stack: list[tuple[int, list[Template], list[str | Choice | Wildcard]]] = [(-1, [], [])]
    at = 0
    for match in _SPECIAL.finditer(text):
        opened, options, parts = stack[-1]
        if match.start() > at:
            parts.append(text[at : match.start()])
        found, at = match.group(), match.end()
        if found == "{":
            if len(stack) > MAX_DEPTH:
                raise TemplateError(f"braces nested more than {MAX_DEPTH} deep", match.start())
            if text.endswith("$", 0, match.start()):
                raise TemplateError("variables (${…}) are not read; write $\\{ for the characters", match.start())
            _refuse_unread(text, at)
            stack.append((match.start(), [], []))
        elif found == "|" and opened >= 0:
            _refuse_unread(text, at)
            options.append(tuple(parts))
            parts.clear()
        elif found == "}":
            if opened < 0:
                raise TemplateError("'}' without a '{' before it; write \\} for the character", match.start())
            stack.pop()
            stack[-1][2].append(Choice((*options, tuple(parts))))
        elif match.group(1):
            parts.append(Wildcard(match.group(1), match.start()))
        else:
            parts.append(found if found == "|" else found[1:])
    if at < len(text):
        stack[-1][2].append(text[at:])
    if len(stack) > 1:
        raise TemplateError("'{' is not closed; write \\{ for the character", stack[-1][0])
    return tuple(stack[0][2])


def is_plain(text: str) -> bool:
    """Whether a text has nothing that `parse` would take for more than text."""
    return "{" not in text and "}" not in text and "__" not in text and "\\" not in text


def escape(text: str) -> str:
    """The template that stands for this text."""
    return _SPECIAL_TEXT.sub(r"\\\g<0>", text)


def _refuse_unread(text: str, at: int) -> None:
    if _WEIGHT.match(text, at):
        raise TemplateError("weights (3::red) are not read; write an alternative several times instead", at)
    if _SEVERAL.match(text, at):
        raise TemplateError("choosing several alternatives ($$) is not read; write one pair of braces for each", at)
