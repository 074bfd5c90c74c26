"""The classes of inputs of `fuzz.py`."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_damage import (
    SPLIT,
    VERSION,
    Canary,
    Place,
    Trial,
    bevkd,
    canary,
    damaged_bytes,
    damaged_json,
    damaged_value,
    hostile,
)

PAIR_RECIPE = "centerpoint-bevdet.synthetic"


@dataclass(frozen=True)
class Inputs:
    """A class of inputs: its share of all, and what makes one."""

    share: float
    make: Callable[[random.Random, Place], Trial]


def _recipes(rng: random.Random, place: Place) -> Trial:
    from bevkd_common.config.reading.yaml_tree import parse, plain

    path = place.cache / "recipe.yaml"
    text = (place.run / "config.yaml").read_text(encoding="utf-8")
    if rng.random() < 0.5:
        content = damaged_bytes(rng, text.encode(), place)
    elif rng.random() < 0.5:
        value = damaged_value(rng, plain(parse(text, "x")), place)
        content = json.dumps(value).encode("utf-8", "surrogatepass")
    else:
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = rng.choice(
            [
                "",
                lines[at] * 2,
                " " + lines[at],
                "\t" + lines[at],
                "- " + lines[at],
                lines[at] + ": {",
                "!!python/object:os.system x",
                "a: &a [*a, *a]",
                "<<: *a",
                lines[at].partition(":")[0] + ": " + str(hostile(rng, place))[:5000],
                "%YAML 9.9",
                "---",
                "? [a]",
                "\ufeff" + lines[at],
                lines[at] + " # " + "z" * 100_000,
                "a: |\n  x",
                "'" + lines[at],
                lines[at].replace(":", ""),
            ]
        )
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    place.put(path, content)
    return bevkd("config", "check", path)


def _overrides(rng: random.Random, place: Place) -> Trial:
    from bevkd_common.config.reading.yaml_tree import parse, plain

    tree: Any = plain(parse((place.run / "config.yaml").read_text(encoding="utf-8"), "x"))
    flags = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        keys: list[str] = []
        here = tree
        while isinstance(here, dict | list) and here and rng.random() < 0.85:
            keys.append(str(rng.choice(list(here) if isinstance(here, dict) else list(range(len(here))))))
            here = here[keys[-1]] if isinstance(here, dict) else here[int(keys[-1])]
        if rng.random() < 0.2:
            keys.insert(
                rng.randrange(len(keys) + 1),
                str(rng.choice(["9" * 5000, "-1", "x", "", "é", "kind", "0", "²", "x" * 10**5])),
            )
        value = hostile(rng, place)
        written = str(value) if rng.random() < 0.5 else json.dumps(value)
        if rng.random() < 0.1:
            written = rng.choice(
                [
                    "[",
                    "{",
                    "'",
                    "\\U00110000",
                    '"\\U00110000"',
                    '"\\ud800"',
                    "!!int x",
                    "*a",
                    "&a b",
                    "0x" + "f" * 500,
                    "1_0",
                ]
            )
        flags += ["--set", f"{'.'.join(keys)}{rng.choice(['=', '=', '=', '=', '', '=='])}{written}"]
    return bevkd("config", "check", place.run / "config.yaml", *flags)


TABLES = (
    "attribute", "category", "instance", "sample", "sample_annotation", "sample_data", "scene", "sensor", "splits",
)  # fmt: skip


def _tables(rng: random.Random, place: Place) -> Trial:
    damaged_json(rng, place.root / VERSION / f"{rng.choice(TABLES)}.json", place)
    return _index_or_check(rng, place)


def _index_or_check(rng: random.Random, place: Place) -> Trial:
    if rng.random() < 0.6:
        return bevkd("data", "index", place.root, "--rebuild", *(["--allow-missing"] if rng.random() < 0.3 else []))
    return bevkd("data", "check", place.root, "--samples", 2)


def _calibrations(rng: random.Random, place: Place) -> Trial:
    path = place.root / VERSION / f"{rng.choice(['calibrated_sensor', 'ego_pose'])}.json"
    rows = json.loads(path.read_bytes())
    row = rng.choice(rows)
    key = rng.choice([key for key in ("rotation", "translation", "camera_intrinsic") if row.get(key)])
    row[key] = damaged_value(rng, row[key], place)
    place.put(path, json.dumps(rows).encode("utf-8", "surrogatepass"))
    return _index_or_check(rng, place)


def _indices(rng: random.Random, place: Place) -> Trial:
    from dataclasses import fields

    import numpy as np
    from bevkd_common.data.nuscenes.index_file import PARTS, open_index, save_index
    from bevkd_common.data.nuscenes.tables import table_state

    path = place.root / VERSION / "bevkd-index.safetensors"
    state = table_state(place.root, VERSION)
    save_index(place.sound, [path], state)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    match rng.randrange(3):
        case 0:  # behind the header
            at = rng.randrange(header, len(content) - 16)
            damaged = content[:at] + rng.randbytes(rng.randrange(1, 16)) + content[at + 16 :]
            damaged += content[len(damaged) :]
        case 1:  # in the header, of the same length
            at = rng.randrange(8, header)
            damaged = content[:at] + bytes([rng.randrange(32, 127)]) + content[at + 1 :]
        case _:
            damaged = damaged_bytes(rng, content, place)
    path.write_bytes(damaged)

    def trial() -> str | None:
        found = open_index(place.root, VERSION)
        for part, kind in PARTS.items():
            for one in fields(kind):
                expected, value = (getattr(getattr(index, part), one.name) for index in (place.sound, found))
                if expected.dtype != value.dtype or not np.array_equal(
                    expected, value, equal_nan=expected.dtype.kind == "f"
                ):
                    return "damaged index used"
        return None

    return trial


def _run_files(rng: random.Random, place: Place) -> Trial:
    stages = [path for path in (place.runs / ".stages").glob("*-*") if path.is_dir()]
    names = ("results.json", "trained.json", "metrics.jsonl", "evidence-raw.npz", "inputs.json")
    choices = [place.run / name for name in ("run.json", "run.json", "environment.json", "config.yaml")]
    path = rng.choice([*choices, rng.choice(stages) / rng.choice(names)])
    if path.suffix == ".json" and path.name != "inputs.json":
        damaged_json(rng, path, place)
    else:
        place.put(path, damaged_bytes(rng, path.read_bytes(), place))
    if path.name == "config.yaml" and rng.random() < 0.5:
        return bevkd("run", "--from", path, "--gpus", 0, "--jobs", 1)
    if rng.random() < 0.05:
        return bevkd("report", place.run, "--gpus", 0)
    # Without --restart being wanted here: of the same folder, the recipe of the run.
    if rng.random() < 0.2:
        return lambda: _restart(place)
    return lambda: _read_run(place)


def _read_run(place: Place) -> None:
    """What `report` reads, without models and pictures."""
    from accelerate import Accelerator
    from bevkd_common.engine.metrics_log import read_metrics
    from bevkd_common.errors import UserError
    from bevkd_common.experiment.build import build_evaluator
    from bevkd_common.experiment.finished import open_run
    from bevkd_common.experiment.record import RunFolder
    from bevkd_common.experiment.scoring import evidence_file, kept_scores
    from bevkd_common.experiment.stages import read_trained
    from bevkd_common.progress import SilentReporter
    from bevkd_common.report.figures import _terms, _weighted_sum

    try:
        folder = RunFolder(place.run)
        run = open_run(folder, SilentReporter(), Accelerator(cpu=True))
        folder.read_environment()
        for seed, lab in run.laboratories.items():
            evaluator = build_evaluator(run.recipe.dataset, lab.dataset, "val")
            for arm in run.arms:
                stage = run.stages[seed][arm.name]
                read_trained(stage / "trained.json")
                kept_scores(lab, stage)
                evaluator.load_evidence(evidence_file(stage, "raw"))
                curve = read_metrics(stage / "metrics.jsonl")
                for name in _terms(curve):
                    _weighted_sum(curve, name)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _restart(place: Place) -> None:
    """`--restart` up to the training, in copies of the run and its stages."""
    from bevkd_common.errors import UserError
    from bevkd_common.experiment.record import RunFolder

    copied = place.runs / "copies"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(place.run, copied / "tiny")
    for stage in (place.runs / ".stages").glob("*-*"):
        (copied / ".stages" / stage.name).mkdir(parents=True)
    try:
        RunFolder(copied / "tiny").open("a: 1\n", restart=True)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _submissions(rng: random.Random, place: Place) -> Trial:
    path = place.cache / "submission.json"
    value = json.loads((place.cache / "sound.json").read_bytes())
    if rng.random() < 0.25:
        damaged = damaged_bytes(rng, json.dumps(value).encode(), place)
    else:
        damaged = json.dumps(damaged_value(rng, value, place)).encode("utf-8", "surrogatepass")
    place.put(path, damaged)
    flags = ["--engine", "devkit"] if rng.random() < 0.1 else []
    return bevkd("eval", path, "--data-root", place.root, "--split", rng.choice([SPLIT] * 9 + ["absent"]), *flags)


def _checkpoints(rng: random.Random, place: Place) -> Trial:
    (stage,) = (path for path in (place.runs / ".stages").glob("baseline-*") if path.is_dir())
    (folder,) = (stage / "checkpoints").glob("step-*")
    weights = (folder / "raw.safetensors").read_bytes()
    if rng.random() < 0.5:
        path = place.cache / f"checkpoint{rng.choice(['.pth', '.pt', '.safetensors', '.ckpt', '.pkl'])}"
        place.put(path, _foreign(rng, place, weights))
        return bevkd(
            "weights",
            "import",
            path,
            "--as",
            rng.choice(["centerpoint", "bevdet"]),
            "--out",
            place.cache / "out.safetensors",
        )
    name = rng.choice(["manifest.json", "raw.safetensors", "state.pt"])
    if name == "manifest.json" and rng.random() < 0.7:
        damaged_json(rng, folder / name, place)
    elif name == "state.pt":
        place.put(folder / name, _foreign(rng, place, weights))
    else:
        place.put(folder / name, damaged_bytes(rng, (folder / name).read_bytes(), place))
    return lambda: _resume(stage)


def _foreign(rng: random.Random, place: Place, weights: bytes) -> bytes:
    import io

    import torch

    content: Any = rng.choice(
        [
            {"state_dict": {"a": torch.zeros(2)}, "meta": Canary(str(place.base / "canary"))},
            Canary(str(place.base / "canary")),
            {"state_dict": hostile(rng, place)},
            hostile(rng, place),
            {"state_dict": {"x" * 10_000: torch.zeros(1)}},
            {"optimizer": {}, "rng": hostile(rng, place), "scaler": {}},
            {"state_dict": {"a": torch.zeros(0)}},
        ]
    )
    stream = io.BytesIO()
    match rng.randrange(4):
        case 0:
            return canary(place)
        case 1:
            return damaged_bytes(rng, weights, place)
        case 2:
            torch.save(content, stream, _use_new_zipfile_serialization=rng.random() < 0.5)
            return stream.getvalue()
        case _:
            torch.save(content, stream)
            return damaged_bytes(rng, stream.getvalue(), place)


def _resume(stage: Path) -> None:
    """What continuing a training reads."""
    from bevkd_common.engine.checkpoint import newest_sound
    from bevkd_common.errors import UserError
    from safetensors.torch import load_file

    try:
        found = newest_sound(stage / "checkpoints", print)
        if found is not None:
            load_file(found.folder / "raw.safetensors")
            if not found.finished:
                found.state()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


BODIES = (
    "raise SystemExit(3)",
    "import sys; sys.exit('bye')",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "1 / 0",
    "x = (",
    "import absent",
    "raise type('Odd', (BaseException,), {'__str__': lambda self: 1 / 0})",
    "raise ValueError('x' * 10**6)",
    "raise OSError(28, 'full')",
    "def f(): f()\nf()",
    "SPEC = 3",
    "SPEC = DetectorSpec('odd', Own, 'a:b', None, describe=str)",
    "SPEC = DetectorSpec('odd', Own, None, 'x', str)",
    "SPEC = DetectorSpec('odd', dict, 'a:b', 'x', describe=str)",
    "SPEC = DetectorSpec('odd', Unfinished, 'a:b', 'x', describe=str)",
    "SPEC = DetectorSpec('odd', Own, 'a:b', 'x\\ny', describe=str)",
    "SPEC = DetectorSpec('odd', Own, 'a:b', '\\ud800', describe=str)",
    "SPEC = MethodSpec('odd', 'T', 'P', Own, 'a:b', recipes='absent')",
    "SPEC = MethodSpec('odd', 'T', 'P', Own, 'a:b', recipes='odd_pairs')",
    "SPEC = MethodSpec('odd', 'T', None, Own, 'a:b', recipes=3)",
    "SPEC = MethodSpec('odd', 'T', 'P', Own, 'a:b', ablations=None)",
    "SPEC = DatasetSpec('odd', Own, 'a:b', 'c:d', 'x', classes_of=tuple, folder=Fails)",
    "SPEC = DatasetSpec('odd', Own, 'a:b', 'c:d', 'x', classes_of=tuple, folder=Exits)",
    "SPEC = DetectorSpec(None, Own, 'a:b', 'x', describe=str)",
    "SPEC = DetectorSpec('odd', Own, 'a:b', 'x', describe=str)",
)
HEAD = """
from typing import Literal
from bevkd_common.config.model import Config
from bevkd_common.config.plugins import *

