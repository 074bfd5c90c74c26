"""A small world on disk, shared by the tests of its files, and one scene in memory."""

from pathlib import Path

import numpy as np
import pytest
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.synthetic import ensure_world
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
from bevkd_common.data.synthetic.nuscenes.rig import nuscenes_rig
from bevkd_common.data.synthetic.scene import draw_scene
from bevkd_common.data.synthetic.solids import build_solids


@pytest.fixture(scope="session")
def config():
    return WorldConfig(seed=11, train_scenes=2, val_scenes=1, keyframes_per_scene=3, lidar_azimuths=360)


@pytest.fixture(scope="session")
def world(config, tmp_path_factory) -> Path:
    return ensure_world(NuScenesWriter(config), tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="session")
def nuscenes(world):
    nuscenes = pytest.importorskip("nuscenes")
    return nuscenes.NuScenes("v1.0-synthetic", str(world), verbose=False)


@pytest.fixture(scope="session")
def scene(config):
    return draw_scene(config, 0)


@pytest.fixture(scope="session")
def solids(scene):
    return build_solids(scene)


@pytest.fixture(scope="session")
def rig(config):
    return nuscenes_rig(config, "s001")


@pytest.fixture(scope="session")
def cameras(rig):
    return {camera.name: camera for camera in rig.cameras}


@pytest.fixture
def rng():
    return np.random.default_rng(5)
