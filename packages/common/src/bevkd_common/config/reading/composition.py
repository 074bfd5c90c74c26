"""Composes a recipe from a pair recipe and the sections that methods bring for the pair.

A pair recipe is a recipe without `method`; its controls are based on the baseline. A method's section for the pair
is a file with three keys:

    method: the method's configuration
    controls: controls that are based on the distilled arm
    changes: other values for dotted keys of the pair recipe, where the method needs them

Several methods are composed into one of kind `stack`, whose `parts` they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources.abc import Traversable
from itertools import takewhile
from typing import Any

from bevkd_common.config.reading.loading import one_message, read_text, recipe_of, sections_of
from bevkd_common.config.reading.overrides import Override, applied
from bevkd_common.config.reading.yaml_tree import Node, Place, Problem, Problems, parse, plain, planted, render
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.wording import did_you_mean, one_of

SECTION_KEYS = ("method", "controls", "changes")
FIXED = ("summary", "selects", "method", "controls")
"""Sections of a pair recipe that a method does not change."""


@dataclass(frozen=True)
class Part:
    """A method, and the file of its section for a pair; without one, the method has its defaults."""

    kind: str
    section: Traversable | None


def compose(name: str, pair: Traversable, parts: Sequence[Part], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a pair under one method or a stack of methods.

    Args:
        name: What messages call the recipe.
        pair: File of the pair recipe.
        parts: At least one.
        overrides: "dotted.key=value", applied to the composed recipe.

    Raises:
        UserError: With every problem of the files and overrides.
    """
    with one_message(name):
        return recipe_of(_tree(pair, _sections(pair, parts)), overrides)


def flat_text(name: str, pair: Traversable, parts: Sequence[Part]) -> str:
    """The composed recipe as the text of one complete file, with the comments of pair and methods.

    Comments within a section that a method changes, and within the `method` section of a stack, are left out.

    Raises:
        UserError: With every problem of the files.
    """
    recipe = compose(name, pair, parts)
    sections = _sections(pair, parts)
    root = plain(_tree(pair, sections))
    if any(part.section is None for part in parts):
        root["method"] = recipe.method.model_dump(mode="json")
    changed = {key.split(".")[0] for section in sections for key in section.changes}
    lines = list(_blocks(read_text(pair), pair, root, changed))
    for part in parts:
        comment = header(read_text(part.section)) if part.section else f"# {part.kind} with its defaults."
        lines.append(f"\n{comment}\n")
        if len(parts) == 1 and part.section is not None:
            lines += _blocks(read_text(part.section), part.section, root, set(), only="method", after=comment)
    if len(parts) > 1 or parts[0].section is None:
        lines.append(_block("method", root["method"]))
    if root.get("controls"):
        lines.append("\n" + _block("controls", root["controls"]))
    text = "".join(lines)
    # A file whose top-level keys do not start a line each cannot be cut into pieces.
    return text if _says(text, root) else f"{header(read_text(pair))}\n{render(root)}"


def _says(text: str, root: Any) -> bool:
    try:
        return bool(plain(parse(text, "")) == root)
    except Problems:
        return False


def header(text: str) -> str:
    """The comment block at the top of a recipe's text."""
    return "\n".join(takewhile(lambda line: line.startswith("#"), text.splitlines()))


def pair_tree(pair: Traversable) -> Node:
    """A pair recipe as nodes.

    Raises:
        Problems: If it is no pair recipe.
    """
    root = parse(read_text(pair), str(pair))
    keys = sections_of(root)
    problems = []
    if "method" in keys:
        reason = "a pair recipe has no method; the methods bring their sections"
        problems.append(Problem(keys["method"].place, "method", reason))
    problems += _wrong_bases(keys, "baseline", "a pair recipe")
    if problems:
        raise Problems(problems)
    return root


@dataclass(frozen=True)
class _Section:
    """What one method brings for a pair."""

    method: Node
    controls: list[Node] = field(default_factory=list)
    changes: Mapping[str, Node] = field(default_factory=dict)


def _sections(pair: Traversable, parts: Sequence[Part]) -> list[_Section]:
    found, problems = [], []
    for part in parts:
        try:
            found.append(_section(part, pair.name.removesuffix(".yaml")))
        except Problems as error:
            problems += error.problems
    if problems:
        raise Problems(problems)
    return found