class Own(Config):
    kind: Literal['odd'] = 'odd'

class Unfinished(Own):
    cell: 'Absent'

Fails = FolderTools(lambda root: 1 / 0, 'a:b')
Exits = FolderTools(lambda root: exit(), 'a:b')

"""


def _plugins(rng: random.Random, place: Place) -> Trial:
    site = place.cache / "site"
    body = rng.choice(BODIES)
    group = rng.choice(["bevkd.detectors", "bevkd.methods", "bevkd.datasets", "bevkd.recipes"])
    entry = f"[{group}]\n{rng.choice(['odd', 'odd', 'odd', 'o' * 500, 'bevdet', 'stack'])} = odd_plugin:SPEC\n"
    if group == "bevkd.recipes":
        entry = f"[{group}]\nodd = {rng.choice(['odd_plugin', 'odd_pairs', 'absent', 'json'])}\n"
    if rng.random() < 0.1:
        entry = damaged_bytes(rng, entry.encode(), place).decode(errors="replace")
    place.put(site / "odd-1.dist-info" / "entry_points.txt", entry.encode())
    metadata = b"Metadata-Version: 2.1\nName: odd\nVersion: 1\n"
    place.put(
        site / "odd-1.dist-info" / "METADATA",
        metadata if rng.random() < 0.8 else damaged_bytes(rng, metadata, place),
    )
    place.put(site / "odd_plugin.py", (HEAD + body).encode())
    place.put(site / "odd_pairs" / "__init__.py", rng.choice([b"", body.encode()]))
    place.put(site / "odd_pairs" / "odd.yaml", damaged_bytes(rng, (place.run / "config.yaml").read_bytes(), place))
    command = rng.choice(
        [
            ("plugins",),
            ("recipes", "ls"),
            ("data", "index", str(place.root)),
            ("config", "check", PAIR_RECIPE),
        ]
    )
    # It starts processes that import torch.
    command = ("doctor",) if rng.random() < 0.01 else command

    def trial() -> None:
        import logging

        from bevkd_common.config.plugins import _discovered
        from bevkd_common.config.recipe import Recipe
        from bevkd_common.config.stack import StackConfig

        logging.disable(logging.WARNING)

        def again() -> None:
            for name in ("odd_plugin", "odd_pairs"):
                sys.modules.pop(name, None)
            _discovered.cache_clear()
            StackConfig.model_rebuild(force=True)
            Recipe.model_rebuild(force=True)

        sys.path.insert(0, str(site))
        try:
            again()
            bevkd(*command)()
        finally:
            sys.path.remove(str(site))
            again()

    return trial


def _signals(rng: random.Random, place: Place) -> Trial:
    number = rng.choice([signal.SIGINT, signal.SIGTERM])
    arguments = rng.choice([
        ["recipes", "ls"], ["config", "check", PAIR_RECIPE], ["data", "index", str(place.root), "--rebuild"],
        ["data", "check", str(place.root), "--samples", "2"], ["report", str(place.run), "--gpus", "0"],
        ["eval", str(place.run), "--gpus", "0"],
    ])  # fmt: skip
    wait = rng.choice([0.0, 0.1, 0.3, rng.uniform(0, 2), rng.uniform(0, 6)])

    def trial() -> None:
        # From the first line of the package on.
        code = f"print(flush=True); import sys; sys.argv = {['bevkd', *arguments]!r}\n"
        code += "from bevkd.start import main; main()"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait + 0.05)
        process.send_signal(number)
        _, said = process.communicate()
        print(said.decode(), file=sys.stderr)
        if "Traceback" in said.decode():
            raise SystemExit(1)
        # A process that SIGTERM ends at once has no exit code; shells report 143.
        raise SystemExit(128 - process.returncode if process.returncode < 0 else process.returncode)

    return trial


CLASSES = {
    "recipes": Inputs(0.22, _recipes),
    "--set": Inputs(0.22, _overrides),
    "tables": Inputs(0.12, _tables),
    "calibrations": Inputs(0.06, _calibrations),
    "index files": Inputs(0.14, _indices),
    "run files": Inputs(0.07, _run_files),
    "submissions": Inputs(0.1, _submissions),
    "checkpoints": Inputs(0.05, _checkpoints),
    "plug-ins": Inputs(0.02, _plugins),
    "signals": Inputs(0.005, _signals),
}
"""By name; the shares add up to a little more than one."""
