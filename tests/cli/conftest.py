"""The plug-ins that only the tests of configs and commands install."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bevkd.app import main
from bevkd_common.config.plugins import _discovered
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.stack import StackConfig

STAND_IN = Path(__file__).parents[1] / "common" / "config" / "stand_in"


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


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in a folder of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def toy_command(toy: Path, command: Command) -> Command:
    """The same where the toy package is installed."""
    return command
