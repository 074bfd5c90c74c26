"""Converts the errors of pydantic to sentences with the place and key in a tree of nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bevkd_common.config.plugins import DatasetSpec, DetectorSpec, MethodSpec, PluginSpec, installed
from bevkd_common.config.reading.yaml_tree import Node, Place, Problem
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.wording import did_you_mean, one_of, shorten

SECTIONS: dict[str, type[PluginSpec]] = {
    "dataset": DatasetSpec,
    "teacher": DetectorSpec,
    "student": DetectorSpec,
    "method": MethodSpec,
}
"""Sections of a recipe whose choices are plug-ins."""

_WORDS = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a section of keys",
    "model_type": "must be a section of keys",
    "dataclass_type": "must be a section of keys",
    "none_required": "must be null",
}


def explain(error: ValidationError, root: Node) -> list[Problem]:
    """One problem for each key that pydantic refuses: those without a line first, then line by line.

    Each member of a union reports the same key; their reasons are joined.
    """
    reasons: dict[tuple[Place, str], list[str]] = {}
    for detail in error.errors(include_url=False):
        path, node = _follow(detail, root)
        reason = _reason(detail, path)
        if detail["type"] == "union_tag_invalid" and isinstance(node.value, dict):
            path, node = [*path, "kind"], node.value["kind"]
        known = reasons.setdefault((node.place, ".".join(path)), [])
        if reason not in known:
            known.append(reason)
    problems = [Problem(place, key, _joined(alternatives)) for (place, key), alternatives in reasons.items()]
    return sorted(problems, key=lambda problem: problem.place.line or 0)


def _joined(reasons: list[str]) -> str:
    """The reasons in one sentence, which names the given value once."""
    given = re.search(r", not [^,]*$", reasons[0])
    tail = given.group() if given else ""
    if not tail or not all(reason.endswith(tail) for reason in reasons):
        return "; or ".join(reasons)
    first, *others = [reason.removesuffix(tail) for reason in reasons]
    return " or ".join([first, *(other.removeprefix("must ") for other in others)]) + tail


def _follow(detail: ErrorDetails, root: Node) -> tuple[list[str], Node]:
    """The dotted path of an error and the nearest node, leaving out pydantic's labels of union members."""
    path: list[str] = []
    node = root
    for step in detail["loc"]:
        children = node.value
        if isinstance(children, dict) and str(step) in children:
            node = children[str(step)]
        elif isinstance(children, list) and isinstance(step, int) and step < len(children):
            node = children[step]
        elif detail["type"] != "missing" or step != detail["loc"][-1]:
            continue
        path.append(shorten(str(step)))
    return path, node


def _reason(detail: ErrorDetails, path: Sequence[str]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key{did_you_mean(path[-1], _keys_at(detail['loc'][:-1]))}"
    if kind == "value_error":
        return shorten(str(context["error"]), 240)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_kind(kind, context, path)
    words = _WORDS.get(kind) or _rephrased(detail["msg"])
    return words if kind in ("missing", "too_short", "too_long") else f"{words}, not {_given(detail['input'])}"


def _wrong_kind(kind: str, context: dict[str, Any], path: Sequence[str]) -> str:
    plugins = installed(SECTIONS[path[0]]) if len(path) == 1 and path[0] in SECTIONS else None
    if kind == "union_tag_not_found":
        return "needs the key `kind`" + (f", {one_of(plugins.found)}" if plugins else "")
    tag = str(context["tag"])
    if plugins is not None:
        return plugins.why_not(shorten(tag))
    choices = re.findall(r"'([^']*)'", context["expected_tags"])
    return f"must be {one_of(choices)}, not `{shorten(tag)}`{did_you_mean(tag, choices)}"


def _rephrased(message: str) -> str:
    words = message.replace("Input should be", "must be").replace(" after validation", "")
    return re.sub(r"^[A-Z]\w+ should", "must", words)


def _given(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return shorten(repr(value), 40)


def _keys_at(loc: Sequence[int | str]) -> set[str]:
    """The keys that may stand in the section at an error's location, which names the members of unions by kind."""
    sections: set[type] = {Recipe}
    for position, step in enumerate(loc):
        annotations = [_fields(section)[step] for section in sections if step in _fields(section)]
        if position == 0 and step in SECTIONS:
            sections = {spec.config for spec in installed(SECTIONS[str(step)]).found.values()}
        elif annotations:
            sections = {inner for annotation in annotations for inner in _sections_in(annotation)}
        elif isinstance(step, str):
            chosen = {section for section in sections if step in get_args(_fields(section).get("kind"))}
            sections = chosen or sections
    return {str(key) for section in sections for key in _fields(section)}


def _fields(section: type) -> dict[Any, Any]:
    """Annotation of each field of a model or a data class."""
    if issubclass(section, BaseModel):
        return {key: field.annotation for key, field in section.model_fields.items()}
    return get_type_hints(section)


def _sections_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)
