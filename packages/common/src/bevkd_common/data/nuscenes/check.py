"""Looks at a nuScenes folder before anything is trained on it: counts, conventions, key frames to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.nuscenes_names import CAMERAS
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.dataset import DataCheck, Picture
from bevkd_common.data.frames import Ints
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.nuscenes.plausibility import Plausibility
from bevkd_common.data.nuscenes.reader import NuScenesReader
from bevkd_common.data.nuscenes.summary import summary_lines
from bevkd_common.data.nuscenes.tables import only_version
from bevkd_common.data.samples import collate
from bevkd_common.data.sensor_files import SensorFiles
from bevkd_common.progress import Reporter

PICTURED = 3
NEEDS = DataNeeds(cameras=True, clouds=frozenset({LIDAR}), sweeps=10)


def check(root: Path, version: str | None, *, samples: int, reporter: Reporter) -> DataCheck:
    """Read the tables and some key frames, evenly spread over all scenes.

    Args:
        root: Folder of the data set.
        version: Version folder; None takes the only one.
        samples: Key frames to read.
        reporter: Where progress goes.

    Raises:
        UserError: If the data set lacks something, contradicts itself, or a file is damaged.
    """
    # A key frame that stands in for sweeps that are not there would count many times.
    config = NuScenesConfig(version=version or only_version(root), pad_empty_sweeps=False)
    with reporter.bar(f"index of {config.version}", 1) as bar:
        index = open_index(root, config.version, bar.update)
    rows = _spread(len(index.key_frames.token), samples)
    reader = NuScenesReader(index, rows, SensorFiles(index.root, cache=False), config, NEEDS)
    source = FrameSource(reader, config, NEEDS)
    plausibility = Plausibility()
    with reporter.bar("key frames read", len(source)) as bar:
        for place in range(len(source)):
            plausibility.add(source.load(place, seed=None))
            bar.update(place + 1)
    x0, y0, _, x1, y1, _ = config.point_range
    pictures = (
        Picture(name, collate([source.load(place, seed=seed)]))
        for place in _spread(len(source), PICTURED).tolist()
        for name, seed in (("plain", None), ("augmented", place))
    )
    return DataCheck(
        lines=[*summary_lines(index), *_scores(plausibility, len(source))],
        findings=plausibility.findings(),
        pictures=pictures,
        cameras=CAMERAS,
        extent=(x0, x1, y0, y1),
    )


def _spread(total: int, count: int) -> Ints:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def _scores(found: Plausibility, samples: int) -> list[str]:
    heading = "unknown, too few move" if found.heading is None else f"{found.heading:.3f}"
    share = "unknown, too few stand" if found.standing_share is None else f"{found.standing_share:.2f}"
    return [
        f"read          {samples} key frames with ten sweeps and six images each",
        f"points        {found.as_is.points_inside} of the newest sweeps lie in boxes",
        f"heading       cosine to the motion {heading} (1 is right, -1 backwards)",
        f"ego-motion    an older sweep has {share} of the newest's points in standing objects (1 is right)",
    ]
