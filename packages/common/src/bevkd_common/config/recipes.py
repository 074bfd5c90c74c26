"""The recipes that installed methods bring along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import takewhile
from pathlib import Path

from bevkd_common.config.plugins import MethodSpec, installed
from bevkd_common.config.reading.loading import load_recipe
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.wording import did_you_mean, one_of
from bevkd_common.errors import UserError


@dataclass(frozen=True)
class RecipeFile:
    """A recipe and where it lies.

    Attributes:
        name: Method and file name without suffix ("distillbev/centerpoint-bevdet.synthetic").
        method: Kind of the method that brings it.
        path: The file.
        recipe: What it says.
    """

    name: str
    method: str
    path: Traversable
    recipe: Recipe

    @property
    def selection(self) -> str:
        """The flags that select it."""
        chosen = self.recipe.selects
        return f"--teacher {chosen.teacher} --student {chosen.student} --dataset {chosen.dataset}"


@dataclass(frozen=True)
class Catalogue:
    """All recipes of all installed methods.

    Attributes:
        files: Sound recipes in the order of their names.
        broken: For each name of a recipe that cannot be used, or of a method whose recipes cannot be read, why.
    """

    files: tuple[RecipeFile, ...]
    broken: Mapping[str, str]

    def named(self, name: str) -> RecipeFile:
        """The recipe of a name; the method may be left out where no other has a recipe of that name.

        Raises:
            UserError: If there is none, more than one, or it is broken.
        """
        found = [file for file in self.files if name in (file.name, file.name.partition("/")[2])]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"several recipes are called `{name}`; choose {one_of(file.name for file in found)}")
        for broken, reason in self.broken.items():
            if name in (broken, broken.partition("/")[2]):
                raise UserError(f"the recipe `{broken}` cannot be used: {reason}")
        names = [file.name for file in self.files]
        near = did_you_mean(name, [*names, *(each.partition("/")[2] for each in names)])
        raise UserError(f"no recipe is called `{name}`; there is {one_of(names)}{near}")

    def find(
        self, method: str, *, teacher: str | None = None, student: str | None = None, dataset: str | None = None
    ) -> RecipeFile:
        """The one recipe of a method for a teacher, a student and a data set; None leaves a choice open.

        Raises:
            UserError: If the method is not installed, or not exactly one recipe fits.
        """
        installed(MethodSpec).find(method)
        wanted = {"teacher": teacher, "student": student, "dataset": dataset}
        asked = {flag: name for flag, name in wanted.items() if name is not None}
        of_method = [file for file in self.files if file.method == method]
        found = [
            file for file in of_method if all(getattr(file.recipe.selects, flag) == asked[flag] for flag in asked)
        ]
        if len(found) == 1:
            return found[0]
        flags = " ".join(f"--{flag} {name}" for flag, name in asked.items()) or "no flags"
        choices = "; ".join(file.selection for file in found or of_method) or "nothing"
        near = ""
        for flag, name in asked.items():
            known = {str(getattr(file.recipe.selects, flag)) for file in of_method}
            near += "" if name in known else did_you_mean(name, known)
        fault = "more than one recipe" if found else "no recipe"
        hidden = "".join(f" ({name} is broken)" for name in self.broken if name.split("/")[0] == method)
        raise UserError(f"{fault} of `{method}` fits {flags}; choose from: {choices}{hidden}{near}")


def catalogue() -> Catalogue:
    """Read the recipes of every installed method."""
    found: list[RecipeFile] = []
    broken: dict[str, str] = {}
    for kind, spec in installed(MethodSpec).found.items():
        try:
            folder = files(spec.recipes)
        except ModuleNotFoundError as error:
            broken[kind] = f"its package of recipes is missing: {error}"
            continue
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if not path.name.endswith(".yaml"):
                continue
            name = f"{kind}/{path.name.removesuffix('.yaml')}"
            try:
                found.append(RecipeFile(name, kind, path, load_recipe(path)))
            except UserError as error:
                broken[name] = str(error)
    return Catalogue(tuple(found), broken)


def recipe_path(reference: str) -> Path | Traversable:
    """The file behind what a user calls a recipe: a path, or the name of an installed recipe.

    Raises:
        UserError: If it is neither.
    """
    path = Path(reference)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    return catalogue().named(reference).path


def header(text: str) -> str:
    """The comment block at the top of a recipe's text."""
    return "\n".join(takewhile(lambda line: line.startswith("#"), text.splitlines()))
