"""Looks at a data set before anything is trained on it: counts, conventions, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.nuscenes_names import CAMERAS
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.nuscenes.index import Ints
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.nuscenes.plausibility import Plausibility
from bevkd_common.data.nuscenes.reader import NuScenesReader
from bevkd_common.data.nuscenes.summary import summary_lines
from bevkd_common.data.samples import collate
from bevkd_common.data.sensor_files import SensorFiles
from bevkd_common.experiment.scenes import scene_of
from bevkd_common.progress import Reporter
from bevkd_common.report import figures

PICTURED = 3
NEEDS = DataNeeds(cameras=True, clouds=frozenset({LIDAR}), sweeps=10)


@dataclass(frozen=True)
class DataCheck:
    """What was found.

    Attributes:
        lines: Counts and scores.
        findings: One sentence for each thing that is wrong.
        pictures: Files that were written.
    """

    lines: list[str]
    findings: list[str]
    pictures: list[Path]


def check_data(
    config: NuScenesConfig, root: Path, *, samples: int, draw: Path | None, reporter: Reporter
) -> DataCheck:
    """Read the tables and some key frames, evenly spread over all scenes.

    Args:
        config: Version and reading; augmentation is drawn as for training in half of the pictures.
        root: Folder of the data set.
        samples: Key frames to read.
        draw: Folder for pictures; None draws nothing.
        reporter: Where progress goes.

    Raises:
        UserError: If the data set lacks something, contradicts itself, or a file is damaged.
    """
    with reporter.bar(f"index of {config.version}", 1) as bar:
        index = open_index(root, config.version, bar.update)
    total = len(index.key_frames.token)
    rows = _spread(total, samples)
    # A key frame that stands in for sweeps that are not there would count many times.
    config = config.model_copy(update={"pad_empty_sweeps": False})
    reader = NuScenesReader(index, rows, SensorFiles(index.root, cache=False), config, NEEDS)
    source = FrameSource(reader, config, NEEDS)
    plausibility = Plausibility()
    with reporter.bar("key frames read", len(source)) as bar:
        for place in range(len(source)):
            plausibility.add(source.load(place, seed=None))
            bar.update(place + 1)
    return DataCheck(
        lines=[*summary_lines(index), *_scores(plausibility, len(source))],
        findings=plausibility.findings(),
        pictures=[] if draw is None else _pictures(source, config, draw),
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


def _pictures(source: FrameSource, config: NuScenesConfig, folder: Path) -> list[Path]:
    x0, y0, _, x1, y1, _ = config.point_range
    written = []
    for place in _spread(len(source), PICTURED).tolist():
        for name, seed in (("plain", None), ("augmented", place)):
            batch = collate([source.load(place, seed=seed)])
            scene = scene_of(batch, {}, CAMERAS, (x0, x1, y0, y1))
            drawn = {"cameras": figures.annotated_cameras(scene), "above": figures.annotated_above(scene)}
            written += [
                figures.save(figure, folder / f"{scene.token}-{name}-{view}.png")
                for view, figure in drawn.items()
                if figure is not None
            ]
    return written
