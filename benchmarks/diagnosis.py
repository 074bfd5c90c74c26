"""Write data and submissions in wrong conventions, each fault alone and in pairs, and count what is named.

    python benchmarks/diagnosis.py --folder worlds --output diagnosis.json

Three synthetic worlds are made once in `--folder`. Submissions are made from the annotations with the noise of two
detectors, one with LiDAR and one with cameras; tables and files of points are rewritten. A single fault is *named*
if its own finding is reported and no other. A pair is *named* if at least one of its findings is reported and no
other; the table also counts how often both are. Two faults of the same part of a box are not a pair: their product
is a third fault, or none. Exit code 1 if less than 95 % are named, a wrong finding is reported, or untouched data
is accused.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.nuscenes.check import annotated_sweep
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.nuscenes.index_build import build_index
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.nuscenes.plausibility import Plausibility
from bevkd_common.data.nuscenes.point_readings import LAYOUTS
from bevkd_common.data.nuscenes.poses import key_frame_poses
from bevkd_common.data.nuscenes.reader import NuScenesReader
from bevkd_common.data.sensor_files import SensorFiles
from bevkd_common.data.synthetic import ensure_world
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.global_boxes import NO_ATTRIBUTE, Cuboids, DetectionArrays
from bevkd_common.evaluation.nuscenes.submission_checks import convention_findings
from bevkd_common.geometry.convention_checks import AS_IS
from diagnosis_faults import (
    FILE_FAULTS,
    SUBMISSION_FAULTS,
    TABLE_FAULTS,
    Boxes,
    Fault,
    FileFault,
    faulty,
    pairs,
    verdict,
)

VERSION = "v1.0-synthetic"
SEEDS = (11, 12, 13)

SUBMISSIONS = tuple(pairs(SUBMISSION_FAULTS))
TABLES = tuple(pairs(TABLE_FAULTS))
FILES = tuple((fault,) for fault in FILE_FAULTS)
BOTH = tuple(
    (fault, file)
    for fault, file in product(TABLE_FAULTS, FILE_FAULTS)
    if fault.part != "mirror" or not file.finding.startswith(("points turned", "points swapped"))
)
"""Faults alone and in pairs: in submissions, in tables, in files of points, and one in tables with one in files.
Boxes that are mirrored and points that are turned are turned or mirrored otherwise against each other: a fault."""

SWEEPS = DataNeeds(clouds=frozenset({LIDAR}), sweeps=10)
VERDICTS = ("all", "one", "none", "wrong")
Case = tuple[str, Sequence[Any], list[str]]


def main() -> None:
    """Write, diagnose, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("worlds"), help="where the worlds are made, once")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the worlds")
    parser.add_argument("--draws", type=int, default=1000, help="of key frames of untouched data")
    parser.add_argument("--both", type=int, default=100, help="pairs of table and file drawn in each world")
    parser.add_argument("--share", type=int, default=1, help="each world takes one of so many shares of the pairs")
    parser.add_argument("--output", type=Path, default=Path("diagnosis.json"))
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    missed: list[dict[str, object]] = []
    untouched = Counter[str]()
    started = time.monotonic()
    for place, seed in enumerate(arguments.seeds):
        root = ensure_world(NuScenesWriter(_world(seed)), arguments.folder, 1)
        index, rng = open_index(root, VERSION), np.random.default_rng(seed)
        draws = arguments.draws // len(arguments.seeds) + (place < arguments.draws % len(arguments.seeds))
        untouched.update(_untouched_data(index, root, draws, rng))
        untouched.update(_untouched_submissions(index, draws // 5, rng))
        first = SEEDS.index(seed) % arguments.share if seed in SEEDS else place % arguments.share
        share = slice(first, None, arguments.share)
        for kind, faults, found in chain(
            _submissions(index, share, rng), _tables(root, share, arguments.both, rng)
        ):
            name = f"{kind}, {'one fault' if len(faults) == 1 else 'two faults'}"
            what = verdict(faults, found)
            counts.setdefault(name, Counter())[what] += 1
            if what in ("none", "wrong"):
                names = [fault.finding for fault in faults]
                missed.append({"world": seed, "kind": kind, "faults": names, "found": found})
                print(what, missed[-1], flush=True)
    _print(counts, untouched)
    figures = {
        "seeds": arguments.seeds, "seconds": round(time.monotonic() - started), "counts": counts,
        "untouched": untouched, "not_named": missed,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    good = all(_share(count) >= 0.95 and not count["wrong"] for count in counts.values())
    if not good or untouched["data accused"] or untouched["submissions accused"]:
        raise SystemExit(1)


def _world(seed: int) -> WorldConfig:
    return WorldConfig(
        seed=seed, train_scenes=10, val_scenes=1, image_size=(16, 32), camera_rate=2.0, lidar_azimuths=360
    )


def _print(counts: dict[str, Counter[str]], untouched: Counter[str]) -> None:
    print(f"{'':34}{'cases':>8}{'all':>8}{'one':>8}{'none':>8}{'wrong':>8}{'named':>9}")
    for name, count in counts.items():
        cells = "".join(f"{count[what]:8}" for what in VERDICTS)
        print(f"{name:34}{count.total():8}{cells}{_share(count):9.1%}")
    for what, count in untouched.items():
        print(f"untouched: {what:23}{count:8}")


def _share(count: Counter[str]) -> float:
    return (count["all"] + count["one"]) / count.total()


def _shared(cases: Sequence[tuple[Any, ...]], share: slice) -> list[tuple[Any, ...]]:
    """All single faults, and a share of the pairs."""
    return [*(case for case in cases if len(case) == 1), *[case for case in cases if len(case) == 2][share]]


def _submissions(index: NuScenesIndex, share: slice, rng: np.random.Generator) -> Iterator[Case]:
    rows = index.split("synthetic_train").tolist()
    for (kind, detector), faults in product(DETECTORS.items(), _shared(SUBMISSIONS, share)):
        found = convention_findings(index, rows, submission(index, detector, faults, rng))
        yield f"submission ({kind})", faults, [finding.name for finding in found]


def _tables(root: Path, share: slice, both: int, rng: np.random.Generator) -> Iterator[Case]:
    drawn = [BOTH[place] for place in rng.choice(len(BOTH), min(both, len(BOTH)), replace=False)]
    with tempfile.TemporaryDirectory() as folder:
        tables = Tables(root, Path(folder))
        rows = np.arange(0, len(tables.index.key_frames.token), 2).tolist()
        for kind, cases in (("tables", _shared(TABLES, share)), ("points", FILES), ("tables and points", drawn)):
            for faults in cases:
                files = [fault for fault in faults if isinstance(fault, FileFault)]
                try:
                    index = tables.written([fault for fault in faults if isinstance(fault, Fault)])
                    found = _judged(index, tables.files, rows, files)
                except UserError as error:
                    # The index refuses such sizes in the same words.
                    found = ["sizes"] if "wider than long" in str(error) else [str(error)]
                yield kind, faults, found


def _judged(
    index: NuScenesIndex, files: SensorFiles, rows: Sequence[int], faults: Sequence[FileFault]
) -> list[str]:
    """Names of what is found in some key frames."""
    found = Plausibility()
    for row in rows:
        sweep = annotated_sweep(index, files, row)
        for fault in faults:
            name = index.sweeps.path[row, 0].decode()
            content = fault.write(files.sweep(name).astype(np.float64), sweep.poses)
            sweep = replace(sweep, content=content, points=LAYOUTS[AS_IS].read(content))
        found.add(sweep)
    return [finding.name for finding in found.findings()]


def _untouched_data(index: NuScenesIndex, root: Path, draws: int, rng: np.random.Generator) -> Counter[str]:
    """Draws of 1 to 60 key frames, with ten sweeps each, as `bevkd data check --samples` reads them."""
    config = NuScenesConfig(version=VERSION, pad_empty_sweeps=False)
    files = SensorFiles(root, cache=True)
    total = len(index.key_frames.token)
    source = FrameSource(NuScenesReader(index, np.arange(total), files, config, SWEEPS), config, SWEEPS)
    whole = Plausibility()
    for row in range(total):
        sample = source.load(row, seed=None)
        whole.add(annotated_sweep(index, files, row), sample.boxes, sample.clouds[LIDAR].points)
    counted = Counter({"draws of data": draws, "data accused": 0})
    for _ in range(draws):
        rows = rng.choice(total, min(total, int(rng.integers(1, 61))), replace=False).tolist()
        drawn = Plausibility([whole.sweeps[row] for row in rows], [whole.standing[row] for row in rows])
        if said := drawn.findings():
            counted["data accused"] += 1
            print(f"accused: {[finding.sentence for finding in said]}", flush=True)
    return counted


def _untouched_submissions(index: NuScenesIndex, draws: int, rng: np.random.Generator) -> Counter[str]:
    """Draws of 1 to all key frames of a submission without faults, by either detector."""
    counted = Counter({"draws of submissions": draws, "submissions accused": 0})
    rows = index.split("synthetic_train")
    for number in range(draws):
        detector = list(DETECTORS.values())[number % len(DETECTORS)]
        chosen = rng.choice(rows, int(rng.integers(1, len(rows) + 1)), replace=False).tolist()
        if said := convention_findings(index, chosen, submission(index, detector, (), rng)):
            counted["submissions accused"] += 1
            print(f"accused: {[finding.sentence for finding in said]}", flush=True)
    return counted


@dataclass(frozen=True)
class Detector:
    """How a detector errs: standard deviations of a coordinate, misses and false positives."""

    plane: float
    height: float
    yaw: float
    backwards: float
    size: float
    velocity: float
    missed: float
    wrong: float


DETECTORS = {
    "lidar": Detector(0.15, 0.08, 0.1, 0.03, 0.05, 0.2, 0.2, 1.0),
    "camera": Detector(0.4, 0.15, 0.15, 0.08, 0.08, 0.4, 0.4, 1.5),
}


def truth(index: NuScenesIndex, row: int) -> tuple[Boxes, np.ndarray[Any, np.dtype[np.int64]]]:
    """Annotated boxes of a key frame in LiDAR axes, and their labels."""
    rows = index.annotations.rows(row)
    known = index.annotations.label[rows] >= 0
    boxes = np.nan_to_num(index.annotations.boxes[rows][known])
    poses = key_frame_poses(index, row)
    return (
        Boxes(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:9], poses, poses.global_T_lidar),
        index.annotations.label[rows][known],
    )


def submission(
    index: NuScenesIndex, detector: Detector, faults: Sequence[Fault], rng: np.random.Generator
) -> dict[str, DetectionArrays]:
    """What a detector gives for the training split, with faults."""
    predictions = {}
    for row in index.split("synthetic_train").tolist():
        boxes, labels = truth(index, row)
        kept = rng.random(len(labels)) >= detector.missed
        extra = rng.poisson(detector.wrong * len(labels))
        count = int(kept.sum())
        boxes = replace(
            boxes,
            center=np.concatenate(
                [
                    boxes.center[kept]
                    + rng.normal(size=(count, 3)) * [detector.plane, detector.plane, detector.height],
                    rng.uniform([-40, -40, -2], [40, 40, 0], (extra, 3)),
                ]
            ),
            size=np.concatenate(
                [
                    boxes.size[kept] * np.exp(rng.normal(0, detector.size, (count, 3))),
                    rng.uniform(0.5, 5, (extra, 3)),
                ]
            ),
            yaw=np.concatenate(
                [
                    boxes.yaw[kept]
                    + rng.normal(0, detector.yaw, count)
                    + np.pi * (rng.random(count) < detector.backwards),
                    rng.uniform(-np.pi, np.pi, extra),
                ]
            ),
            velocity=np.concatenate(
                [
                    boxes.velocity[kept] + rng.normal(0, detector.velocity, (count, 2)),
                    rng.normal(0, 1, (extra, 2)),
                ]
            ),
        )
        labels = np.concatenate([labels[kept], rng.integers(0, len(CLASSES), extra)])
        scores = np.concatenate([rng.beta(4, 2, count), rng.beta(2, 4, extra)])
        given = faulty(boxes, faults)
        assert given.rotation is not None
        length, width, height = given.size.T
        predictions[index.key_frames.token[row].decode()] = DetectionArrays(
            Cuboids(given.center, length.copy(), width.copy(), height.copy(), given.rotation),
            labels, given.velocity, np.full(len(labels), NO_ATTRIBUTE), scores,
        )  # fmt: skip
    return predictions


class Tables:
    """The tables of a world, whose annotations can be written with faults."""

    def __init__(self, root: Path, work: Path) -> None:
        self.index = open_index(root, VERSION)
        self.files = SensorFiles(root, cache=True)
        self.work = work
        (work / VERSION).mkdir(parents=True, exist_ok=True)
        for entry in root.iterdir():
            if entry.name != VERSION and not (work / entry.name).exists():
                (work / entry.name).symlink_to(entry.resolve())
        for table in (root / VERSION).glob("*.json"):
            if not (work / VERSION / table.name).exists():
                (work / VERSION / table.name).symlink_to(table.resolve())
        self.path = work / VERSION / "sample_annotation.json"
        self.records = {record["token"]: record for record in json.loads(self.path.read_text())}
        self.path.unlink()

    def written(self, faults: Sequence[Fault]) -> NuScenesIndex:
        """The index of the tables with faults."""
        changed = []
        annotations = self.index.annotations
        for row in range(len(self.index.key_frames.token)):
            rows = annotations.rows(row)
            given = np.nan_to_num(annotations.boxes[rows])
            poses = key_frame_poses(self.index, row)
            boxes = Boxes(given[:, :3], given[:, 3:6], given[:, 6], given[:, 7:9], poses, poses.global_T_lidar)
            made = faulty(boxes, faults)
            assert made.rotation is not None
            columns = (annotations.token[rows], made.center, made.size[:, [1, 0, 2]], made.rotation)
            for token, center, size, rotation in zip(*(column.tolist() for column in columns), strict=True):
                new = {"translation": center, "size": size, "rotation": rotation}
                changed.append(self.records[token.decode()] | new)
        self.path.write_text(json.dumps(changed))
        return build_index(self.work, VERSION, allow_missing=True)


if __name__ == "__main__":
    main()
