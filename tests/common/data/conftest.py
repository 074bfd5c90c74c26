"""A hand-made nuScenes version: three scenes in which the ego drives a curve on uneven ground."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.nuscenes.dataset import build as build_nuscenes
from PIL import Image
from scipy.spatial.transform import Rotation

VERSION = "v1.0-small"
START = 1_532_402_927_647_951
CAMERAS = (
    "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT",
)  # fmt: skip
CAMERA_YAWS = {
    "CAM_FRONT": 0, "CAM_FRONT_RIGHT": -55, "CAM_BACK_RIGHT": -110, "CAM_BACK": 180, "CAM_BACK_LEFT": 110,
    "CAM_FRONT_LEFT": 55,
}  # fmt: skip
IMAGE_SIZE = (48, 128)
SPLITS = {"small_train": ["scene-9001", "scene-9002"], "small_val": ["scene-9003"]}
# Seconds of the key frames; the last gap is too long for a velocity from one neighbour.
KEY_TIMES = {"scene-9001": (0.0, 0.5, 1.0), "scene-9002": (0.0, 0.5), "scene-9003": (0.0, 0.5, 2.5)}
SWEEP_STEP = 0.05
IMAGE_STEP = 0.25

# name: category, offset from the ego at t = 0 (right-handed, ego axes), speed (m/s, global), w l h, lidar and
# radar points, attribute, key frames in which it is annotated (None: all)
OBJECTS = {
    "car": ("vehicle.car", (12.0, 3.0), (0.0, 0.0), (1.9, 4.6, 1.7), (9, 0), "vehicle.parked", None),
    "truck": ("vehicle.truck", (18.0, -6.0), (4.0, 2.0), (2.5, 6.9, 2.8), (7, 2), "vehicle.moving", None),
    "bus": ("vehicle.bus.rigid", (-20.0, 5.0), (1.0, -3.0), (2.9, 11.0, 3.5), (5, 0), "vehicle.moving", (0, 1)),
    "person": ("human.pedestrian.adult", (7, -4), (0.0, 0.0), (0.7, 0.7, 1.8), (3, 0), "pedestrian.moving", (1,)),
    "cone": ("movable_object.trafficcone", (5.0, 5.0), (0.0, 0.0), (0.4, 0.4, 1.0), (0, 0), None, None),
    "barrier": ("movable_object.barrier", (9.0, 8.0), (0.0, 0.0), (2.5, 0.5, 1.0), (0, 1), None, None),
    "racked": ("vehicle.bicycle", (6.0, -9.0), (0.0, 0.0), (0.6, 1.7, 1.3), (2, 0), "cycle.without_rider", None),
    "rack": ("static_object.bicycle_rack", (6.0, -9.0), (0.0, 0.0), (2.0, 6.0, 2.0), (4, 0), None, None),
    "cyclist": ("vehicle.bicycle", (15.0, 9.0), (0.0, 0.0), (0.6, 1.7, 1.6), (2, 0), "cycle.with_rider", None),
    "dog": ("animal", (4.0, 7.0), (0.0, 0.0), (0.4, 0.8, 0.6), (2, 0), None, None),
    "far": ("vehicle.car", (70.0, 40.0), (0.0, 0.0), (1.9, 4.6, 1.7), (2, 0), "vehicle.stopped", None),
}  # fmt: skip


@dataclass
class SmallWorld:
    """Where it lies, and its tables as they were written."""

    root: Path
    tables: dict[str, list[dict]]

    @property
    def version(self) -> str:
        return VERSION

    def write(self, table: str) -> None:
        """Write a table again after a test has changed it."""
        (self.root / VERSION / f"{table}.json").write_text(json.dumps(self.tables[table]))


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """The world; tests must leave it as it is."""
    return _build(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="session")
def devkit(small_world: SmallWorld):
    """The small world as the devkit opens it."""
    nuscenes = pytest.importorskip("nuscenes")
    return nuscenes.NuScenes(VERSION, str(small_world.root), verbose=False)


@pytest.fixture
def own_world(tmp_path: Path) -> SmallWorld:
    """A world of the test's own, to damage."""
    return _build(tmp_path / "nuscenes")


@pytest.fixture
def make_world(small_world: SmallWorld, tmp_path: Path) -> Callable[[], SmallWorld]:
    """Makes copies of the world, to damage."""

    def make() -> SmallWorld:
        root = Path(tempfile.mkdtemp(dir=tmp_path)) / "nuscenes"
        shutil.copytree(small_world.root, root, ignore=shutil.ignore_patterns("bevkd-index*"))
        return SmallWorld(root, copy.deepcopy(small_world.tables))

    return make


