"""Writing the files of one scene: sweeps, images, masks, CAN bus, map."""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from bevkd_common.config.datasets.world import WorldConfig

from .cameras import render
from .canbus import can_messages
from .lidar import points_in_boxes, sweep
from .rig import CAMERAS, LIDAR, VEHICLES, Calibration, calibrate, schedule
from .rigid import Integers, transform
from .scene import Scene, Stream, draw_scene, time_span
from .solids import Solids, annotation_boxes, build_solids
from .tables import Observations, SceneTables, Tables

MAP_RESOLUTION = 0.1  # metres; what the devkit takes masks to have
MAP_STEP = 0.5  # metres; the mask is for drawing and need not be finer


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


def write_scene(config: WorldConfig, index: int, root: Path) -> WrittenScene:
    """Writes all files of scene `index` below a folder and returns its rows."""
    scene = draw_scene(config, index)
    solids = build_solids(scene)
    vehicle = VEHICLES[index % len(VEHICLES)]
    rig = calibrate(config, vehicle)
    tables = SceneTables(config, scene, vehicle, schedule(config, scene.start, scene.random(Stream.SCHEDULE)))
    folder = Folder(root)
    lidar_points = _write_sweeps(solids, rig[LIDAR], tables, folder)
    visible, covered = _write_images(solids, rig, tables, folder)
    for name, messages in can_messages(scene, *time_span(config)).items():
        folder.write_json(f"can_bus/{scene.name}_{name}.json", messages)
    map_file = f"maps/{scene.name}.png"
    folder.write_image(map_file, _map_mask(scene), compress_level=1)
    rows = tables.rows(Observations(lidar_points, visible, covered), map_file)
    return WrittenScene(rows, folder.digests)


def _write_sweeps(solids: Solids, lidar: Calibration, tables: SceneTables, folder: Folder) -> Integers:
    """Writes all sweeps; returns the points in each annotated box at each key frame, [F, N]."""
    config, scene = tables.config, tables.scene
    counts = np.zeros((config.keyframes_per_scene, len(scene.kinds)), dtype=np.int64)
    for number, frame in enumerate(tables.frames[LIDAR]):
        points = sweep(scene, solids, frame.seconds, lidar, config, scene.random(Stream.SWEEP, number))
        folder.write(tables.filename(frame), points.tobytes())
        if frame.is_key_frame:
            in_map = transform(
                scene.map_T_ego(frame.seconds) @ lidar.ego_T_sensor, points[:, :3].astype(np.float64)
            )
            boxes = annotation_boxes(scene, frame.seconds)[scene.annotated]
            counts[frame.sample, scene.annotated] = points_in_boxes(in_map, boxes)
    return counts


def _write_images(
    solids: Solids, rig: dict[str, Calibration], tables: SceneTables, folder: Folder
) -> tuple[Integers, Integers]:
    """Writes all images and masks; returns the visible and the covered pixels at each key frame, [F, N] each."""
    config, scene = tables.config, tables.scene
    visible = np.zeros((config.keyframes_per_scene, len(scene.kinds)), dtype=np.int64)
    covered = np.zeros_like(visible)
    # The last entry serves the owner -1 of ground and sky.
    annotated = np.append(scene.annotated, False)
    numbers = np.where(annotated, np.cumsum(annotated), 0).astype(np.uint8)
    for key, channel in enumerate(CAMERAS):
        for number, frame in enumerate(tables.frames[channel]):
            rng = scene.random(Stream.IMAGE, key, number)
            image = render(scene, solids, frame.seconds, rig[channel], config, rng)
            name = tables.filename(frame)
            folder.write_image(name, image.colour, quality=config.jpeg_quality, subsampling=0)
            folder.write_image(f"masks/{name.removesuffix('.jpg')}.png", numbers[image.owner])
            if frame.is_key_frame:
                visible[frame.sample] += image.visible
                covered[frame.sample] += image.covered
    instances = {str(numbers[index]): token for index, token in tables.instance_tokens().items()}
    folder.write_json(f"masks/{scene.name}.json", instances)
    return visible, covered


def _map_mask(scene: Scene) -> npt.NDArray[np.uint8]:
    """Road and pavement of the scene as 255, the rest as 0; row 0 is the northern end."""
    coarse = np.arange(MAP_STEP / 2, 2 * scene.street.origin, MAP_STEP)
    x, y = np.meshgrid(coarse, coarse[::-1])
    on_street = scene.street.ground(np.stack([x, y], axis=-1)) > 0
    repeats = round(MAP_STEP / MAP_RESOLUTION)
    return np.kron(on_street.astype(np.uint8) * np.uint8(255), np.ones((repeats, repeats), dtype=np.uint8))
