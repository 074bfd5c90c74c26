"""Files of results that are no detection submission are named as what they are."""

import json
import pickle

import pytest
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.submission import read_submission

FLAGS = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
TRACKED = {"sample_token": "a", "tracking_id": "1", "tracking_name": "car", "tracking_score": 0.5}
OTHER = {
    "tracking": ({"meta": FLAGS, "results": {"a": [], "b": [TRACKED]}}, "holds results of tracking"),
    "map": (
        {"meta": FLAGS, "results": {"a": {"vectors": [], "scores": []}}},
        "holds results of map construction (vectors)",
    ),
    "coco": ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], "holds boxes in images, in the format of COCO"),
    "prediction": ([{"instance": "a", "sample": "b", "prediction": []}], "holds predicted trajectories"),
    "annotations": (
        [{"token": "a", "sample_token": "b", "instance_token": "c"}],
        "holds a table of annotations, sample_annotation.json",
    ),
}
FILES = {
    "pickle": (
        pickle.dumps([{"pts_bbox": 1}]),
        "is a pickle, such as the results or the info file of mmdetection3d",
    ),
    "zip": (b"PK\x03\x04" + bytes(range(128, 200)), "is an archive: unpack it"),
    "page": (b"<!doctype html><p>Sign in", "is an HTML page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git-LFS pointer"),
}


def refusal(path):
    with pytest.raises(UserError) as refused:
        read_submission(path, ["a", "b"])
    return str(refused.value)


@pytest.mark.parametrize("name", OTHER)
def test_results_of_another_task_are_named(tmp_path, name):
    content, said = OTHER[name]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    assert refusal(path) == f"{path} {said}" + refusal(path).partition(said)[2]
    assert "the detection metric scores results of 3D detection" in refusal(path)


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_json_are_named(tmp_path, name):
    content, said = FILES[name]
    path = tmp_path / "results.json"
    path.write_bytes(content)
    assert f"{path} {said}" in refusal(path)


def test_a_submission_is_read_and_a_damaged_one_is_called_damaged(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": FLAGS, "results": {"a": [], "b": []}}))
    assert read_submission(path, ["a", "b"]).predictions.keys() == {"a", "b"}
    path.write_text('{"meta": ')
    assert "cannot be read as JSON" in refusal(path)
    path.write_text(json.dumps({"meta": FLAGS, "results": {"a": [], "b": [{"sample_token": "b"}]}}))
    assert "sample b" in refusal(path)
