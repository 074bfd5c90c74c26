"""Plug-ins that only these tests install, beside those of the project."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bevkd_common.config.plugins import _discovered
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.stack import StackConfig

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Puts the stand-in distribution on the path; gives its one recipe as a complete file."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    _rediscover()
    yield STAND_IN / "pillars-lift.toy.yaml"
    monkeypatch.undo()
    _rediscover()


def _rediscover() -> None:
    _discovered.cache_clear()
    StackConfig.model_rebuild(force=True)
    Recipe.model_rebuild(force=True)
