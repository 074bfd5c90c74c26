"""Submissions that other tools wrote, right and in a wrong convention."""

import json

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.synthetic import ensure_world
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.foreign import devkit_headline, score_submission
from bevkd_common.evaluation.nuscenes.submission import default_attributes
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import to_devkit, to_mmdet3d_old_info

VERSION, SPLIT = "v1.0-synthetic", "synthetic_train"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    config = WorldConfig(
        train_scenes=4, val_scenes=1, keyframes_per_scene=3, image_size=(16, 32), lidar_azimuths=180,
        camera_rate=2.0, lidar_rate=2.0,
    )  # fmt: skip
    return ensure_world(NuScenesWriter(config), tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def index(world):
    return open_index(world, VERSION)


def detections(index, wrong=None):
    """The annotations as a detector in LiDAR axes gives them, a little off; `wrong` changes the convention."""
    rng = np.random.default_rng(0)
    results = {}
    for row in index.split(SPLIT):
        token = index.key_frames.token[row].decode()
        pose = torch.tensor(index.key_frames.global_T_lidar[row])
        rows = index.annotations.rows(row)
        known = index.annotations.label[rows] >= 0
        noise = rng.normal(size=(int(known.sum()), 9)) * [0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.1, 0.1, 0.1]
        boxes = Boxes(torch.from_numpy(np.nan_to_num(index.annotations.boxes[rows][known]) + noise))
        boxes = Boxes(torch.cat([boxes.tensor[:, :3], boxes.size.abs() + 0.05, boxes.tensor[:, 6:]], dim=1))
        if wrong is not None:
            boxes = wrong(boxes, pose)
        moved = to_devkit(boxes, torch.eye(4) if wrong is unmoved else pose)
        labels = index.annotations.label[rows][known]
        attributes = default_attributes(labels, moved.velocity[:, :2].numpy())
        from bevkd_common.evaluation.nuscenes.global_boxes import ATTRIBUTES

        results[token] = [
            {
                "sample_token": token,
                "translation": moved.translation[k].tolist(),
                "size": moved.size[k].tolist(),
                "rotation": moved.rotation[k].tolist(),
                "velocity": moved.velocity[k, :2].tolist(),
                "detection_name": CLASSES[labels[k]],
                "detection_score": float(rng.uniform(0.3, 1.0)),
                "attribute_name": ATTRIBUTES[attributes[k]] if attributes[k] >= 0 else "",
            }
            for k in range(len(labels))
        ]
    flags = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    return {"meta": flags, "results": results}


def unmoved(boxes, pose):
    return boxes


def old_mmdetection3d(boxes, pose):
    return Boxes(to_mmdet3d_old_info(boxes))


def write(path, submission):
    path.write_text(json.dumps(submission))
    return path


def test_a_sound_submission_is_scored_as_in_the_devkit_and_fails_no_convention_check(index, tmp_path):
    pytest.importorskip("nuscenes")
    path = write(tmp_path / "submission.json", detections(index))
    steps = []
    scored = score_submission(index, SPLIT, path, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (12, 12)
    assert scored.findings == []
    ours = {name: metric.value for name, metric in scored.results.headline.items()}
    assert ours["mAP"] > 0.7
    theirs = devkit_headline(index, SPLIT, path)
    assert set(ours) == set(theirs)
    assert len(theirs) == 7
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name


def test_a_named_convention_stands_alone(index, tmp_path):
    """Advice about the scores would only add wrong causes."""
    path = write(tmp_path / "submission.json", detections(index, unmoved))
    (finding,) = score_submission(index, SPLIT, path).findings
    assert finding.startswith("the boxes are in LiDAR axes instead of global axes: read so, ")
    assert finding.endswith(" predictions lie at annotated boxes, as they are 0")
    path = write(tmp_path / "submission.json", detections(index, old_mmdetection3d))
    (finding,) = score_submission(index, SPLIT, path).findings
    assert finding.startswith("the boxes are in the convention of mmdetection3d before 1.0: ")


def test_velocities_of_nan_are_counted(index, tmp_path):
    submission = detections(index)
    moving = [box for boxes in submission["results"].values() for box in boxes if box["attribute_name"]]
    for box in moving[:7]:
        box["velocity"] = [float("nan"), 0.0]
    path = write(tmp_path / "submission.json", submission)
    (finding,) = score_submission(index, SPLIT, path).findings
    assert finding.startswith(
        f"7 of {len(moving)} boxes have a velocity of NaN: the official metric leaves them out"
    )


def test_a_cone_needs_no_velocity(index, tmp_path):
    submission = detections(index)
    cones = [b for boxes in submission["results"].values() for b in boxes if b["detection_name"] == "traffic_cone"]
    assert len(cones) > 10
    for box in cones:
        box["velocity"] = [float("nan"), float("nan")]
    assert score_submission(index, SPLIT, write(tmp_path / "submission.json", submission)).findings == []


def test_a_submission_of_another_split_is_refused_by_both(index, tmp_path):
    pytest.importorskip("nuscenes")
    path = write(tmp_path / "submission.json", detections(index))
    with pytest.raises(UserError, match="lacks 3 samples of the split"):
        score_submission(index, "synthetic_val", path)
    with pytest.raises(UserError, match="lacks 3 samples of the split"):
        devkit_headline(index, "synthetic_val", path)


def test_without_the_devkit_its_engine_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nuscenes", None)
    with pytest.raises(UserError, match="nuscenes-devkit is not installed"):
        devkit_headline(index, SPLIT, tmp_path / "submission.json")


def _first_box(submission):
    return next(box for boxes in submission["results"].values() for box in boxes)


FAULTS = {
    "no file": (None, "cannot be read as JSON"),
    "binary": (b"\xff\xfe\x00" * 99, "cannot be read as JSON"),
    "cut off": (lambda text: text[: len(text) // 2], "cannot be read as JSON"),
    "size 0": (lambda text: _changed(text, size=[0, 1, 1]), "size of prediction 0 must be 3 numbers above 0"),
    "negative size": (
        lambda text: _changed(text, size=[1, -1, 1]),
        "size of prediction 0 must be 3 numbers above 0",
    ),
    "no velocity": (lambda text: _changed(text, velocity=None), "field 'velocity' of box 0 must be a list of 2"),
    "rotation that cannot be normalised": (lambda text: _changed(text, rotation=[1e-200, 0, 0, 0]), "not all 0"),
    "number without a square": (
        lambda text: _changed(text, translation=[1e200, 0, 0]),
        "translation of prediction 0",
    ),
    "a class of a megabyte": (
        lambda text: _changed(text, detection_name="x" * 10**6),
        "of box 0 is 'xxxxxxxxxxxx...",
    ),
    "half a surrogate pair": (
        lambda text: _changed(text, attribute_name="\ud800"),
        "it holds half a surrogate pair",
    ),
    "a surplus sample": (lambda text: text.replace('"results": {', '"results": {"other": [],', 1), "such as other"),
    "a token of a megabyte": (
        lambda text: text.replace('"results": {', '"results": {"' + "y" * 10**6 + '": [],', 1),
        "has 1 samples that are not in the split, such as yyyyyyyyyyyyyyyyyyyyy",
    ),
    "a sample twice": (
        lambda text: text.replace(
            '"results": {', f'"results": {{"{next(iter(json.loads(text)["results"]))}": [],', 1
        ),
        "is there twice",
    ),
}


def _changed(text, **fields):
    submission = json.loads(text)
    _first_box(submission).update(fields)
    return json.dumps(submission)


@pytest.mark.parametrize("fault", FAULTS)
def test_both_engines_refuse_a_damaged_submission_by_the_same_short_sentence(index, tmp_path, fault):
    pytest.importorskip("nuscenes")
    change, message = FAULTS[fault]
    path = tmp_path / "submission.json"
    content = change(json.dumps(detections(index))) if callable(change) else change
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    said = []
    for score in (score_submission, devkit_headline):
        with pytest.raises(UserError) as caught:
            score(index, SPLIT, path)
        said.append(str(caught.value))
    assert message in said[0]
    assert said[0] == said[1]
    assert len(said[0]) < len(str(path)) + 400
    assert "\n" not in said[0]


@pytest.mark.parametrize("content", ["[]", "", "null", None])
def test_tables_that_only_the_devkit_reads_are_one_sentence_without_its_bars(
    world, index, tmp_path, content, capsys
):
    pytest.importorskip("nuscenes")
    path = write(tmp_path / "submission.json", detections(index))
    table = world / VERSION / "map.json"
    before = table.read_bytes()
    try:
        table.unlink() if content is None else table.write_text(content)
        with pytest.raises(UserError, match=r"nuscenes-devkit cannot use the tables in .*: choose --engine ours"):
            devkit_headline(index, SPLIT, path)
    finally:
        table.write_bytes(before)
    assert devkit_headline(index, SPLIT, path)["mAP"] > 0.7
    assert capsys.readouterr() == ("", "")


def test_a_submission_without_boxes_is_one_sentence_of_each_engine(index, tmp_path):
    pytest.importorskip("nuscenes")
    submission = detections(index)
    submission["results"] = {token: [] for token in submission["results"]}
    path = write(tmp_path / "submission.json", submission)
    (finding,) = score_submission(index, SPLIT, path).findings
    assert finding.startswith("No prediction is left to score")
    with pytest.raises(UserError, match=r"nuscenes-devkit cannot use .*submission\.json .*: choose --engine ours"):
        devkit_headline(index, SPLIT, path)
