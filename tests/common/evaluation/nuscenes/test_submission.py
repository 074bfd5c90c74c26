"""The official submission file."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.metric import ATTRIBUTES, CLASSES, NO_ATTRIBUTE
from bevkd_common.evaluation.nuscenes.submission import (
    SubmissionMeta,
    default_attributes,
    read_submission,
    write_submission,
)

META = SubmissionMeta(use_camera=True, use_lidar=False, use_radar=False, use_map=False, use_external=True)
BOXES = [
    {
        "xy": (1.5, -2.25),
        "z": 0.5,
        "lwh": (4.5, 2.0, 1.25),
        "rotation": (0.5, 0.5, -0.5, 0.5),
        "velocity": (3.0, -1.0),
        "name": "bus",
        "attribute": "vehicle.stopped",
        "score": 0.1 + 0.2,
    },
    {"name": "traffic_cone", "score": 1.0},
]
META_JSON = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": True}
BUS_JSON = {
    "sample_token": "s1",
    "translation": [1.5, -2.25, 0.5],
    "size": [2.0, 4.5, 1.25],
    "rotation": [0.5, 0.5, -0.5, 0.5],
    "velocity": [3.0, -1.0],
    "detection_name": "bus",
    "detection_score": 0.30000000000000004,
    "attribute_name": "vehicle.stopped",
}


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_writes_the_official_format(tmp_path: Path, make_detections) -> None:
    path = tmp_path / "new" / "submission.json"
    write_submission(path, [("s2", make_detections([])), ("s1", make_detections(BOXES))], ["s1", "s2"], META)
    content = json.loads(path.read_text())
    assert list(content) == ["meta", "results"]
    assert content["meta"] == META_JSON
    assert list(content["results"]) == ["s2", "s1"]
    assert content["results"]["s2"] == []
    assert content["results"]["s1"][0] == BUS_JSON
    assert content["results"]["s1"][1]["attribute_name"] == ""
    assert content["results"]["s1"][1]["detection_name"] == "traffic_cone"
    assert [entry.name for entry in path.parent.iterdir()] == ["submission.json"]


def test_reads_what_was_written(tmp_path: Path, make_detections) -> None:
    path = tmp_path / "submission.json"
    written = make_detections(BOXES)
    write_submission(path, [("s1", written), ("s2", make_detections([]))], {"s1", "s2"}, META)
    submission = read_submission(path, {"s1", "s2"})
    assert submission.meta == META
    assert list(submission.predictions) == ["s1", "s2"]
    assert len(submission.predictions["s2"]) == 0
    read = submission.predictions["s1"]
    for name in ("labels", "velocity", "attributes", "scores"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    for name in ("translation", "length", "width", "height", "rotation"):
        np.testing.assert_array_equal(getattr(read.cuboids, name), getattr(written.cuboids, name))


def test_the_devkit_reads_it(tmp_path: Path, make_detections) -> None:
    loaders = pytest.importorskip("nuscenes.eval.common.loaders")
    from nuscenes.eval.detection.data_classes import DetectionBox

    path = tmp_path / "submission.json"
    write_submission(path, [("s1", make_detections(BOXES)), ("s2", make_detections([]))], ["s1", "s2"], META)
    boxes, meta = loaders.load_prediction(str(path), 500, DetectionBox)
    assert meta == META_JSON
    assert boxes.sample_tokens == ["s1", "s2"]
    assert boxes["s1"][0].size == (2.0, 4.5, 1.25)
    assert [box.detection_name for box in boxes["s1"]] == ["bus", "traffic_cone"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("s1", [])], "lacks 1 samples of the split, such as s2"),
        ([("s1", []), ("s2", []), ("s3", [])], "has 1 samples that are not in the split, such as s3"),
        ([("s1", []), ("s1", []), ("s2", [])], "sample s1 comes twice"),
        ([("s1", [{}] * 501), ("s2", [])], "sample s1 has 501 boxes, more than the 500 allowed"),
        ([("s1", [{"velocity": (np.nan, 0.0)}]), ("s2", [])], "sample s1: velocity must be a number"),
        ([("s1", [{"score": np.nan}]), ("s2", [])], "sample s1: detection_score of prediction 0"),
    ],
)
def test_a_bad_submission_is_not_written(tmp_path: Path, make_detections, samples, message) -> None:
    path = tmp_path / "submission.json"
    path.write_text("an older one")
    with pytest.raises(UserError, match=message):
        write_submission(path, [(token, make_detections(boxes)) for token, boxes in samples], ["s1", "s2"], META)
    assert path.read_text() == "an older one"
    assert len(list(tmp_path.iterdir())) == 1


def test_500_boxes_are_allowed(tmp_path: Path, make_detections) -> None:
    path = tmp_path / "submission.json"
    write_submission(path, [("s1", make_detections([{}] * 500))], ["s1"], META)
    assert len(read_submission(path, ["s1"]).predictions["s1"]) == 500


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("translation", [1, 2], "field 'translation' of box 1 must be a list of 3 numbers, not"),
        ("translation", None, "field 'translation' of box 1 must be a list of 3 numbers"),
        ("translation", ["1", "2", "3"], "field 'translation' of box 1 must be a list of 3 numbers"),
        ("translation", [1, 2, float("nan")], "translation of prediction 1 must be 3 finite numbers"),
        ("size", [1, 2, 0], "size of prediction 1 must be 3 numbers above 0"),
        ("size", 3, "field 'size' of box 1 must be a list of 3 numbers"),
        ("rotation", [1, 0, 0], "field 'rotation' of box 1 must be a list of 4 numbers"),
        ("rotation", [0, 0, 0, 0], "rotation of prediction 1 must be a quaternion"),
        ("velocity", [1, 2, 3], "field 'velocity' of box 1 must be a list of 2 numbers"),
        ("velocity", [1, float("inf")], "velocity of prediction 1"),
        ("detection_score", "0.5", "field 'detection_score' of box 1 must be a number, not"),
        ("detection_score", [0.5], "field 'detection_score' of box 1 must be a number, not"),
        ("detection_score", True, "field 'detection_score' of box 1 must be a number, not"),
        ("detection_score", 10**400, "field 'detection_score' of box 1 holds a number too large"),
        ("detection_score", -1, "detection_score of prediction 1"),
        ("detection_name", "tram", "field 'detection_name' of box 1 is 'tram', not one of 'car', 'truck'"),
        ("detection_name", 3, "field 'detection_name' of box 1 is 3"),
        ("detection_name", ["car"], "field 'detection_name' of box 1 is"),
        ("attribute_name", "vehicle.flying", "field 'attribute_name' of box 1 is 'vehicle.flying', not one of ''"),
        ("sample_token", "s2", "field 'sample_token' must repeat the token"),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_reading_names_file_sample_and_field(tmp_path: Path, field, value, message, missing) -> None:
    second = copy.deepcopy(BUS_JSON)
    if missing:
        del second[field]
        message = f"field '{field}'"
    else:
        second[field] = value
    path = _write(tmp_path / "theirs.json", {"meta": META_JSON, "results": {"s1": [BUS_JSON, second]}})
    with pytest.raises(UserError, match=message) as caught:
        read_submission(path, ["s1"])
    assert str(caught.value).startswith(f"{path}: sample s1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold one JSON object with the fields 'meta' and 'results'"),
        ({"results": {"s1": []}}, "fields 'meta' and 'results'"),
        ({"meta": META_JSON}, "fields 'meta' and 'results'"),
        ({"meta": [], "results": {"s1": []}}, "field 'meta' must set use_camera, use_external"),
        ({"meta": META_JSON | {"use_map": 1}, "results": {"s1": []}}, "field 'meta' must set"),
        ({"meta": {"use_map": True}, "results": {"s1": []}}, "field 'meta' must set"),
        ({"meta": META_JSON, "results": []}, "field 'results' must map"),
        ({"meta": META_JSON, "results": {}}, "lacks 1 samples of the split, such as s1"),
        (
            {"meta": META_JSON, "results": {"s1": [], "s0": []}},
            "has 1 samples that are not in the split, such as s0",
        ),
        ({"meta": META_JSON, "results": {"s1": {}}}, "sample s1 must hold a list of boxes"),
        ({"meta": META_JSON, "results": {"s1": [3]}}, "sample s1 must hold a list of boxes"),
        ({"meta": META_JSON, "results": {"s1": [BUS_JSON] * 501}}, "sample s1 has 501 boxes"),
    ],
)
def test_reading_names_what_is_wrong_with_the_whole(tmp_path: Path, content, message) -> None:
    path = _write(tmp_path / "theirs.json", content)
    with pytest.raises(UserError, match=message) as caught:
        read_submission(path, ["s1"])
    assert str(caught.value).startswith(str(path))


def test_more_flags_than_the_official_ones_are_fine(tmp_path: Path) -> None:
    content = {"meta": META_JSON | {"team": "us"}, "results": {"s1": []}}
    assert read_submission(_write(tmp_path / "theirs.json", content), ["s1"]).meta == META


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000])
def test_files_that_are_no_json_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "theirs.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"theirs\.json cannot be read as JSON"):
        read_submission(path, ["s1"])
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_submission(tmp_path / "absent.json", ["s1"])


MOVING_AND_STILL = {
    "car": ("vehicle.moving", "vehicle.parked"),
    "truck": ("vehicle.moving", "vehicle.parked"),
    "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "trailer": ("vehicle.moving", "vehicle.parked"),
    "barrier": ("", ""),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "traffic_cone": ("", ""),
}


@pytest.mark.parametrize("name", CLASSES)
def test_default_attributes(name: str) -> None:
    speeds = np.array([(0.21, 0.0), (0.15, 0.15), (0.2, 0.0), (0.0, -0.2), (0.0, 0.0), (np.nan, np.nan)])
    given = default_attributes(np.full(len(speeds), CLASSES.index(name)), speeds)
    names = ["" if index == NO_ATTRIBUTE else ATTRIBUTES[index] for index in given]
    moving, still = MOVING_AND_STILL[name]
    assert names == [moving] * 2 + [still] * 4
