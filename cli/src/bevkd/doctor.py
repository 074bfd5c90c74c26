"""`bevkd doctor`: checks of this machine, and the command that repairs each problem."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from bevkd.display import print_table

NEEDED = ("bevkd", "bevkd-common", "torch", "torchvision", "timm", "accelerate", "numpy", "scipy", "safetensors")
IMPORTED = ("torchvision", "timm", "accelerate", "scipy")
"""Packages that may be installed and still not work, if built for another torch or numpy."""
OPTIONAL = {
    "spconv-cu120": "compiled sparse convolution; without it, the pure-torch one is used (CPython 3.11 on Linux)",
    "nuscenes-devkit": "`bevkd eval --engine devkit`",
    "tensorboard": "`trackers: [tensorboard]` in a recipe",
    "wandb": "`trackers: [wandb]`",
    "mlflow": "`trackers: [mlflow]`",
}
FITTING_TORCH = "uv pip install -U torch torchvision --torch-backend=auto"
"""uv selects the build that fits the driver."""
LEAST_DISK_GB, LEAST_MEMORY_GB = 5.0, 4.0
SLOWEST_S = 120

TORCH_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "built_for": torch.cuda.get_arch_list() if cuda else [],
    "devices": [
        {"name": p.name, "gb": p.total_memory / 1e9, "arch": f"sm_{p.major}{p.minor}"}
        for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ] if cuda else [],
    "threads": torch.get_num_threads(),
}))
"""

State = Literal["ok", "optional", "red"]


@dataclass(frozen=True)
class Line:
    """The result of one check.

    Attributes:
        state: Whether the check passed.
        what: Name of the checked item.
        found: What was found.
        repair: The command that repairs it; empty if there is nothing to repair.
    """

    state: State
    what: str
    found: str
    repair: str = ""


def doctor(
    data_root: Annotated[
        list[Path] | None, typer.Option(help="Folder of a data set to check too; may be repeated.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where runs are written.")] = Path("runs"),
) -> None:
    """Check Python, packages, devices, memory, disk and data; exit code 2 if something must be repaired."""
    lines = [*_python(), *_packages(), *_torch(), *_plugins(), *_machine(runs)]
    for root in data_root or ():
        lines += _data(root)
    print_table(
        ("", "what", "found", "repair with"), [(line.state, line.what, line.found, line.repair) for line in lines]
    )
    if any(line.state == "red" for line in lines):
        raise SystemExit(2)


def _python() -> Iterator[Line]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Line("ok" if fits else "red", "Python", found, "" if fits else "uv python install 3.11 && uv sync")


def _packages() -> Iterator[Line]:
    for name in NEEDED:
        installed = _version(name)
        if installed is None:
            yield Line("red", name, "not installed", "uv sync")
            continue
        failure = _import_failure(name) if name in IMPORTED else None
        repair = f"uv pip install --reinstall {name}" if failure else ""
        yield Line("red" if failure else "ok", name, failure or installed, repair)
    for name, purpose in OPTIONAL.items():
        installed = _version(name)
        repair = "" if installed else f"uv pip install {name}"
        yield Line("ok" if installed else "optional", name, installed or f"not installed: {purpose}", repair)


def _torch() -> Iterator[Line]:
    if _version("torch") is None:
        return
    done = _probe(TORCH_PROBE)
    if done.returncode:
        yield Line("red", "torch works", _last_line(done.stderr), "uv pip install --reinstall torch")
        return
    torch = json.loads(done.stdout.splitlines()[-1])
    yield Line("ok", "torch works", f"{torch['version']}, {torch['threads']} threads")
    driver = _driver()
    if driver and torch["cuda"] is None:
        yield Line("red", "GPU", f"driver {driver}, but torch is built without CUDA", FITTING_TORCH)
    elif driver and not torch["devices"]:
        found = f"driver {driver} is too old for torch's CUDA {torch['cuda']}"
        yield Line("red", "GPU", found, FITTING_TORCH)
    elif not torch["devices"]:
        yield Line("optional", "GPU", "none: everything runs on the CPU")
    for device in torch["devices"]:
        # A build for sm_80 also runs on sm_86.
        served = any(device["arch"][:-1] == built[:-1] for built in torch["built_for"])
        found = f"{device['name']}, {device['gb']:.0f} GB, {device['arch']}, driver {driver}"
        repair = "" if served else FITTING_TORCH
        yield Line("ok" if served else "red", "GPU", found if served else f"{found}: torch has no kernels", repair)


def _plugins() -> Iterator[Line]:
    from bevkd_common.config.plugins import GROUPS, installed

    for sort in (installed(spec_type) for spec_type in GROUPS):
        yield Line("ok", f"{sort.noun}s", ", ".join(sort.found) or "none")
        for kind in sort.broken:
            package = sort.origin[kind].split(" ")[0]
            yield Line("red", f"{sort.noun} {kind}", sort.broken[kind], f"uv pip install --reinstall {package}")


def _machine(runs: Path) -> Iterator[Line]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    enough = memory >= LEAST_MEMORY_GB
    found = f"{memory:.0f} GB, {os.cpu_count()} cores"
    yield Line("ok" if enough else "red", "memory", found, "" if enough else "use a machine with 4 GB or more")
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free / 1e9
    writable = os.access(place, os.W_OK)
    found = f"{free:.0f} GB free in {place}" if writable else f"{place} cannot be written"
    fine = writable and free >= LEAST_DISK_GB
    yield Line("ok" if fine else "red", "disk", found, "" if fine else "bevkd run ... --out /elsewhere/NAME")


def _data(root: Path) -> Iterator[Line]:
    from bevkd_common.config.plugins import load, recognized
    from bevkd_common.errors import UserError

    try:
        tools = recognized(root)
    except UserError as error:
        yield Line("red", str(root), str(error), "name another folder with --data-root")
        return
    if tools.diagnose is None:
        yield Line("ok", str(root), "recognised")
        return
    for one in load(tools.diagnose)(root):
        yield Line(one.state, one.what, one.found, one.repair)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _probe(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in its own process: a broken library may crash it."""
    command = [sys.executable, "-c", code]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SLOWEST_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {SLOWEST_S} s")


def _import_failure(name: str) -> str | None:
    done = _probe(f"import {name.replace('-', '_')}")
    return _last_line(done.stderr) or f"ended with exit code {done.returncode}" if done.returncode else None


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None
