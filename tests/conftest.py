"""Repeatable examples for all, and the toy plug-in package installed for one test in this process."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, so that a failure is a failure of the change at hand.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

TOY = Path(__file__).parent / "e2e" / "toy"


@pytest.fixture
def toy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Puts the toy package and its entry points on the path; gives its recipe as one complete file."""
    project = tomllib.loads((TOY / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    about = site / f"bevkd_toy-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(TOY / "src"))
    _rediscover()
    from bevkd_common.config.recipes import choose

    recipe = site / "toy.yaml"
    recipe.write_text(choose("toy_method/toy").text())
    yield recipe
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.partition(".")[0] == "bevkd_toy"]:
        del sys.modules[name]
    _rediscover()


def _rediscover() -> None:
    from bevkd_common.config.plugins import _discovered
    from bevkd_common.config.recipe import Recipe
    from bevkd_common.config.stack import StackConfig

    _discovered.cache_clear()
    StackConfig.model_rebuild(force=True)
    Recipe.model_rebuild(force=True)
