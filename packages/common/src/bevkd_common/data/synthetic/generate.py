"""Writing a world to disk: scene by scene, in parallel if asked, complete or not at all.

Layout of a data set:

    v1.0-synthetic/*.json    the thirteen tables and splits.json (which the devkit reads for custom splits)
    samples/ sweeps/ maps/   as in nuScenes; a map mask for each scene
    can_bus/                 the CAN-bus expansion
    masks/                   ours, outside the nuScenes schema: for each image a PNG of the same relative path
                             whose pixels are 0 or the number of an instance; masks/<scene>.json maps
                             numbers to instance tokens
    world.json               ours: the configuration and the content hash
"""

import hashlib
import io
import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from bevkd_common.config.world import GENERATOR_VERSION, WorldConfig

from .cameras import render
from .canbus import can_messages
from .lidar import points_in_boxes, sweep
from .rig import CAMERAS, LIDAR, VEHICLES, Calibration, Trigger, calibrate, schedule
from .rigid import transform
from .scene import Scene, draw_scene, scene_numbers, time_span
from .solids import Solids, annotation_boxes, build_solids
from .street import MAP_CENTRE
from .tables import TABLES, Observation, SceneTables, Tables, ego_matrix, shared_tables

VERSION = "v1.0-synthetic"
TRAIN_SPLIT, VAL_SPLIT = "synthetic_train", "synthetic_val"
MAP_RESOLUTION = 0.1  # metres; what the devkit takes masks to have
SCHEDULE, SWEEP, IMAGE = 2, 3, 4  # keys of the random numbers


class Folder:
    """A folder that remembers the digest of each file written to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests: dict[str, str] = {}

    def write(self, name: str, content: bytes) -> None:
        """Writes a file and makes its folder."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.digests[name] = hashlib.sha256(content).hexdigest()

    def write_json(self, name: str, content: Any) -> None:
        """Writes JSON without spaces."""
        self.write(name, json.dumps(content, separators=(",", ":")).encode())

    def write_image(self, name: str, pixels: npt.NDArray[np.uint8], **options: Any) -> None:
        """Writes an image in the format of the name's ending."""
        buffer = io.BytesIO()
        PillowImage.fromarray(pixels).save(buffer, format="JPEG" if name.endswith(".jpg") else "PNG", **options)
        self.write(name, buffer.getvalue())


@dataclass(frozen=True)
class WrittenScene:
    """Rows of a scene and digests of its files."""

    tables: Tables
    digests: dict[str, str]


