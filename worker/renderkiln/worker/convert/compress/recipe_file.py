"""Reads and writes recipe files: JSON or YAML, with errors that name the line and the field."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from renderkiln.schema.errors import RecipeError

from .recipe import Recipe

#: A line a layer for the largest models is far below this.
_LIMIT = 16 << 20
_YAML = (".yaml", ".yml")
#: Where a field stands, by the keys that lead to it.
Lines = dict[tuple[str, ...], int]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a `.json`, `.yaml` or `.yml` file.

    Raises:
        RecipeError: it cannot be read, or a field is unknown, twice there, or outside its limits; names the line.
    """
    source = str(path)
    is_yaml = _is_yaml(path)
    try:
        if path.stat().st_size > _LIMIT:
            raise RecipeError(f"is over {_LIMIT >> 20} MB long; that is no recipe", source=source)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", source=source) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"is not UTF-8 text: {error.reason} at byte {error.start}", source=source) from error
    try:
        content, lines = _parse_yaml(text, source) if is_yaml else _parse_json(text, source)
    except RecursionError as error:
        raise RecipeError("is nested too deeply", source=source) from error
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _complaint(error, source, lines) from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Writes a recipe where nothing is yet, in the format that the file's name asks for.

    Raises:
        RecipeError: the file exists, or cannot be written; nothing is left then.
    """
    content = recipe.model_dump(exclude_defaults=True) | {"version": recipe.version}
    content = {name: content[name] for name in Recipe.model_fields if name in content}
    if _is_yaml(path):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    else:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    check_new(path)
    try:
        _write_new(path, text)
    except OSError as error:
        raise RecipeError(f"cannot be written: {error.strerror}", source=str(path)) from error


def check_new(path: Path) -> None:
    """Raises a `RecipeError` if no recipe can be written there: of another kind by its name, or there already."""
    _is_yaml(path)
    if path.exists() or path.is_symlink():
        raise RecipeError("exists already; remove it, or choose another name", source=str(path))


def _is_yaml(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix != ".json" and suffix not in _YAML:
        raise RecipeError("a recipe's name ends in .json, .yaml or .yml", source=str(path))
    return suffix in _YAML


def _write_new(path: Path, text: str) -> None:
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _complaint(error: ValidationError, source: str, lines: Lines) -> RecipeError:
    first = error.errors(include_url=False)[0]
    # Pydantic marks a complaint about a key itself with an extra part.
    keys = tuple(str(part) for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"there is no such field; the fields are {', '.join(Recipe.model_fields)}"
    known = next((keys[:count] for count in range(len(keys), 0, -1) if keys[:count] in lines), ())
    return RecipeError(message, source=source, line=lines.get(known), field=".".join(keys) or None)


def _parse_json(text: str, source: str) -> tuple[Any, Lines]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                line = _line_of(text, key, occurrence=2)
                raise RecipeError(f"{key!r} is there twice", source=source, line=line, field=key)
            found[key] = value
        return found

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise RecipeError(f"is not JSON: {error.msg}", source=source, line=error.lineno) from error
    except ValueError as error:  # a number of thousands of digits
        raise RecipeError(f"is not JSON: {error}", source=source) from error
    return content, {keys: _line_of(text, keys[-1]) for keys in _paths(content)}


def _paths(content: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*above, key)
            yield from _paths(value, (*above, key))


def _line_of(text: str, key: str, occurrence: int = 1) -> int:
    """The line, from 1, of a quoted key. JSON's reader keeps no places; recipes hold each name once."""
    position = -1
    for _ in range(occurrence):
        for quoted in (json.dumps(key, ensure_ascii=False), json.dumps(key)):
            found = text.find(quoted, position + 1)
            if found >= 0:
                position = found
                break
    return text.count("\n", 0, max(position, 0)) + 1


def _parse_yaml(text: str, source: str) -> tuple[Any, Lines]:
    lines: Lines = {}
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else None
                raise RecipeError(
                    "aliases (*name) are not allowed; quote a pattern that begins with *", source=source, line=line
                )
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return _value(root, (), lines, source) if root is not None else None, lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise RecipeError(f"is not YAML: {error.problem or error.context}", source=source, line=line) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"is not YAML: {error}", source=source) from error


def _value(node: yaml.Node, keys: tuple[str, ...], lines: Lines, source: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError("a field's name must be text", source=source, line=line)
            # As text whatever it looks like: a weight may be called 12, or null.
            key = str(key_node.value)
            if key in found:
                raise RecipeError(f"{key!r} is there twice", source=source, line=line, field=".".join([*keys, key]))
            here = (*keys, key)
            lines[here] = line
            found[key] = _value(value_node, here, lines, source)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, keys, lines, source) for each in node.value]
    return yaml.constructor.SafeConstructor().construct_object(node)
