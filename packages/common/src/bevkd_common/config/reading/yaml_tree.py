"""Reads YAML to values with their place in the file, and writes YAML.

Only what a recipe needs is read: sections, lists and plain values under the rules of YAML 1.2, so that `1e-3` is a
number and `no` is text. Tags, anchors, aliases and repeated keys are errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml
from yaml.reader import ReaderError

from bevkd_common.config.wording import shorten

MAX_CHARACTERS = 200_000
MAX_DEPTH = 32

Scalar = str | int | float | bool | None

_SCALARS: dict[str, tuple[re.Pattern[str], str]] = {
    "null": (re.compile(r"~|null|Null|NULL|"), "~nN"),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), "-+0123456789"),
    "float": (
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        "-+0123456789.",
    ),
}


@dataclass(frozen=True)
class Place:
    """A line of a file, counted from 1, or an override, which has no lines."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


LONGEST_KEY = 160
"""Characters of a key in a message; longer ones are shortened."""


@dataclass(frozen=True)
class Problem:
    """One error: its place, dotted key and reason."""

    place: Place
    key: str
    reason: str

    def __str__(self) -> str:
        shown = (str(self.place), shorten(self.key, LONGEST_KEY), self.reason)
        return ": ".join(part for part in shown if part)


class Problems(Exception):  # noqa: N818 - a bundle of problems, which `loading` turns into one UserError
    """All problems of one text."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


@dataclass(frozen=True)
class Node:
    """A value and its place."""

    value: Scalar | list[Node] | dict[str, Node]
    place: Place


def plain(node: Node) -> Any:
    """The node's value without its places."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def planted(data: Any, place: Place) -> Node:
    """Plain data as nodes with one place."""
    if isinstance(data, dict):
        return Node({str(key): planted(value, place) for key, value in data.items()}, place)
    if isinstance(data, list | tuple):
        return Node([planted(value, place) for value in data], place)
    return Node(data, place)


def parse(text: str, source: str, *, lines: bool = True, until: Collection[str] = ()) -> Node:
    """Read one YAML document.

    Args:
        text: The document.
        source: What error messages call it.
        lines: Whether places name the line.
        until: Keys at the top of the document; reading stops when all of them are read. Where none is given, the
            whole document is read.

    Raises:
        Problems: If it is no valid YAML, or has what recipes do not allow.
    """
    if len(text) > MAX_CHARACTERS:
        raise Problems(
            [Problem(Place(source), "", f"is larger than {MAX_CHARACTERS} characters, which no recipe is")]
        )
    reader = _Reader(text, source, lines, frozenset(until))
    try:
        root = reader.document()
    except yaml.MarkedYAMLError as error:
        raise Problems([Problem(reader.place(error.problem_mark), "", _syntax(error))]) from None
    except (OverflowError, ValueError):
        # PyYAML's scanner lets `chr` raise for an escape beyond the last character of Unicode.
        reason = "is not valid YAML: an escape such as \\U00110000 is no character"
        raise Problems([Problem(Place(source), "", reason)]) from None
    except ReaderError as error:
        reason = f"is not text: it holds the character #x{error.character:04x}"
        raise Problems([Problem(Place(source), "", reason)]) from None
    if reader.problems:
        raise Problems(reader.problems)
    return root


def _syntax(error: yaml.MarkedYAMLError) -> str:
    if error.problem and "'\\t'" in error.problem:
        return "is not valid YAML: a tab where only spaces may stand"
    context = f" ({error.context})" if error.context else ""
    return f"is not valid YAML: {shorten(f'{error.problem}{context}', 120)}"


class _Reader:
    """Builds nodes from YAML events; problems are in the order of the text."""

    def __init__(self, text: str, source: str, lines: bool, until: frozenset[str]) -> None:
        self.source, self.lines, self.until = source, lines, until
        self.problems: list[Problem] = []
        self.events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)

    def place(self, mark: Any) -> Place:
        return Place(self.source, mark.line + 1 if self.lines and mark is not None else None)

    def document(self) -> Node:
        root = Node(None, Place(self.source))
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "", "a second document starts; a recipe is one document")
                    break
                root = replace(root, value=self._node(next(self.events), "", 0).value)
                if self.until and isinstance(root.value, dict) and self.until <= root.value.keys():
                    break
        return root

    def _refuse(self, event: yaml.Event, key: str, reason: str) -> None:
        self.problems.append(Problem(self.place(event.start_mark), key, reason))

    def _node(self, event: yaml.Event, key: str, depth: int) -> Node:
        place = self.place(event.start_mark)
        if depth > MAX_DEPTH:
            raise Problems([Problem(place, "", f"nests deeper than {MAX_DEPTH} levels")])
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            self._refuse(event, key, "an alias is not allowed; write the value out")
            return Node(None, place)
        if event.anchor is not None:
            self._refuse(event, key, f"the anchor &{shorten(event.anchor)} is not allowed; write the value out")
        if event.tag is not None:
            self._refuse(event, key, f"the tag {shorten(event.tag)} is not allowed; a recipe holds plain values")
        if isinstance(event, yaml.ScalarEvent):
            return Node(self._scalar(event, key), place)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(self._items(key, depth), place)
        return Node(self._sections(key, depth), place)

    def _items(self, key: str, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, _join(key, str(len(items))), depth + 1))
        return items

    def _sections(self, key: str, depth: int) -> dict[str, Node]:
        sections: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if isinstance(event, yaml.ScalarEvent):
                name = self._text(event, key)
            else:
                self._node(event, key, depth + 1)
                self._refuse(event, key, "a key must be a plain word")
                name = ""
            path = _join(key, shorten(name))
            child = self._node(next(self.events), path, depth + 1)
            if name in sections:
                self._refuse(event, path, f"is written twice, first at {sections[name].place}")
            else:
                sections[name] = replace(child, place=self.place(event.start_mark))
            if not key and self.until and self.until <= sections.keys():
                break
        return sections

    def _scalar(self, event: yaml.ScalarEvent, key: str) -> Scalar:
        if not event.implicit[0]:
            return self._text(event, key)
        try:
            return _plain_scalar(event.value)
        except ValueError as error:
            self._refuse(event, key, str(error))
            return None

    def _text(self, event: yaml.ScalarEvent, key: str) -> str:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._refuse(event, key, "holds half of a surrogate pair, which is no text")
        return text


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _plain_scalar(text: str) -> Scalar:
    kind = next((name for name, (pattern, _) in _SCALARS.items() if pattern.fullmatch(text)), "str")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        # Python does not convert very long integers; they are refused by their length.
        value = 1 << 64 if len(text) > 30 else int(text, 0 if text.startswith(("0o", "0x")) else 10)
        if abs(value) >= 1 << 63:
            raise ValueError(f"{shorten(text, 24)} does not fit into 64 bits")
        return value
    if kind == "float":
        number = math.inf if text.lower().endswith(("inf", "nan")) else float(text)
        if not math.isfinite(number):
            raise ValueError(f"{shorten(text, 24)} is not a finite number")
        return number
    return text


class _Writer(yaml.SafeDumper):
    """Quotes text that this reader or one of YAML 1.1 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value out each time it occurs."""
        return True


for _name, (_pattern, _first) in _SCALARS.items():
    _exact = re.compile(rf"(?:{_pattern.pattern})$")
    _Writer.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", _exact, [*_first, *([""] if _name == "null" else [])]
    )


def render(data: Any) -> str:
    """Plain data as YAML, in the order given; lists of plain values stay on one line."""
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