def _build(root: Path) -> SmallWorld:
    tables: dict[str, list[dict]] = {
        name: []
        for name in (
            "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample",
            "sample_annotation", "sample_data", "scene", "sensor", "visibility",
        )
    }  # fmt: skip
    world = SmallWorld(root, tables)
    (root / VERSION).mkdir(parents=True)
    (root / VERSION / "splits.json").write_text(json.dumps(SPLITS))
    tables["category"] = [{"token": f"cat-{c}", "name": c} for c in sorted({o[0] for o in OBJECTS.values()})]
    attributes = sorted({o[5] for o in OBJECTS.values() if o[5]})
    tables["attribute"] = [{"token": f"att-{a}", "name": a} for a in attributes]
    tables["visibility"] = [{"token": "4", "level": "v80-100"}]
    tables["log"] = [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "nowhere"}]
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "map.png"}]
    Image.new("L", (8, 8)).save(root / "map.png")
    _rig(tables)
    for number, scene in enumerate(KEY_TIMES):
        _scene(world, scene, number)
    for table in tables:
        world.write(table)
    return world


def _rig(tables: dict[str, list[dict]]) -> None:
    lidar = Rotation.from_euler("ZYX", [-89.9, 0.9, -0.7], degrees=True)
    _sensor(tables, "LIDAR_TOP", (0.94, 0.0, 1.84), lidar, [])
    optical = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    for name in CAMERAS:
        mount = Rotation.from_euler("ZYX", [CAMERA_YAWS[name], 1.0, 0.5], degrees=True)
        focal = 60.0 if name == "CAM_BACK" else 90.0
        position = (1.5 * np.cos(np.radians(CAMERA_YAWS[name])), 0.5 * np.sin(np.radians(CAMERA_YAWS[name])), 1.5)
        _sensor(tables, name, position, mount * optical, [[focal, 0, 64.2], [0, focal, 23.5], [0, 0, 1]])


def _sensor(tables: dict[str, list[dict]], channel: str, position: tuple, rotation: Rotation, matrix: list) -> None:
    tables["sensor"].append({"token": f"sensor-{channel}", "channel": channel, "modality": channel[:5].lower()})
    tables["calibrated_sensor"].append(
        {
            "token": f"rig-{channel}",
            "sensor_token": f"sensor-{channel}",
            "translation": list(position),
            "rotation": _wxyz(rotation),
            "camera_intrinsic": matrix,
        }
    )


def _scene(world: SmallWorld, scene: str, number: int) -> None:
    tables, times = world.tables, KEY_TIMES[scene]
    samples = [f"{scene}-key{k}" for k in range(len(times))]
    tables["scene"].append(
        {
            "token": f"token-{scene}",
            "name": scene,
            "log_token": "log",
            "nbr_samples": len(times),
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "description": "",
        }
    )
    for k, time in enumerate(times):
        tables["sample"].append(
            {
                "token": samples[k],
                "scene_token": f"token-{scene}",
                "timestamp": _stamp(number, time),
                "prev": samples[k - 1] if k else "",
                "next": samples[k + 1] if k + 1 < len(times) else "",
            }
        )
    _sweeps(world, scene, number, samples)
    for channel in CAMERAS:
        _images(world, scene, number, samples, channel)
    for name in OBJECTS:
        _annotate(tables, scene, number, samples, name)


def _sweeps(world: SmallWorld, scene: str, number: int, samples: list[str]) -> None:
    times = KEY_TIMES[scene]
    rng = np.random.default_rng(number)
    steps = np.arange(round(times[-1] / SWEEP_STEP) + 1) * SWEEP_STEP
    rows = []
    for time in steps:
        key = next((k for k, t in enumerate(times) if abs(t - time) < 1e-6), None)
        owner = next(k for k, t in enumerate(times) if t > time - 1e-6)
        folder = "sweeps" if key is None else "samples"
        points = np.concatenate([rng.uniform(-30, 30, (150, 2)), rng.uniform(-1.5, 1.5, (20, 2))])
        points = np.c_[points, rng.uniform(-2, 1, 170), rng.uniform(0, 255, 170), rng.integers(0, 32, 170)]
        path = world.root / folder / "LIDAR_TOP" / f"{scene}_{round(time * 1000):04d}.pcd.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        points.astype(np.float32).tofile(path)
        rows.append(_record(world, scene, number, "LIDAR_TOP", time, samples[owner], key is not None, path))
    _chain(world.tables, rows)


