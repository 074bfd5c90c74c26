"""Categories of nuScenes' annotations, and the detection class of each."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.data.nuscenes.index import BICYCLE_RACK, IGNORED, Ints
from bevkd_common.data.nuscenes.tables import Table
from bevkd_common.errors import UserError

DETECTION_CLASS = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bus.rigid": "bus",
    "vehicle.bus.bendy": "bus",
    "vehicle.trailer": "trailer",
    "movable_object.barrier": "barrier",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
}
"""Detection class of a nuScenes category; other categories are neither trained nor evaluated.

Source: the nuScenes detection task.
"""

OTHER_CATEGORIES = frozenset(
    {
        "animal", "human.pedestrian.personal_mobility", "human.pedestrian.stroller", "human.pedestrian.wheelchair",
        "movable_object.debris", "movable_object.pushable_pullable", "static_object.bicycle_rack",
        "vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.ego",
    }
)  # fmt: skip
"""Categories of nuScenes that are neither trained nor evaluated, beside those of points alone (flat., static.)."""

_log = logging.getLogger(__name__)


def labels(tables: Mapping[str, Table]) -> Ints:
    """Detection class of each annotation, in the order of the table.

    Raises:
        UserError: If the categories are none of nuScenes, or one of them has another name.
    """
    code = {name.encode(): CLASSES.index(label) for name, label in DETECTION_CLASS.items()}
    code[b"static_object.bicycle_rack"] = BICYCLE_RACK
    category, instance, table = (tables[name] for name in ("category", "instance", "sample_annotation"))
    of_category = np.array([code.get(name, IGNORED) for name in category["name"].tolist()], dtype=np.int64)
    of_instance = category.rows(instance["category_token"])
    of_annotation = of_instance[instance.rows(table["instance_token"])]
    found = of_category[of_annotation]
    if len(found) and found.max() < 0:
        names = b", ".join(sorted(category["name"].tolist())[:5]).decode()
        raise UserError(
            f"{category.path} names none of the categories of the nuScenes detection task; it has {names}"
        )
    _check_categories(category, of_annotation)
    return found


def _check_categories(category: Table, of_annotation: Ints) -> None:
    """Refuse a detection class under another name; warn of other boxes that are left out.

    Raises:
        UserError: If annotations have such a category.
    """
    counts = np.bincount(of_annotation, minlength=len(category))
    unknown = {
        name.decode(): number
        for name, number in zip(category["name"].tolist(), counts.tolist(), strict=True)
        if number and name.decode() not in DETECTION_CLASS and name.decode() not in OTHER_CATEGORIES
    }
    for name, number in unknown.items():
        if (official := _official(name)) is not None:
            raise UserError(
                f"{category.path} names the category {name!r} of {number} annotations, in nuScenes it is"
                f" {official!r}: rename it, or these boxes are neither trained nor evaluated"
            )
    for name, number in unknown.items():
        _log.warning("%s: %d boxes of %r are left out, it is no category of nuScenes", category.path, number, name)


def _official(name: str) -> str | None:
    """The category of nuScenes that another name means; None if there is none."""
    plain = name.lower().rpartition(".")[2].replace("_", "").replace(" ", "").replace("-", "")
    for category, detected in DETECTION_CLASS.items():
        if plain in (category.rpartition(".")[2].replace("_", ""), detected.replace("_", "")):
            return category
    return None
