import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from bevkd_common.config import plugins
from bevkd_common.config.plugins import (
    DatasetSpec,
    DetectorSpec,
    FolderTools,
    MethodSpec,
    _discovered,
    installed,
    load,
    recognized,
)
from bevkd_common.config.recipes import catalogue
from bevkd_common.errors import UserError

Provide = Callable[[str, str, str], None]

SPEC = """
from __future__ import annotations
from typing import Literal
from bevkd_common.config.model import Config
from bevkd_common.config.plugins import DetectorSpec

class Own(Config):
    kind: Literal["odd"] = "odd"

class Unfinished(Own):
    cell: Absent

SPEC = DetectorSpec("odd", {config}, "nowhere:build", {summary}, describe=str)
"""


@pytest.fixture
def provide(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Provide:
    """Installs a distribution with one module and one entry point ("bevkd.detectors: name = module:attribute")."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(distribution: str, code: str, entry: str) -> None:
        group, _, line = entry.partition(": ")
        folder = tmp_path / f"{distribution}-2.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.0\n")
        (folder / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
        (tmp_path / f"{distribution}.py").write_text(dedent(code))
        _discovered.cache_clear()

    return write


def test_plug_ins_are_found_by_kind(stand_in: Path) -> None:
    detectors, datasets, methods = installed(DetectorSpec), installed(DatasetSpec), installed(MethodSpec)
    assert detectors.find("lift").summary == "A camera detector."
    assert datasets.find("toy").seed_key == "cameras.seed"
    assert methods.find("imitation").summary == "Nobody, 2020"
    assert detectors.origin["lift"] == "stand-in 1.0"


def test_the_spec_of_a_configuration_is_found(stand_in: Path) -> None:
    spec = installed(DetectorSpec).find("pillars")
    assert installed(DetectorSpec).of(spec.config()) is spec


def test_an_unknown_kind_lists_the_choices_and_suggests_the_nearest(stand_in: Path) -> None:
    with pytest.raises(UserError, match=r"no detector `pilars` is installed, only .*; did you mean `pillars`\?"):
        installed(DetectorSpec).find("pilars")


@pytest.mark.parametrize(
    ("code", "attribute", "cause"),
    [
        (
            "import missing_module",
            "SPEC",
            "ModuleNotFoundError: No module named 'missing_module'",
        ),
        ("this is no Python", "SPEC", "SyntaxError: invalid syntax"),
        ("raise RuntimeError('no licence')", "SPEC", "RuntimeError: no licence"),
        ("x = 1", "SPEC", "AttributeError: module 'odd_one' has no attribute 'SPEC'"),
        ("SPEC = 3", "SPEC", "TypeError: its entry point gives int, not DetectorSpec"),
        (
            "from stand_in import PILLARS",
            "PILLARS",
            "ValueError: its entry point is called `odd` but its spec `pillars`",
        ),
        (
            """
            from bevkd_common.config.model import Config
            from bevkd_common.config.plugins import DetectorSpec

            class Kindless(Config):
                cell: float

            SPEC = DetectorSpec("odd", Kindless, "nowhere:build", "Odd.", describe=str)
            """,
            "SPEC",
            "TypeError: its configuration Kindless has no field `kind`",
        ),
        ("raise SystemExit(3)", "SPEC", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "SPEC", "KeyboardInterrupt"),
        ("raise GeneratorExit('enough')", "SPEC", "GeneratorExit: enough"),
        ("raise type('Odd', (BaseException,), {'__str__': lambda self: 1 / 0})", "SPEC", "Odd"),
        ("raise ValueError('x' * 10**6 + chr(10))", "SPEC", "ValueError: xxxxxxxxxxxx"),
        (SPEC.format(config="Own", summary="None"), "SPEC", "TypeError: it has no summary"),
        (SPEC.format(config="Own", summary="' '"), "SPEC", "TypeError: it has no summary"),
        (
            SPEC.format(config="dict", summary="'Odd.'"),
            "SPEC",
            "TypeError: its configuration is type <class 'dict'>",
        ),
        (
            SPEC.format(config="None", summary="'Odd.'"),
            "SPEC",
            "TypeError: its configuration is NoneType None, not",
        ),
        (SPEC.format(config="Unfinished", summary="'Odd.'"), "SPEC", "NameError: name 'Absent' is not defined"),
    ],
)
def test_a_broken_plug_in_spares_the_others_and_shows_its_cause(
    provide: Provide, monkeypatch: pytest.MonkeyPatch, code: str, attribute: str, cause: str
) -> None:
    monkeypatch.delitem(sys.modules, "odd_one", raising=False)
    provide("odd_one", code, f"bevkd.detectors: odd = odd_one:{attribute}")
    detectors = installed(DetectorSpec)
    assert "odd" not in detectors.found
    assert {"pillars", "lift"} <= set(detectors.found)
    with pytest.raises(UserError) as caught:
        detectors.find("odd")
    assert str(caught.value).startswith(f"the detector `odd` cannot be used: odd_one 2.0 fails with {cause}")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["entry_points.txt", "METADATA"])
def test_a_distribution_with_damaged_metadata_hides_no_other(provide: Provide, tmp_path: Path, damage: str) -> None:
    provide("odd_one", "from stand_in import PILLARS", "bevkd.detectors: odd = odd_one:PILLARS")
    (tmp_path / "odd_one-2.0.dist-info" / damage).write_text("[bevkd.detectors]\nno equals sign\n")
    assert {"pillars", "lift", "centerpoint"} <= set(installed(DetectorSpec).found)
    assert not {"odd"} & set(installed(DetectorSpec).found)


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "raise KeyboardInterrupt", "raise RuntimeError('no')"])
def test_recipes_of_a_package_that_fails_are_listed_as_broken(
    provide: Provide, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.delitem(sys.modules, "odd_one", raising=False)
    provide("odd_one", code, "bevkd.recipes: odd = odd_one")
    found = catalogue()
    assert found.broken["odd_one"].startswith("its package of recipes cannot be read: ")
    assert len(found.pairs) >= 20


def test_a_data_set_that_fails_to_look_at_a_folder_spares_the_others(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def recognize(root: Path) -> bool:
        raise RuntimeError("no")

    (tmp_path / "v1.0-mini").mkdir()
    known = installed(DatasetSpec)
    bad = replace(known.found["nuscenes"], folder=FolderTools(recognize, "x:y"))
    monkeypatch.setattr(plugins, "installed", lambda _: replace(known, found={"bad": bad, **known.found}))
    assert recognized(tmp_path).check == known.found["nuscenes"].folder.check  # type: ignore[union-attr]
    assert "the data set `bad` fails to look at" in caplog.text


def test_two_plug_ins_of_one_kind_are_an_error_that_names_both(provide: Provide) -> None:
    provide("rival", "from stand_in import PILLARS", "bevkd.detectors: pillars = rival:PILLARS")
    detectors = installed(DetectorSpec)
    assert "pillars" not in detectors.found
    with pytest.raises(UserError, match=r"rival 2\.0 and stand-in 1\.0 both provide it; uninstall one of them"):
        detectors.find("pillars")


def test_a_reference_loads_what_it_names() -> None:
    assert load("pathlib:Path") is Path


@pytest.mark.parametrize("reference", ["absent_module:build", "pathlib:absent", "pathlib", "", ":x"])
def test_a_reference_to_nothing_is_one_sentence(reference: str) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded \(.*\): repair or reinstall") as caught:
        load(reference)
    assert "\n" not in str(caught.value)


def test_configs_import_no_torch() -> None:
    code = """
        import importlib, pkgutil, sys
        import bevkd_common.config as room
        names = [module.name for module in pkgutil.iter_modules(room.__path__, "bevkd_common.config.")]
        for name in names:
            importlib.import_module(name)
        assert len(names) >= 10, names
        print({"torch", "numpy", "matplotlib"} & set(sys.modules) or "none")
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"
