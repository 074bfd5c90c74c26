"""Reads, writes and compares recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import DetectorSpec, installed
from bevkd_common.config.reading.overrides import Override, applied, parse_override
from bevkd_common.config.reading.problems import explain
from bevkd_common.config.reading.yaml_tree import (
    MAX_CHARACTERS,
    Node,
    Place,
    Problem,
    Problems,
    parse,
    plain,
    planted,
    render,
)
from bevkd_common.config.recipe import Recipe
from bevkd_common.errors import UserError

MAX_SHOWN = 12
"""Number of problems that one message lists."""


def load_recipe(path: Path | Traversable, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Values are not converted: `"3"` is text and no number, `3.0` is no whole number, `1` is not true.

    Args:
        path: The file.
        overrides: "dotted.key=value" in the order given; values are YAML, list items are addressed by number.

    Raises:
        UserError: With every problem of file and overrides, each with line, key and reason.
    """
    return parse_recipe(read_text(path), str(path), overrides)


def read_text(path: Path | Traversable) -> str:
    """Text of a recipe file.

    Raises:
        UserError: If it is missing, no file, too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(4 * MAX_CHARACTERS + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None


def parse_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """As `load_recipe`, from text that messages call `source`."""
    with one_message(source):
        return recipe_of(parse(text, source), overrides)


@contextmanager
def one_message(source: str) -> Iterator[None]:
    """Turn all problems of a text into one `UserError` that names `source`."""
    try:
        yield
    except Problems as found:
        raise UserError(_message(source, found.problems)) from None


def load_detector(kind: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a detector by itself: its defaults under overrides of its own keys.

    Raises:
        UserError: If no such detector is installed, or with every problem of the overrides.
    """
    spec = installed(DetectorSpec).find(kind)
    with one_message(kind):
        root = applied(planted({"kind": kind}, Place(kind)), [parse_override(text) for text in overrides])
        try:
            return spec.config.model_validate_json(json.dumps(plain(root)), strict=True)
        except ValidationError as error:
            raise Problems(explain(error, root)) from None


def override(recipe: Recipe, values: Mapping[str, JsonValue], source: str) -> Recipe:
    """The recipe with other values under some dotted keys, as if its file said so.

    Args:
        recipe: Stays as it is.
        values: Value by dotted key.
        source: What error messages call the values' origin ("ablation no_attention").

    Raises:
        UserError: If the result is no valid recipe.
    """
    with one_message(source):
        return _overridden(recipe, values, Place(source))


def _overridden(recipe: Recipe, values: Mapping[str, JsonValue], place: Place) -> Recipe:
    written = planted(recipe.model_dump(mode="json", exclude_unset=True), place)
    return _fitting(applied(written, [Override(key, planted(value, place)) for key, value in values.items()]))


def recipe_of(root: Node, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a tree of nodes under overrides, with every control checked.

    Raises:
        Problems: With every problem of tree and overrides.
    """
    root = applied(root, [parse_override(text) for text in overrides])
    recipe = _fitting(root)
    problems = []
    for index, control in enumerate(recipe.controls):
        key = f"controls.{index}.overrides"
        place = _place(root, key)
        try:
            _overridden(recipe, control.overrides, place)
        except Problems as found:
            problems += [Problem(place, key, f"{inner.key}: {inner.reason}") for inner in found.problems]
    if problems:
        raise Problems(problems)
    return recipe


def _fitting(root: Node) -> Recipe:
    recipe = _validated(root)
    problems = [Problem(_place(root, key), key, reason) for key, reason in recipe.misfits()]
    if problems:
        raise Problems(problems)
    return recipe


def _validated(root: Node) -> Recipe:
    sections_of(root)
    try:
        return Recipe.model_validate_json(json.dumps(plain(root)), strict=True)
    except ValidationError as error:
        raise Problems(explain(error, root)) from None
    except ArithmeticError as error:  # a check that computes with numbers far outside of any use
        raise Problems([Problem(root.place, "", f"its numbers cannot be computed with: {error}")]) from None


def sections_of(root: Node) -> dict[str, Node]:
    """The keys at the top of a recipe.

    Raises:
        Problems: If it is no section of keys.
    """
    if isinstance(root.value, dict):
        return root.value
    given = "empty" if root.value is None else "a list" if isinstance(root.value, list) else "a single value"
    raise Problems([Problem(root.place, "", f"is {given}; a recipe is a section of keys")])


def _place(root: Node, key: str) -> Place:
    """Place of the deepest part of a dotted key that is written in the file."""
    node = root
    for step in key.split("."):
        if isinstance(node.value, dict) and step in node.value:
            node = node.value[step]
        elif isinstance(node.value, list) and step.isdecimal() and int(step) < len(node.value):
            node = node.value[int(step)]
        else:
            break
    return node.place


def _message(source: str, problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return str(problems[0])
    shown = [f"  {problem}" for problem in problems[:MAX_SHOWN]]
    if len(problems) > MAX_SHOWN:
        shown.append(f"  and {len(problems) - MAX_SHOWN} more")
    return "\n".join([f"{source}: {len(problems)} problems", *shown])


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, defaults included."""
    return recipe.model_dump(mode="json")


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, defaults included; reading it gives an equal recipe."""
    return render(resolved(recipe))


def schema() -> dict[str, Any]:
    """The JSON schema of recipes for what is installed, with the description of every field."""
    found = Recipe.model_json_schema()
    for section in found["$defs"].values():
        for key, field in section.get("properties", {}).items():
            if text := field.get("description") or _documented(section.get("description", ""), key):
                field["description"] = text
    return found


def _documented(docstring: str, attribute: str) -> str:
    """The text of an attribute in the docstring of a data class; for `kind`, the first line of the docstring."""
    if attribute == "kind":
        return docstring.partition("\n")[0]
    found = re.search(rf"^ +{attribute}: (.*(?:\n {{8,}}.*)*)", docstring, flags=re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


@dataclass(frozen=True)
class Change:
    """A dotted key whose value differs; None also means that one side does not have the key."""

    key: str
    before: JsonValue
    after: JsonValue


def diff(before: Recipe, after: Recipe) -> list[Change]:
    """The differences of two resolved recipes, in the order of the first."""
    return changes(resolved(before), resolved(after))


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """The differences of two configurations as plain data."""
    return list(_changes("", before, after))


def _changes(key: str, before: Any, after: Any) -> list[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        pairs = [(name, before.get(name), after.get(name)) for name in names]
    elif isinstance(before, list) and isinstance(after, list) and _holds_sections(before + after):
        length = max(len(before), len(after))
        pairs = [(str(i), _item(before, i), _item(after, i)) for i in range(length)]
    else:
        return [] if before == after else [Change(key, before, after)]
    return [change for name, old, new in pairs for change in _changes(f"{key}.{name}" if key else name, old, new)]


def _item(items: list[Any], index: int) -> Any:
    return items[index] if index < len(items) else None


def _holds_sections(items: Sequence[Any]) -> bool:
    return any(isinstance(item, dict) for item in items)
