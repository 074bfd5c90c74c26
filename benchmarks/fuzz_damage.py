"""The place of `fuzz.py`: a small world and a finished run of it, and what damages their files."""

import copy
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPLIT = "synthetic_val"
VERSION = "v1.0-synthetic"
SMALL = [
    "dataset.world.train_scenes=1", "dataset.world.val_scenes=2", "dataset.world.keyframes_per_scene=2",
    "dataset.world.lidar_azimuths=72", "teacher_training.steps=1", "student_pretraining=null",
    "student_training.steps=1", "evaluation.bootstrap=2",
]  # fmt: skip
Trial = Callable[[], str | None]


@dataclass
class Place:
    """Where everything lies; `root`, `runs` and `cache` may be written to.

    Attributes:
        base: Of everything; what lies here itself belongs to somebody else.
        undo: Files that the present input has damaged, with their sound content.
    """

    base: Path
    root: Path
    runs: Path
    cache: Path
    undo: dict[Path, bytes | None] = field(default_factory=dict)
    sound: Any = None

    @property
    def allowed(self) -> tuple[Path, ...]:
        """Folders that the commands may write to."""
        return self.root, self.runs, self.cache

    @property
    def run(self) -> Path:
        """The finished run."""
        return self.runs / "tiny"

    def put(self, path: Path, content: bytes) -> None:
        """Damage a file until `restore`."""
        self.undo.setdefault(path, path.read_bytes() if path.is_file() else None)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def canaries(self) -> list[str]:
        """Files that an executed pickle has left; they are removed."""
        found = list(self.base.glob("canary*"))
        for path in found:
            path.unlink()
        return [str(path) for path in found]

    def restore(self) -> None:
        """Put back what `put` has damaged."""
        for path, content in self.undo.items():
            if content is None:
                path.unlink(missing_ok=True)
            elif not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self.undo.clear()


def prepare(base: Path) -> Place:
    """Generate the world and the run."""
    place = Place(base, base / "root", base / "runs", base / "cache")
    for path in place.allowed:
        path.mkdir()
    temporary = place.cache / "tmp"
    temporary.mkdir()
    os.environ |= {
        "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(place.cache), "MPLCONFIGDIR": str(place.cache),
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HOME": str(place.cache),
    }  # fmt: skip
    import tempfile

    tempfile.tempdir = str(temporary)
    os.chdir(place.cache)
    (base / "thesis.tex").write_text("years of work")
    changes = [part for value in SMALL for part in ("--set", value)]
    flags = ["--teacher", "centerpoint", "--student", "bevdet", "--gpus", "0", "--jobs", "1"]
    command = [sys.executable, "-m", "bevkd", "run", "distillbev", *flags, "--out", str(place.run), *changes]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (world,) = (place.runs / ".data").glob("synthetic-*")
    place.root.rmdir()
    shutil.copytree(world, place.root)
    from bevkd_common.data.nuscenes.index_file import open_index

    place.sound = open_index(place.root, VERSION)
    (place.cache / "sound.json").write_text(json.dumps(_sound_submission(place.sound)))
    return place


def _sound_submission(index: Any) -> dict[str, Any]:
    """A few annotations of each sample of the split as detections."""
    from bevkd_common.config.datasets.nuscenes_names import CLASSES

    results: dict[str, Any] = {}
    annotations = index.annotations
    for row in index.split(SPLIT):
        token = index.key_frames.token[row].decode()
        rows = [at for at in range(*annotations.rows(row).indices(10**9)) if annotations.label[at] >= 0][:6]
        results[token] = [
            {
                "sample_token": token, "translation": annotations.global_center[at].tolist(),
                "size": annotations.global_size[at].tolist(), "rotation": annotations.global_rotation[at].tolist(),
                "velocity": [0.0, 0.0], "detection_name": CLASSES[annotations.label[at]], "detection_score": 0.5,
                "attribute_name": "",
            }
            for at in rows
        ]  # fmt: skip
    flags = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    return {"meta": flags, "results": results}


