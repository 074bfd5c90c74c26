"""The synthetic world as a data set: made if it is absent, then read as nuScenes is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bevkd_common.config.datasets.synthetic import SyntheticConfig
from bevkd_common.data.nuscenes.dataset import NuScenesDataset
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.synthetic import content_hash, ensure_world
from bevkd_common.data.synthetic.masks import SyntheticMasks
from bevkd_common.data.synthetic.nuscenes import TRAIN_SPLIT, VAL_SPLIT, VERSION, NuScenesWriter
from bevkd_common.data.virtual_points.files import VirtualPointFolder, manifest_of
from bevkd_common.data.virtual_points.makers import FromMasks


def build(
    config: SyntheticConfig, root: Path, progress: Callable[[int, int], None] | None = None
) -> NuScenesDataset:
    """Open a world, which is generated the first time, by as many processes as there are cores.

    Args:
        config: World and reading.
        root: Folder that holds worlds.
        progress: Called with the scenes done and all scenes while the world is generated.

    Raises:
        UserError: If the world's folder has been damaged.
    """
    folder = ensure_world(NuScenesWriter(config.world), root, workers=os.cpu_count() or 1, progress=progress)
    content = content_hash(folder)
    world = config.world
    index = open_index(folder, VERSION)
    maker = FromMasks(index, SyntheticMasks(folder, VERSION, config.virtual_points))
    place = f"virtual_points/{manifest_of(maker, index).settings_hash[:16]}"
    return NuScenesDataset(
        name=config.kind,
        index=index,
        reading=config,
        splits={"train": TRAIN_SPLIT, "val": VAL_SPLIT},
        summary=(
            f"Synthetic data, seen by no real sensor: {world.train_scenes} scenes to train and "
            f"{world.val_scenes} to evaluate, each of {world.keyframes_per_scene} key frames, "
            f"generated from seed {world.seed}."
        ),
        virtual_points=VirtualPointFolder(folder / place),
        maker=maker,
        content=content,
        synthetic=True,
    )
