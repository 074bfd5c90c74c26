"""Rows of the thirteen tables of the nuScenes schema, version 1.0."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevkd_common.config.datasets.world import WorldConfig

from .kinds import KINDS, Motion
from .rig import CAMERAS, CHANNELS, LIDAR, VEHICLES, Calibration, Trigger
from .rigid import Integers, quaternion_from_rotation, quaternion_from_yaw
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
class Observations:
    """What the sensors saw of the N things of a scene at each of its F key frames; all [F, N].

    `visible` counts the pixels of a thing over all six images, `covered` those it would have if nothing stood in
    front of it.
    """

    lidar_points: Integers
    visible: Integers
    covered: Integers


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

    def instance_tokens(self) -> dict[int, str]:
        """Instance token of each annotated thing, by its index in the scene."""
        return {int(index): self.token("instance", index) for index in np.flatnonzero(self.scene.annotated)}

    def rows(self, observations: Observations, map_file: str) -> Tables:
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
                "description": "Synthetic street",
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
        self, tables: Tables, keyframes: list[Trigger], samples: list[str], observations: Observations
    ) -> None:
        boxes = [annotation_boxes(self.scene, frame.seconds) for frame in keyframes]
        visibility = visibility_bins(observations.visible, observations.covered)
        for index, instance in self.instance_tokens().items():
            kind, motion = self.scene.kinds[index], self.scene.motions[index]
            category = str(KINDS[kind].category)
            attribute = attribute_name(kind, category, motion)
            attributes = [token(self.config.seed, "attribute", attribute)] if attribute else []
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


def visibility_bins(visible: Integers, covered: Integers) -> Integers:
    """Bin (1 to 4) of the share of a thing's pixels that are seen; what no camera covers is in the lowest."""
    share = visible / np.maximum(covered, 1)
    return 1 + np.searchsorted(VISIBILITY_LIMITS, share, side="right")
