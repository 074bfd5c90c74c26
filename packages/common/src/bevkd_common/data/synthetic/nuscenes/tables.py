"""Rows of the thirteen tables of the nuScenes v1.0 schema."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevkd_common.data.synthetic.recording import Frame, Recording
from bevkd_common.data.synthetic.rig import Camera, Lidar
from bevkd_common.data.synthetic.rigid import Integers, quaternion_from_rotation, quaternion_from_yaw
from bevkd_common.data.synthetic.solids import annotation_boxes

from .categories import ATTRIBUTES, CATEGORIES, CATEGORY_OF, annotated, attribute_name
from .scene_names import scene_name, scene_start

Row = dict[str, Any]
Tables = dict[str, list[Row]]

# Upper limits of the visible share in the first three visibility bins, whose tokens are "1" to "3".
VISIBILITY_LIMITS = (0.4, 0.6, 0.8)
VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)


@dataclass(frozen=True)
class Observations:
    """Measurements of the N objects of a scene at its F key frames.

    Attributes:
        lidar_points: LiDAR points inside each annotated box, [F, N].
        visible: Pixels in which an object is visible, over all images, [F, N].
        covered: Pixels in which it would be visible without occlusion, [F, N].
    """

    lidar_points: Integers
    visible: Integers
    covered: Integers


def token(*key: object) -> str:
    """Returns the token of a row, 32 hexadecimal digits. Equal keys give equal tokens."""
    return hashlib.sha256("/".join(str(part) for part in key).encode()).hexdigest()[:32]


def shared_tables(seed: int, sensors: Sequence[Camera | Lidar]) -> Tables:
    """Returns the rows that do not belong to a scene.

    Args:
        seed: Seed of the world.
        sensors: Of any vehicle; all have sensors of the same names.
    """
    rows: Tables = {name: [] for name in TABLES}
    rows["category"] = [
        {"token": token(seed, "category", name), "name": name, "description": f"Synthetic {name}."}
        for name in CATEGORIES
    ]
    rows["attribute"] = [
        {"token": token(seed, "attribute", name), "name": name, "description": f"Synthetic {name}."}
        for name in ATTRIBUTES
    ]
    rows["visibility"] = [
        {
            "token": str(index + 1),
            "level": level,
            "description": f"visibility of whole object is between {level[1:].replace('-', ' and ')}%",
        }
        for index, level in enumerate(VISIBILITY_LEVELS)
    ]
    rows["sensor"] = [
        {
            "token": token(seed, "sensor", sensor.name),
            "channel": sensor.name,
            "modality": "camera" if isinstance(sensor, Camera) else "lidar",
        }
        for sensor in sensors
    ]
    return rows


@dataclass(frozen=True)
class SceneTables:
    """Builds the rows of one scene.

    Attributes:
        seed: Seed of the world.
        recording: The scene, its rig and its frames.
    """

    seed: int
    recording: Recording

    @property
    def name(self) -> str:
        """Name of the scene."""
        return scene_name(self.recording.scene)

    @property
    def logfile(self) -> str:
        """Name of the log, the prefix of every file name."""
        return f"{self.recording.rig.vehicle}-{self.name}"

    def token(self, *key: object) -> str:
        """Returns the token of a row of this scene."""
        return token(self.seed, self.name, *key)

    def timestamp(self, frame: Frame) -> int:
        """Returns the timestamp of a frame in microseconds."""
        return scene_start(self.recording.scene) + frame.microseconds

    def filename(self, frame: Frame) -> str:
        """Returns the path of a frame relative to the data set, named as in nuScenes."""
        folder = "samples" if frame.is_key_frame else "sweeps"
        suffix = "pcd.bin" if frame.sensor == self.recording.rig.lidar.name else "jpg"
        return f"{folder}/{frame.sensor}/{self.logfile}__{frame.sensor}__{self.timestamp(frame)}.{suffix}"

    def instance_tokens(self) -> dict[int, str]:
        """Returns the instance token of each annotated object by its index in the scene."""
        objects = np.flatnonzero(annotated(self.recording.scene))
        return {int(index): self.token("instance", index) for index in objects}

    def rows(self, observations: Observations, map_file: str) -> Tables:
        """Returns all rows of the scene.

        Args:
            observations: Measurements at the key frames.
            map_file: Path of the map mask relative to the data set.
        """
        keyframes = self.recording.key_frames
        samples = [self.token("sample", frame.sample) for frame in keyframes]
        tables: Tables = {name: [] for name in TABLES}
        tables["log"] = [
            {
                "token": self.token("log"),
                "logfile": self.logfile,
                "vehicle": self.recording.rig.vehicle,
                "date_captured": "2020-09-13",
                "location": f"synthetic-{self.name}",
            }
        ]
        tables["map"] = [
            {
                "token": self.token("map"),
                "log_tokens": [self.token("log")],
                "category": "semantic_prior",
                "filename": map_file,
            }
        ]
        tables["scene"] = [
            {
                "token": self.token("scene"),
                "name": self.name,
                "description": "Synthetic street",
                "log_token": self.token("log"),
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
            }
        ]
        tables["sample"] = [
            {"token": own, "timestamp": self.timestamp(frame), "scene_token": self.token("scene"), **links}
            for own, frame, links in zip(samples, keyframes, _links(samples), strict=True)
        ]
        # As in nuScenes, every scene has calibrations of its own, equal or not; tools look scenes up by them.
        tables["calibrated_sensor"] = [
            {
                "token": self.token("calibrated_sensor", sensor.name),
                "sensor_token": token(self.seed, "sensor", sensor.name),
                "translation": sensor.ego_T_sensor[:3, 3].tolist(),
                "rotation": quaternion_from_rotation(sensor.ego_T_sensor[:3, :3]),
                "camera_intrinsic": sensor.intrinsic.tolist() if isinstance(sensor, Camera) else [],
            }
            for sensor in self.recording.rig.sensors
        ]
        for sensor in self.recording.rig.sensors:
            self._add_frames(tables, sensor)
        self._add_annotations(tables, keyframes, samples, observations)
        return tables

    def _add_frames(self, tables: Tables, sensor: Camera | Lidar) -> None:
        scene = self.recording.scene
        frames = self.recording.frames[sensor.name]
        tokens = [self.token(sensor.name, index) for index in range(len(frames))]
        height, width = sensor.image_size if isinstance(sensor, Camera) else (0, 0)
        for own, frame, links in zip(tokens, frames, _links(tokens), strict=True):
            x, y, yaw = scene.ego.poses(frame.seconds)[0]
            # As in nuScenes, an ego pose has the token of its frame.
            tables["ego_pose"].append(
                {
                    "token": own,
                    "timestamp": self.timestamp(frame),
                    "rotation": quaternion_from_yaw(yaw),
                    "translation": [float(x), float(y), 0.0],
                }
            )
            tables["sample_data"].append(
                {
                    "token": own,
                    "sample_token": self.token("sample", frame.sample),
                    "ego_pose_token": own,
                    "calibrated_sensor_token": self.token("calibrated_sensor", sensor.name),
                    "timestamp": self.timestamp(frame),
                    "fileformat": "jpg" if isinstance(sensor, Camera) else "pcd",
                    "is_key_frame": frame.is_key_frame,
                    "height": height,
                    "width": width,
                    "filename": self.filename(frame),
                    **links,
                }
            )

    def _add_annotations(
        self, tables: Tables, keyframes: list[Frame], samples: list[str], observations: Observations
    ) -> None:
        scene = self.recording.scene
        boxes = [annotation_boxes(scene, frame.seconds) for frame in keyframes]
        visibility = visibility_bins(observations.visible, observations.covered)
        for index, instance in self.instance_tokens().items():
            attribute = attribute_name(scene.kinds[index], scene.motions[index])
            attributes = [token(self.seed, "attribute", attribute)] if attribute else []
            tokens = [self.token("annotation", index, frame) for frame in range(len(samples))]
            for frame, links in enumerate(_links(tokens)):
                box = boxes[frame][index]
                tables["sample_annotation"].append(
                    {
                        "token": tokens[frame],
                        "sample_token": samples[frame],
                        "instance_token": instance,
                        "visibility_token": str(visibility[frame, index]),
                        "attribute_tokens": attributes,
                        "translation": box[:3].tolist(),
                        "size": box[[4, 3, 5]].tolist(),
                        "rotation": quaternion_from_yaw(float(box[6])),
                        "num_lidar_pts": int(observations.lidar_points[frame, index]),
                        "num_radar_pts": 0,
                        **links,
                    }
                )
            tables["instance"].append(
                {
                    "token": instance,
                    "category_token": token(self.seed, "category", CATEGORY_OF[scene.kinds[index]]),
                    "nbr_annotations": len(tokens),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )


def _links(tokens: Sequence[str]) -> list[Row]:
    """Returns the `prev` and `next` fields of a chain of rows."""
    return [
        {"prev": before, "next": after} for before, after in zip(["", *tokens[:-1]], [*tokens[1:], ""], strict=True)
    ]


def visibility_bins(visible: Integers, covered: Integers) -> Integers:
    """Returns the visibility bin (1 to 4) of the visible share of an object's pixels; 1 for no pixels at all."""
    share = visible / np.maximum(covered, 1)
    return 1 + np.searchsorted(VISIBILITY_LIMITS, share, side="right")
