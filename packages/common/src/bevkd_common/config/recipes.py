"""Pair recipes that installed packages bring, and the methods that bring a section for them.

A package of pair recipes is found through the entry-point group `bevkd.recipes`: the entry point names a package
whose YAML resources are pair recipes. The sections of a method are the resources of `MethodSpec.recipes`, each in a
file of the name of its pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import DatasetSpec, MethodSpec, cause, entry_points_of, installed
from bevkd_common.config.reading.composition import Part, compose, flat_text, header
from bevkd_common.config.reading.loading import load_recipe, one_message, read_text, sections_of
from bevkd_common.config.reading.problems import explain
from bevkd_common.config.reading.yaml_tree import Problems, parse, plain
from bevkd_common.config.recipe import Recipe, Selects
from bevkd_common.config.wording import nearest
from bevkd_common.errors import UserError

GROUP = "bevkd.recipes"
LIST = "`bevkd recipes ls`"


class Head(Config):
    """The part of a pair recipe that listings read."""

    summary: Annotated[str, Field(min_length=1, max_length=120)]
    selects: Selects


@dataclass(frozen=True)
class PairFile:
    """A pair recipe, of which only the head is read.

    Attributes:
        name: File name without suffix ("centerpoint-bevdet.synthetic").
        path: The file.
        head: Its summary, and the names that select it.
        sections: Files of the methods' sections for it, by kind of method.
    """

    name: str
    path: Traversable
    head: Head
    sections: Mapping[str, Traversable]

    @property
    def flags(self) -> str:
        """The flags that select it."""
        chosen = self.head.selects
        return f"--teacher {chosen.teacher} --student {chosen.student} --dataset {chosen.dataset}"

    @property
    def is_made(self) -> bool:
        """Whether its data can be made, so that it needs no files.

        Raises:
            UserError: If the file cannot be read.
        """
        with one_message(self.name):
            dataset = sections_of(parse(read_text(self.path), str(self.path), until=("dataset",))).get("dataset")
        section = plain(dataset) if dataset is not None else None
        spec = installed(DatasetSpec).found.get(str(section.get("kind"))) if isinstance(section, dict) else None
        return spec is not None and spec.seed_key is not None


@dataclass(frozen=True)
class Choice:
    """A pair recipe under one method, or under a stack of several.

    Attributes:
        kinds: The methods.
        pair: The pair recipe.
    """

    kinds: tuple[str, ...]
    pair: PairFile

    @property
    def name(self) -> str:
        """METHOD/PAIR."""
        return f"{'+'.join(self.kinds)}/{self.pair.name}"

    @property
    def header(self) -> str:
        """The comments at the top of the pair recipe and of the methods' sections."""
        files = [self.pair.path, *(part.section for part in self._parts if part.section is not None)]
        return "\n".join(header(read_text(file)) for file in files)

    @property
    def _parts(self) -> list[Part]:
        return [Part(kind, self.pair.sections.get(kind)) for kind in self.kinds]

    def load(self, overrides: Sequence[str] = ()) -> Recipe:
        """The composed recipe under overrides ("dotted.key=value").

        Raises:
            UserError: With every problem of files and overrides.
        """
        return compose(self.name, self.pair.path, self._parts, overrides)

    def text(self) -> str:
        """The composed recipe as the text of one complete file, with its comments.

        Raises:
            UserError: With every problem of the files.
        """
        return flat_text(self.name, self.pair.path, self._parts)


@dataclass(frozen=True)
class Catalogue:
    """All pair recipes that are installed.

    Attributes:
        pairs: In the order of their names.
        broken: For each pair recipe, section ("METHOD/PAIR") or package that cannot be used, the reason.
    """

    pairs: tuple[PairFile, ...]
    broken: Mapping[str, str]

    def named(self, name: str) -> PairFile:
        """The pair recipe of a name.

        Raises:
            UserError: If there is none, or it is broken.
        """
        for pair in self.pairs:
            if pair.name == name:
                return pair
        if name in self.broken:
            raise UserError(f"the pair recipe `{name}` cannot be used: {self.broken[name]}")
        near = nearest(name, [pair.name for pair in self.pairs])
        raise UserError(f"no pair recipe is called `{name}`; {self._nearest(f'`{it}`' for it in near)}")

    def find(
        self, *, teacher: str | None = None, student: str | None = None, dataset: str | None = None
    ) -> PairFile:
        """The one pair recipe for a teacher, a student and a data set.

        None leaves a choice open; where `dataset` is left open, a recipe whose data can be made is preferred.

        Raises:
            UserError: If not exactly one fits.
        """
        wanted = {"teacher": teacher, "student": student, "dataset": dataset}
        asked = {flag: name for flag, name in wanted.items() if name is not None}
        flags = " ".join(f"--{flag} {name}" for flag, name in asked.items())
        fits = [pair for pair in self.pairs if pair.head.selects.model_dump().items() >= asked.items()]
        if not fits:
            near = sorted(self.pairs, key=lambda pair: _distance(pair, asked))[:3]
            raise UserError(f"no pair recipe fits {flags}; {self._nearest(f'`{pair.flags}`' for pair in near)}")
        found = fits if dataset is not None else [pair for pair in fits if pair.is_made]
        if len(found) == 1:
            return found[0]
        if not found:
            choices = " or ".join(f"`--dataset {pair.head.selects.dataset}`" for pair in fits[:3])
            raise UserError(f"no pair recipe that fits {flags} has data that can be made: add {choices}")
        given = f"fit {flags}" if flags else "are installed"
        missing = " and ".join(f"--{flag}" for flag in ("teacher", "student", "dataset") if flag not in asked)
        hint = f"add {missing}" if missing else "name one with --recipe"
        raise UserError(f"{len(found)} pair recipes {given}: {hint}; {LIST} lists them")

    def _nearest(self, near: Iterator[str]) -> str:
        shown = ", ".join(near)
        return f"the nearest are {shown}; {LIST} lists all {len(self.pairs)}" if shown else "none is installed"


