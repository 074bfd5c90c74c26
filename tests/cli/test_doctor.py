"""The doctor on this machine, and on machines that lack something."""

import json
import subprocess
import sys

import pytest
from bevkd import doctor
from bevkd.app import main


@pytest.fixture
def examine(capsys, monkeypatch):
    # Importing every library in a process of its own takes seconds and is done once, below.
    monkeypatch.setattr(doctor, "IMPORTED", ())

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["doctor", *map(str, arguments)])
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        return stop.value.code or 0, {what: (state, found, repair) for state, what, found, repair in rows}

    return call


def test_a_sound_machine(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert not stop.value.code
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {row[0] for row in rows} <= {"ok", "optional"}
    names = {row[1] for row in rows}
    assert names >= {*doctor.NEEDED, *doctor.OPTIONAL, "Python", "torch works", "methods", "memory", "disk"}


def test_without_torch_it_says_what_to_do(examine, monkeypatch):
    present = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torch" else present(name))
    code, rows = examine()
    assert code == 2
    assert rows["torch"] == ("red", "not installed", "uv sync")
    assert "torch works" not in rows


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from bevkd import doctor
from bevkd.app import main
present = doctor._version
doctor._version = lambda name: None if name == "torch" else present(name)
doctor.IMPORTED = ()
main(["doctor"])
"""


def test_it_runs_where_torch_cannot_be_imported():
    """In an interpreter that refuses torch, as where it is missing."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "red\ttorch\tnot installed\tuv sync" in done.stdout.splitlines()
    assert "ok\tmethods\tdistillbev" in done.stdout


def _torch(**changes):
    content = {"version": "2.9", "cuda": "12.8", "built_for": ["sm_80"], "devices": [], "threads": 2} | changes
    return subprocess.CompletedProcess([], 0, json.dumps(content), "")


GPU = {"name": "RTX", "gb": 24.0, "arch": "sm_86"}


@pytest.mark.parametrize(
    ("torch", "driver", "expected"),
    [
        (_torch(), None, ("optional", "none: everything runs on the CPU", "")),
        (_torch(devices=[GPU]), "570", ("ok", "RTX, 24 GB, sm_86, driver 570", "")),
        (
            _torch(devices=[GPU | {"arch": "sm_120"}]),
            "570",
            ("red", "RTX, 24 GB, sm_120, driver 570: torch has no kernels", doctor.FITTING_TORCH),
        ),
        (
            _torch(cuda=None),
            "570",
            ("red", "driver 570, but torch is built without CUDA", doctor.FITTING_TORCH),
        ),
        (_torch(), "470", ("red", "driver 470 is too old for torch's CUDA 12.8", doctor.FITTING_TORCH)),
    ],
)  # fmt: skip
def test_gpus(examine, monkeypatch, torch, driver, expected):
    monkeypatch.setattr(doctor, "_probe", lambda code: torch)
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    code, rows = examine()
    assert rows["GPU"] == expected
    assert code == (2 if expected[0] == "red" else 0)


def test_a_torch_that_crashes_is_one_line(examine, monkeypatch):
    crash = subprocess.CompletedProcess([], 1, "", "Traceback\n  ...\nImportError: undefined symbol: x\n")
    monkeypatch.setattr(doctor, "_probe", lambda code: crash)
    monkeypatch.setattr(doctor, "IMPORTED", ("timm",))
    _, rows = examine()
    assert rows["torch works"] == ("red", "ImportError: undefined symbol: x", "uv pip install --reinstall torch")
    assert rows["timm"] == ("red", "ImportError: undefined symbol: x", "uv pip install --reinstall timm")


def test_data_roots(examine, tmp_path):
    code, rows = examine("--data-root", tmp_path)
    assert (code, "it holds no data of `nuscenes`" in rows[str(tmp_path)][1]) == (2, True)
    (tmp_path / "v1.0-mini").mkdir()
    code, rows = examine("--data-root", tmp_path)
    assert (code, rows[str(tmp_path)][:2]) == (2, ("red", "no tables"))
    (tmp_path / "v1.0-mini" / "sample.json").touch()
    (tmp_path / "samples").mkdir()
    code, rows = examine("--data-root", tmp_path)
    assert code == 2
    expected = ("optional", "v1.0-mini, not indexed", f"bevkd data index {tmp_path} --version v1.0-mini")
    assert rows[str(tmp_path)] == expected
    assert rows[str(tmp_path / "samples")][:2] == ("ok", "there")
    assert rows[str(tmp_path / "sweeps")][:2] == ("red", "missing")
    assert rows[str(tmp_path / "can_bus")][:2] == ("optional", "missing")


def test_a_full_disk_is_red(examine, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e9)
    code, rows = examine("--runs", tmp_path / "not" / "yet")
    assert code == 2
    assert rows["disk"][0] == "red"
    assert str(tmp_path) in rows["disk"][1]