def _section(part: Part, pair: str) -> _Section:
    if part.section is None:
        place = Place(f"the defaults of {part.kind}, which has no section for {pair}")
        return _Section(planted({"kind": part.kind}, place))
    root = parse(read_text(part.section), str(part.section))
    keys = sections_of(root)
    problems = [
        Problem(node.place, key, f"unknown key, only {one_of(SECTION_KEYS)}{did_you_mean(key, SECTION_KEYS)}")
        for key, node in keys.items()
        if key not in SECTION_KEYS
    ]
    method = keys.get("method", Node(None, root.place))
    written = method.value.get("kind") if isinstance(method.value, dict) else None
    if written is None or written.value != part.kind:
        problems.append(Problem(method.place, "method", f"must be a section of kind `{part.kind}`"))
    problems += _wrong_bases(keys, "distilled", "a method's section")
    changes = keys.get("changes", Node({}, root.place))
    if not isinstance(changes.value, dict):
        problems.append(Problem(changes.place, "changes", "must be a section of dotted keys"))
    else:
        problems += [
            Problem(node.place, f"changes.{key}", f"a method cannot change `{key.split('.')[0]}`")
            for key, node in changes.value.items()
            if key.split(".")[0] in FIXED
        ]
    if problems:
        raise Problems(problems)
    assert isinstance(changes.value, dict)
    return _Section(method, _items(keys.get("controls")), changes.value)


def _items(node: Node | None) -> list[Node]:
    return node.value if node is not None and isinstance(node.value, list) else []


def _wrong_bases(keys: Mapping[str, Node], base: str, what: str) -> Iterator[Problem]:
    controls = keys.get("controls")
    if controls is not None and not isinstance(controls.value, list):
        yield Problem(controls.place, "controls", "must be a list")
    for index, control in enumerate(_items(controls)):
        given = control.value.get("base") if isinstance(control.value, dict) else None
        if given is not None and given.value != base:
            yield Problem(given.place, f"controls.{index}.base", f"must be `{base}` in {what}")


def _tree(pair: Traversable, sections: Sequence[_Section]) -> Node:
    """The composed recipe as nodes, each with the place in its own file."""
    root = pair_tree(pair)
    keys = dict(sections_of(root))
    if len(sections) == 1:
        keys["method"] = sections[0].method
        controls = sections[0].controls
    else:
        place = sections[0].method.place
        parts = Node([section.method for section in sections], place)
        keys["method"] = Node({"kind": Node("stack", place), "parts": parts}, place)
        controls = [
            _of_part(control, index, section)
            for index, section in enumerate(sections)
            for control in section.controls
        ]
    if controls:
        own = keys.get("controls", Node([], controls[0].place))
        keys["controls"] = replace(own, value=[*_items(own), *controls])
    return applied(replace(root, value=keys), _joined_changes(sections))


def _joined_changes(sections: Sequence[_Section]) -> list[Override]:
    joined: dict[str, Node] = {}
    for section in sections:
        for key, node in section.changes.items():
            if key in joined and plain(joined[key]) != plain(node):
                reason = f"the methods change `{key}` in different ways, first at {joined[key].place}"
                raise Problems([Problem(node.place, f"changes.{key}", reason)])
            joined[key] = node
    return [Override(key, node) for key, node in joined.items()]


def _of_part(control: Node, index: int, section: _Section) -> Node:
    """A method's control as one of a stack: named after the part, with the keys of the part."""
    if not isinstance(control.value, dict) or not isinstance(section.method.value, dict):
        return control
    fields = dict(control.value)
    if "name" in fields:
        fields["name"] = replace(
            fields["name"], value=f"{section.method.value['kind'].value}_{fields['name'].value}"
        )
    overrides = fields.get("overrides")
    if overrides is not None and isinstance(overrides.value, dict):
        moved = {re.sub(r"^method\b", f"method.parts.{index}", key): it for key, it in overrides.value.items()}
        fields["overrides"] = replace(overrides, value=moved)
    return replace(control, value=fields)


def _blocks(
    text: str,
    file: Traversable,
    root: Mapping[str, Any],
    changed: set[str],
    only: str | None = None,
    after: str = "",
) -> Iterator[str]:
    """The text of each key at the top of a file but `controls`, with the comments above the key.

    Args:
        text: Of the file.
        file: For messages.
        root: The composed recipe, from which `changed` keys are written.
        changed: Keys whose text is replaced.
        only: The one key to take.
        after: Comment at the top of the file that is left out.
    """
    lines = (
        text.removeprefix(after).lstrip("\n").splitlines(keepends=True) if after else text.splitlines(keepends=True)
    )
    keys = sections_of(parse("".join(lines), str(file)))
    starts = {}
    for key, node in keys.items():
        assert node.place.line is not None
        start = node.place.line - 1
        while start and (lines[start - 1].startswith("#") or not lines[start - 1].strip()):
            start -= 1
        starts[key] = start
    ends = [*list(starts.values())[1:], len(lines)]
    for (key, start), end in zip(starts.items(), ends, strict=True):
        if key == "controls" or (only is not None and key != only):
            continue
        if key in changed:
            comment = "".join(
                line for line in lines[start : keys[key].place.line or 0] if line.startswith(("#", "\n"))
            )
            yield comment + _block(key, root[key])
        else:
            yield "".join(lines[start:end])
    if only is None:
        for key in sorted(changed - keys.keys()):
            yield _block(key, root[key])


def _block(key: str, value: Any) -> str:
    """A key and its value as lines of the top level."""
    text = render({key: value})
    # A mapping of plain values is written as `{key: value}`.
    return f"{text.strip()[1:-1]}\n" if text.startswith("{") else text
