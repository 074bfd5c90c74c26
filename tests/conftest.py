"""Repeatable examples for all, and the toy plug-in packages installed for one test in this process."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, so that a failure is a failure of the change at hand.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

TOYS = tuple(Path(__file__).parent / "e2e" / name for name in ("toy", "toy_variants"))


@pytest.fixture
def toy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Puts the toy packages and their entry points on the path; gives the toy recipe as one complete file."""
    site = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(str(site))
    for source in TOYS:
        _install(source, site)
        monkeypatch.syspath_prepend(str(source / "src"))
    _rediscover()
    from bevkd_common.config.recipes import choose

    recipe = site / "toy.yaml"
    recipe.write_text(choose("toy_method/toy").text())
    yield recipe
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.startswith("bevkd_toy")]:
        del sys.modules[name]
    _rediscover()


def _install(source: Path, site: Path) -> None:
    """Write what an installer leaves of a distribution beside its modules."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    about = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _rediscover() -> None:
    from bevkd_common.config.plugins import _discovered
    from bevkd_common.config.recipe import Recipe
    from bevkd_common.config.stack import StackConfig

    _discovered.cache_clear()
    StackConfig.model_rebuild(force=True)
    Recipe.model_rebuild(force=True)
