"""Looks at a nuScenes folder before anything is trained on it: counts, conventions, key frames to draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.nuscenes_names import CAMERAS
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.dataset import DataCheck, Picture
from bevkd_common.data.frames import Ints
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.nuscenes.box_evidence import AnnotatedSweep
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.nuscenes.plausibility import Plausibility
from bevkd_common.data.nuscenes.point_readings import LAYOUTS
from bevkd_common.data.nuscenes.poses import key_frame_poses
from bevkd_common.data.nuscenes.reader import NuScenesReader
from bevkd_common.data.nuscenes.summary import summary_lines
from bevkd_common.data.nuscenes.tables import only_version
from bevkd_common.data.samples import collate
from bevkd_common.data.sensor_files import SensorFiles, missing_files
from bevkd_common.errors import UserError
from bevkd_common.geometry.convention_checks import AS_IS, Finding
from bevkd_common.geometry.evidence import FEWEST
from bevkd_common.progress import Reporter

PICTURED = 3
NEEDS = DataNeeds(cameras=True, clouds=frozenset({LIDAR}), sweeps=10)


def check(root: Path, version: str | None, *, samples: int, reporter: Reporter) -> DataCheck:
    """Read the tables and some key frames, evenly spread over all scenes.

    Missing files, as of a data set that is downloaded in part, are counted; key frames without all of theirs
    are not read.

    Args:
        root: Folder of the data set.
        version: Version folder; None takes the only one.
        samples: Key frames to read.
        reporter: Where progress goes.

    Raises:
        UserError: If the data set contradicts itself, no key frame has all its files, or a file is damaged.
    """
    # A key frame that stands in for sweeps that are not there would count many times.
    config = NuScenesConfig(version=version or only_version(root), pad_empty_sweeps=False)
    with reporter.bar(f"index of {config.version}", 1) as bar:
        index = open_index(root, config.version, bar.update, allow_missing=True)
    complete, missing = complete_key_frames(index)
    rows = complete[_spread(len(complete), samples)]
    files = SensorFiles(index.root, cache=False)
    sweeps = [annotated_sweep(index, files, row) for row in rows.tolist()]
    # Files in another layout cannot be read as samples.
    if any(sweep.points is None for sweep in sweeps) and (named := Plausibility(sweeps).findings()):
        return _checked(index, missing, named)
    source = FrameSource(NuScenesReader(index, rows, files, config, NEEDS), config, NEEDS)
    plausibility = Plausibility()
    with reporter.bar("key frames read", len(source)) as bar:
        for place, sweep in enumerate(sweeps):
            sample = source.load(place, seed=None)
            plausibility.add(sweep, sample.boxes, sample.clouds[LIDAR].points)
            bar.update(place + 1)
    x0, y0, _, x1, y1, _ = config.point_range
    pictures = (
        Picture(name, collate([source.load(place, seed=seed)]))
        for place in _spread(len(source), PICTURED).tolist()
        for name, seed in (("plain", None), ("augmented", place))
    )
    scores = [*missing, *_scores(plausibility, len(source))]
    return _checked(index, scores, plausibility.findings(), pictures, (x0, x1, y0, y1))


def complete_key_frames(index: NuScenesIndex) -> tuple[Ints, list[str]]:
    """Rows of the key frames that have all files of `NEEDS`, and a line about the others, if there are any.

    Raises:
        UserError: If no key frame is complete.
    """
    paths = np.concatenate([index.sweeps.path[:, : NEEDS.sweeps], index.cameras.path], axis=1)
    names = [name for name in np.unique(paths).tolist() if name]
    missing = missing_files(index.root, [name.decode() for name in names])
    if not missing:
        return np.arange(len(paths)), []
    lacking = np.isin(paths, np.array([name.encode() for name in missing])).any(axis=1)
    complete = np.flatnonzero(~lacking)
    if not len(complete):
        raise UserError(
            f"no key frame of {index.root / index.version} has its images and its ten sweeps: {len(missing)} of "
            f"{len(names)} files are missing, such as {missing[0]}; unpack more archives"
        )
    return complete, [
        f"missing       {len(missing)} of {len(names)} files of key frames and sweeps, such as {missing[0]}; "
        f"{len(complete)} of {len(paths)} key frames are complete, and only these were checked"
    ]


def annotated_sweep(index: NuScenesIndex, files: SensorFiles, row: int) -> AnnotatedSweep:
    """The annotations and the own sweep of one key frame, in any layout that the file may have.

    Raises:
        UserError: If the file is missing or cannot be read.
    """
    annotations = index.annotations
    rows = annotations.rows(row)
    content = files.content(index.sweeps.path[row, 0].decode())
    return AnnotatedSweep(
        center=annotations.global_center[rows],
        rotation=annotations.global_rotation[rows],
        size=annotations.global_size[rows][:, [1, 0, 2]],
        velocity=annotations.global_velocity[rows],
        counted=annotations.lidar_points[rows],
        poses=key_frame_poses(index, row),
        points=LAYOUTS[AS_IS].read(content),
        content=content,
    )


def _checked(
    index: NuScenesIndex,
    scores: Sequence[str],
    findings: Sequence[Finding],
    pictures: Iterable[Picture] = (),
    extent: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
) -> DataCheck:
    return DataCheck(
        lines=[*summary_lines(index), *scores],
        findings=[finding.sentence for finding in findings],
        pictures=pictures,
        cameras=CAMERAS,
        extent=extent,
    )


def _spread(total: int, count: int) -> Ints:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def _scores(found: Plausibility, samples: int) -> list[str]:
    heading = "unknown, too few move" if found.heading is None else f"{found.heading:.1%} of the moving objects"
    counts = found.counts
    counted = (
        "unknown, the tables count none"
        if counts is None
        else f"{counts[0]} of {counts[1]} boxes with five or more"
    )
    stand, displaced = len(found.displaced), int(found.displaced.sum())
    share = f"{displaced} of {stand} standing objects" if stand >= FEWEST else "unknown, too few stand"
    return [
        f"read          {samples} key frames with ten sweeps and six images each",
        f"points        {found.points_inside} of the newest sweeps lie in boxes",
        f"counts        as many points as in the tables: {counted}",
        f"heading       in the direction of motion: {heading}",
        f"ego-motion    out of place in older sweeps: {share}",
    ]