def hostile(rng: random.Random, place: Place) -> Any:
    """A value that stands where another is expected."""
    return rng.choice([
        None, True, False, 0, -1, 1, 3.5, -0.0, 1e308, 1e-308, 1e200, 2**31, 2**63, 2**64, 10**4000, -(2**63) - 1,
        float("nan"), float("inf"), float("-inf"), "", " ", "x", "0", "nan", "\0", "\n", "\ud800", "\U0001f600",
        "é",
        "../../thesis.tex", "..", ".", "/", str(place.base / "thesis.tex"), str(place.base / "new"),
        "../../../new/x",
        "C:\\x", "-", "--set", "x" * 300, "y" * 200_000, "%s%n", "{0.__class__}", "{{ 1 + 1 }}", "$(touch canary)",
        [], [None], [[]], [[[[]]]], [0] * 3, ["x"] * 5, [1e308] * 4, [0, 0, 0, 0], {}, {"": None}, {"x": {}},
        {"kind": "stack"}, {"kind": None}, {"$ref": "#"}, "teacher-000000000000", "baseline-" + "f" * 12,
    ])  # fmt: skip


def damaged_value(rng: random.Random, value: Any, place: Place) -> Any:
    """A copy of JSON-ready data with one change somewhere."""
    value = copy.deepcopy(value) if not isinstance(value, str | int | float | bool | None) else value
    parent: Any = None
    key: Any = None
    here = value
    while isinstance(here, dict | list) and here and (parent is None or rng.random() < 0.85):
        parent = here
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        here = parent[key]
    if parent is None:
        return hostile(rng, place)
    match rng.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(here))
        case 2 if isinstance(parent, dict):
            parent[str(hostile(rng, place))[:1000]] = here
        case 3 if isinstance(here, int | float) and not isinstance(here, bool):
            parent[key] = rng.choice([-here, here * 1000, here + 1, here / 1000, str(here)])
        case _:
            parent[key] = hostile(rng, place)
    return value


def damaged_bytes(rng: random.Random, content: bytes, place: Place) -> bytes:
    """Bytes with one accident: cut off, flipped, overwritten, repeated, of another kind."""
    place_at = rng.randrange(max(len(content), 1))
    few = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 16)))
    match rng.randrange(9):
        case 0:
            return content[:place_at]
        case 1:
            flipped = bytearray(content or b"x")
            flipped[place_at % len(flipped)] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 2:
            return content[:place_at] + few + content[place_at:]
        case 3:
            return content[:place_at] + bytes(min(4096, len(content) - place_at)) + content[place_at + 4096 :]
        case 4:
            return content[place_at:] + content[:place_at]
        case 5:
            return rng.choice(
                [b"", b"\0" * 100, b"[" * 50_000, b"{" * 50_000, b"\xff\xfe", b"<!DOCTYPE html><html>"]
            )
        case 6:
            return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
        case 7:
            return canary(place)
        case _:
            return content[:place_at] + content[place_at + len(few) :]


class Canary:
    """Opens a file for writing when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def canary(place: Place) -> bytes:
    """A pickle that leaves a file when it is executed."""
    return pickle.dumps(Canary(str(place.base / "canary")))


def damaged_json(rng: random.Random, path: Path, place: Place) -> None:
    """Damage a JSON file, mostly in its values."""
    content = path.read_bytes()
    if rng.random() < 0.3:
        place.put(path, damaged_bytes(rng, content, place))
        return
    value = damaged_value(rng, json.loads(content), place)
    place.put(path, json.dumps(value).encode("utf-8", "surrogatepass"))


def bevkd(*arguments: object) -> Trial:
    """A trial that runs the command in this process."""

    def trial() -> None:
        from bevkd.app import main

        main([str(argument) for argument in arguments])

    return trial
