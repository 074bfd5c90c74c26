"""Overrides of a recipe: `dotted.key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bevkd_common.config.reading.yaml_tree import MAX_DEPTH, Node, Place, Problem, Problems, parse
from bevkd_common.config.wording import shorten

LONGEST_PLACE = 9
"""Digits of the place of an item of a list; Python refuses to convert thousands."""


@dataclass(frozen=True)
class Override:
    """A new value for a dotted key."""

    key: str
    value: Node


def parse_override(text: str) -> Override:
    """Read `dotted.key=value`; the value is YAML.

    Raises:
        Problems: If there is no key, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    source = f"--set {shorten(text)}"
    path = key.split(".")
    if not equals or not all(path) or len(path) > MAX_DEPTH:
        raise Problems([Problem(Place(source), "", "must read `dotted.key=value`")])
    return Override(key, parse(value, source, lines=False))


def applied(root: Node, overrides: Sequence[Override]) -> Node:
    """The tree with all overrides; a later one replaces an earlier one.

    Missing sections are added; the validation of the tree reports those that may not exist.

    Raises:
        Problems: With every override that addresses an item of something that has none.
    """
    problems = []
    for override in overrides:
        try:
            root = _set(root, override.key.split("."), override, "")
        except _NoSuchItemError as error:
            problems.append(Problem(override.value.place, override.key, str(error)))
    if problems:
        raise Problems(problems)
    return root


class _NoSuchItemError(Exception):
    """Names the part of a dotted key that does not exist."""


def _place(step: str) -> int | None:
    """The number that a part of a key is; None where it is none, or longer than any list."""
    return int(step) if step.isdecimal() and len(step) <= LONGEST_PLACE else None


def _set(node: Node, path: Sequence[str], override: Override, above: str) -> Node:
    if not path:
        return override.value
    step, *rest = path
    here = f"{above}.{step}" if above else step
    if isinstance(node.value, list):
        place = _place(step)
        if place is None or place >= len(node.value):
            raise _NoSuchItemError(
                f"`{above}` is a list of {len(node.value)}, counted from 0; it has no item `{shorten(step)}`"
            )
        items = list(node.value)
        items[place] = _set(items[place], rest, override, here)
        return replace(node, value=items)
    if node.value is not None and not isinstance(node.value, dict):
        raise _NoSuchItemError(f"`{shorten(above)}` is a single value; it has no key `{shorten(step)}`")
    if node.value is None and step.isdecimal():
        raise _NoSuchItemError(
            f"`{shorten(above)}` is not in the file, so it has no item `{shorten(step)}`; set the whole list"
        )
    sections = dict(node.value or {})
    sections[step] = _set(sections.get(step, Node(None, override.value.place)), rest, override, here)
    return replace(node, value=sections)
