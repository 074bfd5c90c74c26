"""Categories and attributes of objects in the nuScenes format."""

import numpy as np

from bevkd_common.data.synthetic.kinds import Motion
from bevkd_common.data.synthetic.rigid import Booleans
from bevkd_common.data.synthetic.scene import Scene

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
# Category of each kind of object. Objects of other kinds are not annotated.
CATEGORY_OF: dict[str, str] = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "trailer": "vehicle.trailer",
    "rigid_bus": "vehicle.bus.rigid",
    "bendy_bus": "vehicle.bus.bendy",
    "excavator": "vehicle.construction",
    "loader": "vehicle.construction",
    "motorcycle": "vehicle.motorcycle",
    "motorcyclist": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "cyclist": "vehicle.bicycle",
    "adult": "human.pedestrian.adult",
    "child": "human.pedestrian.child",
    "construction_worker": "human.pedestrian.construction_worker",
    "police_officer": "human.pedestrian.police_officer",
    "traffic_cone": "movable_object.trafficcone",
    "fence_barrier": "movable_object.barrier",
    "jersey_barrier": "movable_object.barrier",
    "bin": "movable_object.pushable_pullable",
    "debris": "movable_object.debris",
}


def annotated(scene: Scene) -> Booleans:
    """Returns whether each object of a scene is annotated, [N]."""
    return np.array([kind in CATEGORY_OF for kind in scene.kinds], dtype=np.bool_)


def attribute_name(kind: str, motion: Motion) -> str:
    """Returns the attribute of an annotated object; empty if its category has none."""
    category = CATEGORY_OF[kind]
    if category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cycle.with_rider" if kind in ("cyclist", "motorcyclist") else "cycle.without_rider"
    if category.startswith("vehicle."):
        return f"vehicle.{motion.name.lower()}"
    if category.startswith("human.pedestrian."):
        return "pedestrian.moving" if motion is Motion.MOVING else "pedestrian.standing"
    return ""