def _distance(pair: PairFile, asked: Mapping[str, str]) -> float:
    own = pair.head.selects.model_dump()
    return -sum(SequenceMatcher(None, own[flag], name).ratio() for flag, name in asked.items())


def catalogue() -> Catalogue:
    """Read the heads of all installed pair recipes, and the names of the methods' sections."""
    broken: dict[str, str] = {}
    sections: dict[str, dict[str, Traversable]] = {}
    for kind, spec in installed(MethodSpec).found.items():
        for path in _resources(spec.recipes, kind, broken):
            sections.setdefault(_stem(path), {})[kind] = path
    paths: dict[str, list[tuple[str, Traversable]]] = {}
    for point in sorted(entry_points_of(GROUP), key=lambda point: point.value):
        for path in _resources(point.value, point.value, broken):
            paths.setdefault(_stem(path), []).append((point.value, path))
    pairs = []
    for name, rivals in sorted(paths.items()):
        if len(rivals) > 1:
            broken[name] = f"{' and '.join(package for package, _ in rivals)} both bring it; uninstall one of them"
            continue
        [(_, path)] = rivals
        try:
            pairs.append(PairFile(name, path, _head(path), sections.get(name, {})))
        except UserError as error:
            broken[name] = str(error)
    for name in sorted(sections.keys() - paths.keys()):
        broken.update({f"{kind}/{name}": f"no pair recipe is called `{name}`" for kind in sections[name]})
    return Catalogue(tuple(pairs), broken)


def _resources(package: str | None, owner: str, broken: dict[str, str]) -> list[Traversable]:
    """The YAML files of a package in the order of their names; None is no package."""
    if package is None:
        return []
    try:
        found = [path for path in files(package).iterdir() if path.name.endswith(".yaml")]
    except BaseException as error:  # the package is imported, and may fail in any way
        broken[owner] = f"its package of recipes cannot be read: {cause(error)}"
        return []
    return sorted(found, key=lambda path: path.name)


def _stem(path: Traversable) -> str:
    return path.name.removesuffix(".yaml")


def _head(path: Traversable) -> Head:
    fields = tuple(Head.model_fields)
    with one_message(str(path)):
        root = parse(read_text(path), str(path), until=fields)
        head = {key: plain(node) for key, node in sections_of(root).items() if key in fields}
        try:
            return Head.model_validate_json(json.dumps(head), strict=True)
        except ValidationError as error:
            raise Problems(explain(error, root)) from None


def method_kinds(text: str) -> tuple[str, ...]:
    """The methods that a METHOD of the command line names: one, or several that are joined by `+` into a stack.

    Raises:
        UserError: If one of them is not installed, or is named twice.
    """
    kinds = tuple(installed(MethodSpec).find(kind).kind for kind in text.split("+"))
    for index, kind in enumerate(kinds):
        if kind in kinds[:index]:
            raise UserError(f"`{text}` names the method `{kind}` twice")
    return kinds


def choose(name: str, method: str | None = None) -> Choice:
    """The recipe that a name of the command line stands for: METHOD/PAIR, or PAIR.

    Args:
        name: METHOD may be left out where `method` is given, or where one method alone has a section for the pair.
        method: METHOD of the command line.

    Raises:
        UserError: If there is no such pair recipe or method, or the method is left open.
    """
    before, slash, after = name.partition("/")
    own, pair = (before, catalogue().named(after)) if slash else (None, catalogue().named(name))
    if own is not None and method not in (None, own):
        raise UserError(f"{name} is a recipe of {own}, not of {method}: name the pair alone, {pair.name}")
    chosen = own or method
    if chosen is None and len(pair.sections) != 1:
        kinds = ", ".join(f"{kind}/{pair.name}" for kind in pair.sections) or f"METHOD/{pair.name}"
        raise UserError(f"`{pair.name}` is a pair recipe: name it with a method, such as {kinds}")
    return Choice(method_kinds(chosen) if chosen is not None else tuple(pair.sections), pair)


def load_named(reference: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a user names: the path of a file, or a name as `choose` takes it.

    Raises:
        UserError: If it is neither, or with every problem of files and overrides.
    """
    path = path_of(reference)
    return load_recipe(path, overrides) if path is not None else choose(reference).load(overrides)


def path_of(reference: str) -> Path | None:
    """The file that a reference names, or None where it is the name of an installed recipe."""
    path = Path(reference)
    return path if path.exists() or path.suffix in (".yaml", ".yml") else None
