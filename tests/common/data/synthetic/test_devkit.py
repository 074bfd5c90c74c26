"""What users of nuscenes-devkit do, done to a synthetic world without a patch."""

import json

import numpy as np
import pytest

pytest.importorskip("nuscenes")

from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.splits import get_scenes_of_split


def submission(nuscenes, split):
    """The ground truth that the evaluation keeps, as predictions of score 1."""
    results = {}
    scenes = get_scenes_of_split(split, nuscenes)
    names = {row["token"]: row["name"] for row in nuscenes.attribute}
    for sample in nuscenes.sample:
        if nuscenes.get("scene", sample["scene_token"])["name"] not in scenes:
            continue
        results[sample["token"]] = [
            {
                "sample_token": sample["token"],
                "translation": row["translation"],
                "size": row["size"],
                "rotation": row["rotation"],
                "velocity": nuscenes.box_velocity(row["token"])[:2].tolist(),
                "detection_name": category_to_detection_name(row["category_name"]),
                "detection_score": 1.0,
                "attribute_name": "".join(names[key] for key in row["attribute_tokens"]),
            }
            for row in (nuscenes.get("sample_annotation", key) for key in sample["anns"])
            if category_to_detection_name(row["category_name"]) and row["num_lidar_pts"]
        ]
    meta = {f"use_{name}": name == "lidar" for name in ("camera", "lidar", "radar", "map", "external")}
    return {"meta": meta, "results": results}


def test_ground_truth_as_predictions_is_perfect(nuscenes, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(submission(nuscenes, "synthetic_train")))
    evaluation = DetectionEval(
        nuscenes, config_factory("detection_cvpr_2019"), str(path), "synthetic_train", str(tmp_path), verbose=False
    )
    metrics = evaluation.evaluate()[0].serialize()
    present = {box.detection_name for boxes in evaluation.gt_boxes.boxes.values() for box in boxes}
    assert len(present) == 10
    assert metrics["mean_ap"] == pytest.approx(1.0, abs=1e-12)
    assert set(metrics["tp_errors"].values()) == {0.0}
    assert metrics["nd_score"] == pytest.approx(1.0, abs=1e-12)


def test_velocities_are_those_of_the_objects(nuscenes):
    moving = [row["token"] for row in nuscenes.attribute if row["name"] == "vehicle.moving"]
    speeds = {True: [], False: []}
    for row in nuscenes.sample_annotation:
        if row["category_name"].startswith("vehicle.car"):
            speed = np.linalg.norm(nuscenes.box_velocity(row["token"])[:2])
            speeds[row["attribute_tokens"] == moving].append(speed)
    assert max(speeds[False]) < 1e-9
    assert min(speeds[True]) > 0.5
    assert len(speeds[True]) >= 6


def test_sweeps_of_a_standing_thing_coincide(nuscenes):
    sample = nuscenes.sample[-1]
    cloud, _ = LidarPointCloud.from_file_multisweep(nuscenes, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=5)
    single = LidarPointCloud.from_file(nuscenes.get_sample_data_path(sample["data"]["LIDAR_TOP"]))
    assert cloud.points.shape[1] > 4.3 * single.points.shape[1]
    checked = 0
    for row in (nuscenes.get("sample_annotation", key) for key in sample["anns"]):
        if row["num_lidar_pts"] < 40 or np.linalg.norm(nuscenes.box_velocity(row["token"])) > 1e-6:
            continue
        _, (box,), _ = nuscenes.get_sample_data(sample["data"]["LIDAR_TOP"], selected_anntokens=[row["token"]])
        offset = np.abs(box.rotation_matrix.T @ (cloud.points[:3] - box.center[:, None]))
        half = box.wlh[[1, 0, 2], None] / 2
        inside = (offset <= half).all(axis=0).sum()
        beside = ((offset[:2] <= half[:2] + 0.25).all(axis=0) & (offset[2] < half[2])).sum()
        assert inside > 2.4 * row["num_lidar_pts"]
        assert inside / beside > 0.9
        checked += 1
    assert checked >= 2


def test_boxes_project_onto_the_masks(nuscenes, world):
    from nuscenes.utils.geometry_utils import view_points
    from PIL import Image

    numbers = {
        token: int(number)
        for path in (world / "masks").glob("*.json")
        for number, token in json.loads(path.read_text()).items()
    }
    inside = total = 0
    for sample in nuscenes.sample:
        for channel in ("CAM_FRONT", "CAM_BACK_LEFT"):
            path, boxes, intrinsic = nuscenes.get_sample_data(sample["data"][channel])
            mask = np.array(Image.open(path.replace("samples", "masks/samples", 1).replace(".jpg", ".png")))
            for box in boxes:
                row = nuscenes.get("sample_annotation", box.token)
                rows, columns = np.nonzero(mask == numbers[row["instance_token"]])
                still = np.linalg.norm(nuscenes.box_velocity(box.token)) < 1e-6
                if len(rows) == 0 or not still or box.corners()[2].min() < 0.5:
                    continue
                u, v, _ = view_points(box.corners(), intrinsic, normalize=True)
                total += len(rows)
                inside += (
                    (columns >= u.min()) & (columns <= u.max()) & (rows >= v.min()) & (rows <= v.max())
                ).sum()
    assert total > 1000
    assert inside == total


def test_it_renders(nuscenes, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    for channel in ("CAM_BACK", "LIDAR_TOP"):
        path = tmp_path / f"{channel}.png"
        nuscenes.render_sample_data(nuscenes.sample[1]["data"][channel], out_path=str(path), verbose=False)
        assert path.stat().st_size > 5000


def test_the_map_shows_the_street_below_the_ego(nuscenes):
    for scene in nuscenes.scene:
        log = nuscenes.get("log", scene["log_token"])
        mask = nuscenes.get("map", log["map_token"])["mask"]
        sample = nuscenes.get("sample", scene["first_sample_token"])
        pose = nuscenes.get("ego_pose", nuscenes.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        x, y, _ = pose["translation"]
        assert mask.is_on_mask(x, y).all()
        share = (mask.mask() == mask.foreground).mean()
        assert 0.05 < share < 0.6


def test_the_can_bus_expansion_opens(nuscenes, world):
    can_bus = NuScenesCanBus(str(world))
    assert can_bus.list_misaligned_routes() == []
    for name in ("scene-0001", "scene-0003"):
        for message in can_bus.all_messages:
            assert len(can_bus.get_messages(name, message)) > 3
        assert set(can_bus.get_messages(name, "pose")[0]) == {
            "accel", "orientation", "pos", "rotation_rate", "utime", "vel",
        }  # fmt: skip