def ensure_world(
    config: WorldConfig, root: Path, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Returns the data set of a configuration, made first if it is not there.

    Args:
        config: what to make.
        root: folder that holds data sets; this one is `root / config.name()`.
        workers: processes to use; the bytes do not depend on it.
        progress: called with the scenes done and the scenes in all after each scene.
    """
    target = root / config.name()
    if (target / "world.json").is_file():
        return target
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{config.name()}-", dir=root))
    try:
        _write_world(config, scratch, workers, progress)
        # mkdtemp keeps others out; a data set is for everybody.
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError:
        # Another process may have finished the same world in the meantime.
        if not (target / "world.json").is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _write_world(
    config: WorldConfig, root: Path, workers: int, progress: Callable[[int, int], None] | None
) -> None:
    written: dict[int, WrittenScene] = {}

    def note(index: int, scene: WrittenScene) -> None:
        written[index] = scene
        if progress is not None:
            progress(len(written), config.scenes)

    if workers <= 1:
        for index in range(config.scenes):
            note(index, write_scene(config, index, root))
    else:
        # Spawned children share nothing with this process, whatever threads it runs.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = {pool.submit(write_scene, config, index, root): index for index in range(config.scenes)}
            for future in as_completed(futures):
                note(futures[future], future.result())

    folder = Folder(root)
    tables = shared_tables(config, {vehicle: calibrate(config, vehicle) for vehicle in VEHICLES})
    for index in range(config.scenes):
        folder.digests.update(written[index].digests)
        for name in TABLES:
            tables[name].extend(written[index].tables[name])
    for name in TABLES:
        folder.write_json(f"{VERSION}/{name}.json", tables[name])
    names = [f"scene-{number:04d}" for number in scene_numbers(config)]
    splits = {TRAIN_SPLIT: names[: config.train_scenes], VAL_SPLIT: names[config.train_scenes :]}
    folder.write_json(f"{VERSION}/splits.json", splits)
    lines = "".join(f"{name} {folder.digests[name]}\n" for name in sorted(folder.digests))
    world = {
        "generator_version": GENERATOR_VERSION,
        "content_hash": hashlib.sha256(lines.encode()).hexdigest(),
        "config": config.model_dump(mode="json"),
    }
    (root / "world.json").write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")


def write_scene(config: WorldConfig, index: int, root: Path) -> WrittenScene:
    """Writes all files of one scene and returns its rows."""
    scene = draw_scene(config, index)
    solids = build_solids(scene)
    vehicle = VEHICLES[index % len(VEHICLES)]
    rig = calibrate(config, vehicle)
    frames = schedule(config, scene.start, scene.random(SCHEDULE))
    split = TRAIN_SPLIT if index < config.train_scenes else VAL_SPLIT
    tables = SceneTables(config, scene, vehicle, frames, split)
    folder = Folder(root)

    things = len(scene.kinds)
    lidar_points = np.zeros((config.keyframes_per_scene, things), dtype=np.int64)
    visible, covered = np.zeros_like(lidar_points), np.zeros_like(lidar_points)
    for number, frame in enumerate(frames[LIDAR]):
        counts = _write_sweep(config, scene, solids, rig[LIDAR], frame, number, tables, folder)
        if frame.is_key_frame:
            lidar_points[frame.sample] = counts
    numbers = _instance_numbers(tables)
    for key, channel in enumerate(CAMERAS):
        for number, frame in enumerate(frames[channel]):
            rng = scene.random(IMAGE, key, number)
            image = render(
                scene, solids, frame.seconds, ego_matrix(scene, frame.seconds), rig[channel], config, rng
            )
            name = tables.filename(frame)
            folder.write_image(name, image.colour, quality=config.jpeg_quality, subsampling=0)
            mask = numbers[image.owner]
            folder.write_image(f"masks/{name.removesuffix('.jpg')}.png", mask)
            if frame.is_key_frame:
                visible[frame.sample] += image.visible
                covered[frame.sample] += image.covered

    instances = tables.instance_tokens()
    folder.write_json(
        f"masks/{scene.name}.json",
        {str(numbers[owner]): instance for owner, instance in enumerate(instances) if instance is not None},
    )
    for name, messages in can_messages(scene, *time_span(config)).items():
        folder.write_json(f"can_bus/{scene.name}_{name}.json", messages)
    map_file = f"maps/{scene.name}.png"
    folder.write_image(map_file, _map_mask(scene), compress_level=1)
    observations = [Observation(*seen) for seen in zip(lidar_points, visible, covered, strict=True)]
    return WrittenScene(tables.rows(observations, map_file), folder.digests)


def _write_sweep(
    config: WorldConfig,
    scene: Scene,
    solids: Solids,
    calibration: Calibration,
    frame: Trigger,
    number: int,
    tables: SceneTables,
    folder: Folder,
) -> npt.NDArray[np.int64]:
    """Writes one sweep; returns the points inside the box of each thing."""
    map_T_ego = ego_matrix(scene, frame.seconds)
    rng = scene.random(SWEEP, number)
    points = sweep(scene, solids, frame.seconds, map_T_ego, calibration.ego_T_sensor, config, rng)
    folder.write(tables.filename(frame), points.tobytes())
    if not frame.is_key_frame:
        return np.zeros(len(scene.kinds), dtype=np.int64)
    in_map = transform(map_T_ego @ calibration.ego_T_sensor, points[:, :3].astype(np.float64))
    return points_in_boxes(in_map, annotation_boxes(scene, frame.seconds))


def _instance_numbers(tables: SceneTables) -> npt.NDArray[np.uint8]:
    """Mask number of each thing, 0 for what nobody annotates; the last entry serves owner -1."""
    annotated = np.array([instance is not None for instance in tables.instance_tokens()] + [False])
    if annotated.sum() > 255:
        raise ValueError("a mask holds at most 255 instances")
    return np.where(annotated, np.cumsum(annotated), 0).astype(np.uint8)


def _map_mask(scene: Scene) -> npt.NDArray[np.uint8]:
    """Road and pavement of the scene as 255, the rest as 0; row 0 is the northern end."""
    size = round(2 * MAP_CENTRE / MAP_RESOLUTION)
    # Sampled at half a metre: the mask is for drawing.
    coarse = (np.arange(size // 5) + 0.5) * 5 * MAP_RESOLUTION
    x, y = np.meshgrid(coarse, coarse[::-1])
    on_street = scene.street.ground(np.stack([x, y], axis=-1)) > 0
    return np.kron(on_street.astype(np.uint8) * np.uint8(255), np.ones((5, 5), dtype=np.uint8))
