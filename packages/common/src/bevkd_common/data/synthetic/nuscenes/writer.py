"""The writer of the nuScenes v1.0 format.

Layout of a data set:

    v1.0-synthetic/*.json    the thirteen tables, and splits.json, from which the devkit reads custom splits
    samples/ sweeps/ maps/   as in nuScenes; one map mask for each scene
    can_bus/                 the CAN-bus expansion
    masks/                   not part of nuScenes: for each image a PNG with the same relative path. Its pixels are
                             instance numbers, 0 for no instance; masks/<scene>.json maps numbers to instance tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.synthetic.lidar import Sweep, points_in_boxes
from bevkd_common.data.synthetic.recording import Recording
from bevkd_common.data.synthetic.rig import Rig
from bevkd_common.data.synthetic.rigid import Integers, transform
from bevkd_common.data.synthetic.scene import Scene, time_span
from bevkd_common.data.synthetic.solids import annotation_boxes
from bevkd_common.data.synthetic.writer import Folder
from bevkd_common.errors import UserError

from .can_bus import can_messages
from .categories import annotated
from .rig import VEHICLES, nuscenes_rig
from .scene_names import scene_name, scene_names, scene_start
from .tables import TABLES, Observations, SceneTables, Tables, shared_tables

VERSION = "v1.0-synthetic"
TRAIN_SPLIT, VAL_SPLIT = "synthetic_train", "synthetic_val"
MOST_INSTANCES = 255  # in the eight bits of a mask, with 0 for no instance
MAP_RESOLUTION = 0.1  # metres per pixel, as the devkit requires
MAP_STEP = 0.5  # metres; the mask is only drawn and may be coarse


@dataclass(frozen=True)
class NuScenesWriter:
    """Writes a world in the nuScenes v1.0 format.

    Attributes:
        config: The world to write.
    """

    config: WorldConfig

    @property
    def name(self) -> str:
        """See `Writer`."""
        return self.config.name()

    def rig(self, index: int) -> Rig:
        """See `Writer`. The vehicles take turns."""
        return nuscenes_rig(self.config, VEHICLES[index % len(VEHICLES)])

    def write_scene(self, recording: Recording, folder: Folder) -> Tables:
        """See `Writer`.

        Raises:
            UserError: If the scene has more annotated objects than a mask has numbers.
        """
        scene = recording.scene
        name, count = scene_name(scene), annotated(scene).sum()
        if count > MOST_INSTANCES:
            raise UserError(
                f"{name} would have {count} annotated objects, but a mask has only {MOST_INSTANCES} numbers: lower "
                "the counts in `objects` or keyframes_per_scene"
            )
        tables = SceneTables(self.config.seed, recording)
        lidar_points = self._write_sweeps(tables, folder)
        visible, covered = self._write_images(tables, folder)
        for file, messages in can_messages(scene, scene_start(scene), *time_span(self.config)).items():
            folder.write_json(f"can_bus/{name}_{file}.json", messages)
        map_file = f"maps/{name}.png"
        folder.write_image(map_file, _map_mask(scene), compress_level=1)
        return tables.rows(Observations(lidar_points, visible, covered), map_file)

    def write_shared(self, scenes: Sequence[Tables], folder: Folder) -> None:
        """See `Writer`."""
        tables = shared_tables(self.config.seed, nuscenes_rig(self.config, VEHICLES[0]).sensors)
        for name in TABLES:
            for rows in scenes:
                tables[name].extend(rows[name])
            folder.write_json(f"{VERSION}/{name}.json", tables[name])
        names = scene_names(self.config.scenes)
        splits = {TRAIN_SPLIT: names[: self.config.train_scenes], VAL_SPLIT: names[self.config.train_scenes :]}
        folder.write_json(f"{VERSION}/splits.json", splits)

    def _write_sweeps(self, tables: SceneTables, folder: Folder) -> Integers:
        """Writes all sweeps. Returns the number of points in each annotated box at each key frame, [F, N]."""
        recording, scene = tables.recording, tables.recording.scene
        objects = annotated(scene)
        counts = np.zeros((len(recording.key_frames), len(scene.kinds)), dtype=np.int64)
        for frame, sweep in recording.sweeps():
            folder.write(tables.filename(frame), sweep_columns(sweep).tobytes())
            if frame.is_key_frame:
                map_T_lidar = scene.map_T_ego(frame.seconds) @ recording.rig.lidar.ego_T_sensor
                in_map = transform(map_T_lidar, sweep.points.astype(np.float64))
                boxes = annotation_boxes(scene, frame.seconds)[objects]
                counts[frame.sample, objects] = points_in_boxes(in_map, boxes)
        return counts

    def _write_images(self, tables: SceneTables, folder: Folder) -> tuple[Integers, Integers]:
        """Writes all images and masks. Returns the visible and covered pixels at each key frame, [F, N] each."""
        recording, scene = tables.recording, tables.recording.scene
        visible = np.zeros((len(recording.key_frames), len(scene.kinds)), dtype=np.int64)
        covered = np.zeros_like(visible)
        # The last entry is for the owner -1, ground and sky.
        objects = np.append(annotated(scene), False)
        numbers = np.where(objects, np.cumsum(objects), 0).astype(np.uint8)
        for _, frame, image in recording.images():
            name = tables.filename(frame)
            folder.write_image(name, image.colour, quality=self.config.jpeg_quality, subsampling=0)
            folder.write_image(f"masks/{name.removesuffix('.jpg')}.png", numbers[image.owner])
            if frame.is_key_frame:
                visible[frame.sample] += image.visible
                covered[frame.sample] += image.covered
        instances = {str(numbers[index]): token for index, token in tables.instance_tokens().items()}
        folder.write_json(f"masks/{scene_name(scene)}.json", instances)
        return visible, covered


def sweep_columns(sweep: Sweep) -> npt.NDArray[np.float32]:
    """Returns a sweep as in the nuScenes files: x, y, z, intensity (integers 0 to 255), ring; float32 [P, 5]."""
    intensity = np.clip(np.round(255 * sweep.reflectance), 0, 255)
    return np.column_stack([sweep.points, intensity, sweep.beam]).astype(np.float32)


def _map_mask(scene: Scene) -> npt.NDArray[np.uint8]:
    """Returns the map mask of a scene: 255 for road and pavement, else 0. Row 0 is the northern edge."""
    coarse = np.arange(MAP_STEP / 2, 2 * scene.street.origin, MAP_STEP)
    x, y = np.meshgrid(coarse, coarse[::-1])
    on_street = scene.street.ground(np.stack([x, y], axis=-1)) > 0
    repeats = round(MAP_STEP / MAP_RESOLUTION)
    return np.kron(on_street.astype(np.uint8) * np.uint8(255), np.ones((repeats, repeats), dtype=np.uint8))