def _images(world: SmallWorld, scene: str, number: int, samples: list[str], channel: str) -> None:
    rng = np.random.default_rng([number, *channel.encode()])
    times = KEY_TIMES[scene]
    rows = []
    for time in np.arange(round(times[-1] / IMAGE_STEP) + 1) * IMAGE_STEP:
        key = times.index(time) if time in times else None
        owner = next(k for k, t in enumerate(times) if t >= time)
        folder, name = ("sweeps", f"{round(time * 1000):04d}") if key is None else ("samples", f"{key}")
        path = world.root / folder / channel / f"{scene}_{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 16, 3), dtype=np.uint8)
        pixels = Image.fromarray(coarse).resize(IMAGE_SIZE[::-1], Image.Resampling.BILINEAR)
        pixels.save(path, quality=95)
        lag = 0.04 - 0.012 * CAMERAS.index(channel)
        rows.append(_record(world, scene, number, channel, time - lag, samples[owner], key is not None, path))
    _chain(world.tables, rows)


def _record(
    world: SmallWorld, scene: str, number: int, channel: str, time: float, sample: str, key: bool, path: Path
) -> dict:
    token = f"{channel}-{scene}-{round(time * 1000)}"
    position, rotation = _ego(number, time)
    world.tables["ego_pose"].append(
        {
            "token": f"pose-{token}",
            "timestamp": _stamp(number, time),
            "translation": position.tolist(),
            "rotation": _wxyz(rotation),
        }
    )
    return {
        "token": token,
        "sample_token": sample,
        "ego_pose_token": f"pose-{token}",
        "calibrated_sensor_token": f"rig-{channel}",
        "timestamp": _stamp(number, time),
        "fileformat": "jpg" if channel.startswith("CAM") else "pcd",
        "is_key_frame": key,
        "height": IMAGE_SIZE[0] if channel.startswith("CAM") else 0,
        "width": IMAGE_SIZE[1] if channel.startswith("CAM") else 0,
        "filename": path.relative_to(world.root).as_posix(),
    }


def _chain(tables: dict[str, list[dict]], rows: list[dict]) -> None:
    for k, row in enumerate(rows):
        row["prev"] = rows[k - 1]["token"] if k else ""
        row["next"] = rows[k + 1]["token"] if k + 1 < len(rows) else ""
    tables["sample_data"].extend(rows)


def _annotate(tables: dict[str, list[dict]], scene: str, number: int, samples: list[str], name: str) -> None:
    category, offset, speed, size, points, attribute, seen = OBJECTS[name]
    position, rotation = _ego(number, 0.0)
    start = position + rotation.apply([*offset, 0.6])
    keys = [k for k in range(len(samples)) if seen is None or k in seen]
    tokens = [f"{name}-{scene}-{k}" for k in keys]
    tables["instance"].append({"token": f"{name}-{scene}", "category_token": f"cat-{category}"})
    for place, k in enumerate(keys):
        time = KEY_TIMES[scene][k]
        tables["sample_annotation"].append(
            {
                "token": tokens[place],
                "sample_token": samples[k],
                "instance_token": f"{name}-{scene}",
                "visibility_token": "4",
                "attribute_tokens": [f"att-{attribute}"] if attribute else [],
                "translation": (start + time * np.array([*speed, 0.3])).tolist(),
                "size": list(size),
                "rotation": _wxyz(Rotation.from_euler("Z", len(name) + 0.8 * number + 0.4 * time)),
                "prev": tokens[place - 1] if place else "",
                "next": tokens[place + 1] if place + 1 < len(tokens) else "",
                "num_lidar_pts": points[0],
                "num_radar_pts": points[1],
            }
        )


def _ego(number: int, time: float) -> tuple[np.ndarray, Rotation]:
    yaw = 0.7 + 1.9 * number + 0.35 * time
    position = np.array([410.0 + 8 * time, 1179.0 + 3 * time * time - 55 * number, 0.0])
    return position, Rotation.from_euler("ZYX", [yaw, 0.012 - 0.01 * time, -0.008 + 0.02 * time])


def _stamp(number: int, time: float) -> int:
    return START + 40_000_000 * number + round(time * 1e6)


def _wxyz(rotation: Rotation) -> list[float]:
    x, y, z, w = rotation.as_quat()
    return [float(w), float(x), float(y), float(z)]


BOTH = DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=10)


def nuscenes_config(**changes) -> NuScenesConfig:
    """Of the small world."""
    values = {
        "version": "v1.0-small",
        "train_split": "small_train",
        "val_split": "small_val",
        "images": ImageInputConfig(height=32, width=96),
    }
    return NuScenesConfig(**(values | changes))


@pytest.fixture
def config():
    """Makes the configuration of a small world."""
    return nuscenes_config


@pytest.fixture
def source():
    """Opens a split of a small world with some needs."""

    def call(world, needs=BOTH, split="train", **changes):
        return build_nuscenes(nuscenes_config(**changes), world.root).source(split, needs)

    return call
