"""Rows of the thirteen tables of the nuScenes schema, version 1.0."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevkd_common.config.world import WorldConfig

from .kinds import KINDS
from .placement import Motion
from .rig import CAMERAS, CHANNELS, LIDAR, VEHICLES, Calibration, Trigger
from .rigid import Floats, Integers, quaternion_from_rotation, quaternion_from_yaw
from .scene import Scene
from .solids import annotation_boxes

Row = dict[str, Any]
Tables = dict[str, list[Row]]

CATEGORIES = (
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.wheelchair",
    "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.construction_worker",
    "animal",
    "vehicle.car",
    "vehicle.motorcycle",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.truck",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.trailer",
    "movable_object.barrier",
    "movable_object.trafficcone",
    "movable_object.pushable_pullable",
    "movable_object.debris",
    "static_object.bicycle_rack",
)
ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
# Upper limits of the visible share of the first three bins; tokens are "1" to "4".
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
class Observation:
    """What the sensors saw of the N things of a scene at one key frame."""

    lidar_points: Integers  # [N]
    visible: Integers  # pixels over all six images, [N]
    covered: Integers  # pixels if nothing stood in front, [N]


def token(*key: object) -> str:
    """The 32 hexadecimal digits that name a row; equal keys give equal tokens."""
    return hashlib.sha256("/".join(str(part) for part in key).encode()).hexdigest()[:32]


def shared_tables(config: WorldConfig, rigs: dict[str, dict[str, Calibration]]) -> Tables:
    """Rows that do not belong to a scene."""
    rows: Tables = {name: [] for name in TABLES}
    rows["category"] = [
        {"token": token(config.seed, "category", name), "name": name, "description": f"Synthetic {name}."}
        for name in CATEGORIES
    ]
    rows["attribute"] = [
        {"token": token(config.seed, "attribute", name), "name": name, "description": f"Synthetic {name}."}
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
            "token": token(config.seed, "sensor", channel),
            "channel": channel,
            "modality": "camera" if channel in CAMERAS else "lidar",
        }
        for channel in CHANNELS
    ]
    rows["calibrated_sensor"] = [
        {
            "token": token(config.seed, "calibrated_sensor", vehicle, channel),
            "sensor_token": token(config.seed, "sensor", channel),
            "translation": sensor.ego_T_sensor[:3, 3].tolist(),
            "rotation": quaternion_from_rotation(sensor.ego_T_sensor[:3, :3]),
            "camera_intrinsic": [] if sensor.intrinsic is None else sensor.intrinsic.tolist(),
        }
        for vehicle in VEHICLES
        for channel, sensor in rigs[vehicle].items()
    ]
    return rows


@dataclass(frozen=True)
class SceneTables:
    """Builds the rows of one scene."""

    config: WorldConfig
    scene: Scene
    vehicle: str
    frames: dict[str, list[Trigger]]
    split: str

    def token(self, *key: object) -> str:
        """Token of a row of this scene."""
        return token(self.config.seed, self.scene.name, *key)

    @property
    def logfile(self) -> str:
        """Name of the recording, with which every file name begins."""
        return f"{self.vehicle}-{self.scene.name}"

    def filename(self, frame: Trigger) -> str:
        """Path of a frame inside the data set, named as in nuScenes."""
        folder = "samples" if frame.is_key_frame else "sweeps"
        ending = "pcd.bin" if frame.channel == LIDAR else "jpg"
        return f"{folder}/{frame.channel}/{self.logfile}__{frame.channel}__{frame.timestamp}.{ending}"

    def instance_tokens(self) -> list[str | None]:
        """Instance token of each thing of the scene, None for what nobody annotates."""
        return [
            self.token("instance", index) if KINDS[kind].category is not None else None
            for index, kind in enumerate(self.scene.kinds)
        ]

    def rows(self, observations: Sequence[Observation], map_file: str) -> Tables:
        """All rows of the scene, given what was seen at each key frame."""
        keyframes = [frame for frame in self.frames[LIDAR] if frame.is_key_frame]
        samples = [self.token("sample", frame.sample) for frame in keyframes]
        tables: Tables = {name: [] for name in TABLES}
        tables["log"] = [
            {
                "token": self.token("log"),
                "logfile": self.logfile,
                "vehicle": self.vehicle,
                "date_captured": "2020-09-13",
                "location": f"synthetic-{self.scene.name}",
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
                "name": self.scene.name,
                "description": f"Synthetic street, {self.split}",
                "log_token": self.token("log"),
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
            }
        ]
        tables["sample"] = [
            {"token": own, "timestamp": frame.timestamp, "scene_token": self.token("scene"), **links}
            for own, frame, links in zip(samples, keyframes, _links(samples), strict=True)
        ]
        for channel in CHANNELS:
            self._add_frames(tables, channel)
        self._add_annotations(tables, keyframes, samples, observations)
        return tables

    def _add_frames(self, tables: Tables, channel: str) -> None:
        frames = self.frames[channel]
        tokens = [self.token(channel, index) for index in range(len(frames))]
        height, width = self.config.image_size if channel in CAMERAS else (0, 0)
        for own, frame, links in zip(tokens, frames, _links(tokens), strict=True):
            x, y, yaw = self.scene.ego.poses(frame.seconds)[0]
            # As in nuScenes, a frame's pose has the frame's token.
            tables["ego_pose"].append(
                {
                    "token": own,
                    "timestamp": frame.timestamp,
                    "rotation": quaternion_from_yaw(yaw),
                    "translation": [float(x), float(y), 0.0],
                }
            )
            tables["sample_data"].append(
                {
                    "token": own,
                    "sample_token": self.token("sample", frame.sample),
                    "ego_pose_token": own,
                    "calibrated_sensor_token": token(self.config.seed, "calibrated_sensor", self.vehicle, channel),
                    "timestamp": frame.timestamp,
                    "fileformat": "jpg" if channel in CAMERAS else "pcd",
                    "is_key_frame": frame.is_key_frame,
                    "height": height,
                    "width": width,
                    "filename": self.filename(frame),
                    **links,
                }
            )

    def _add_annotations(
        self, tables: Tables, keyframes: list[Trigger], samples: list[str], observations: Sequence[Observation]
    ) -> None:
        boxes = [annotation_boxes(self.scene, frame.seconds) for frame in keyframes]
        for index, instance in enumerate(self.instance_tokens()):
            if instance is None:
                continue
            kind, motion = self.scene.kinds[index], self.scene.motions[index]
            category = str(KINDS[kind].category)
            attribute = attribute_name(kind, category, motion)
            attributes = [token(self.config.seed, "attribute", attribute)] if attribute else []
            tokens = [self.token("annotation", index, frame) for frame in range(len(samples))]
            for frame, links in enumerate(_links(tokens)):
                seen, box = observations[frame], boxes[frame][index]
                tables["sample_annotation"].append(
                    {
                        "token": tokens[frame],
                        "sample_token": samples[frame],
                        "instance_token": instance,
                        "visibility_token": visibility_token(int(seen.visible[index]), int(seen.covered[index])),
                        "attribute_tokens": attributes,
                        "translation": box[:3].tolist(),
                        "size": box[[4, 3, 5]].tolist(),
                        "rotation": quaternion_from_yaw(float(box[6])),
                        "num_lidar_pts": int(seen.lidar_points[index]),
                        "num_radar_pts": 0,
                        **links,
                    }
                )
            tables["instance"].append(
                {
                    "token": instance,
                    "category_token": token(self.config.seed, "category", category),
                    "nbr_annotations": len(tokens),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )


def _links(tokens: Sequence[str]) -> list[Row]:
    """The `prev` and `next` fields of a chain of rows."""
    return [
        {"prev": before, "next": after} for before, after in zip(["", *tokens[:-1]], [*tokens[1:], ""], strict=True)
    ]


def attribute_name(kind: str, category: str, motion: Motion) -> str:
    """Attribute of a thing, empty for categories that have none."""
    if category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cycle.with_rider" if kind in ("cyclist", "motorcyclist") else "cycle.without_rider"
    if category.startswith("vehicle."):
        return f"vehicle.{motion.name.lower()}"
    if category.startswith("human.pedestrian."):
        return "pedestrian.moving" if motion is Motion.MOVING else "pedestrian.standing"
    return ""


def visibility_token(visible: int, covered: int) -> str:
    """Bin of the share of a thing's pixels that are seen; what no camera covers is in the lowest."""
    share = visible / covered if covered else 0.0
    return str(1 + int(np.searchsorted(VISIBILITY_LIMITS, share, side="right")) if covered else 1)


def ego_matrix(scene: Scene, seconds: float) -> Floats:
    """`map_T_ego` at a moment; the ground is level and so is the ego."""
    x, y, yaw = scene.ego.poses(seconds)[0]
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, 0], [0, 0, 0, 1.0]])
