"""Folders and files of something else are named as what they are, before anything is trained or fetched."""

import json

import pytest
from bevkd.app import main
from bevkd_common.data.nuscenes.folder import diagnose, foreign

TABLES = ("sample", "scene", "sensor")


@pytest.fixture
def bevkd(capsys):
    """Runs the command: exit code, and what it printed."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        return ended.value.code, "".join(capsys.readouterr())

    return call


def tables(folder, channels, names=TABLES):
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.json").write_text("[]")
    records = [{"token": str(place), "channel": channel} for place, channel in enumerate(channels)]
    (folder / "sensor.json").write_text(json.dumps(records))


def kitti(root):
    (root / "training" / "velodyne").mkdir(parents=True)


def waymo(root):
    root.mkdir()
    (root / "segment-1.tfrecord").write_bytes(b"x")


def argoverse(root):
    (root / "val" / "log").mkdir(parents=True)
    (root / "val" / "log" / "city_SE3_egovehicle.feather").write_bytes(b"x")


def lyft(root):
    tables(root / "train_data", ["CAM_FRONT", "CAM_FRONT_ZOOMED", "LIDAR_TOP", "LIDAR_FRONT_LEFT"])


def truckscenes(root):
    tables(root / "v1.0-mini", ["CAMERA_LEFT_FRONT", "LIDAR_LEFT", "LIDAR_TOP_FRONT", "RADAR_LEFT_FRONT"])


def t4(root):
    tables(root / "annotation", ["CAM_FRONT", "LIDAR_CONCAT"])
    (root / "data" / "LIDAR_CONCAT").mkdir(parents=True)


def t4_renamed(root):
    tables(root / "v1.0-trainval", ["CAM_FRONT", "LIDAR_CONCAT"])


def infos(root):
    root.mkdir()
    (root / "nuscenes_infos_train.pkl").write_bytes(b"x")


FOREIGN = {
    kitti: "is KITTI, not nuScenes",
    waymo: "is the Waymo Open Dataset, not nuScenes",
    argoverse: "is Argoverse 2, not nuScenes",
    lyft: "is Lyft Level 5, not nuScenes",
    truckscenes: "is MAN TruckScenes (2 LiDARs), not nuScenes",
    t4: "is a T4 data set (annotation/ and data/), not nuScenes",
    t4_renamed: "is a T4 data set (LIDAR_CONCAT), not nuScenes",
    infos: "holds info files of mmdetection3d, which are not read",
}


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_a_folder_of_another_data_set_is_named(bevkd, tmp_path, make):
    root = tmp_path / "data"
    make(root)
    for command in (("data", "check", root), ("data", "index", root)):
        code, err = bevkd(*command)
        assert (code, f"{root} {FOREIGN[make]}" in err) == (2, True)
        assert "again" not in err


@pytest.mark.parametrize("make", [kitti, lyft, t4], ids=lambda make: make.__name__)
def test_a_run_on_another_data_set_ends_before_its_models_are_built(bevkd, tmp_path, make, monkeypatch):
    monkeypatch.setattr("bevkd_common.experiment.plan.shape_of", lambda *_: pytest.fail("a model was built"))
    root = tmp_path / "data"
    make(root)
    code, err = bevkd(*RUN, "--data-root", root, "--out", tmp_path / "run")
    assert (code, f"{root} {FOREIGN[make]}" in err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_the_doctor_names_it_too(tmp_path):
    root = tmp_path / "data"
    t4(root)
    (found,) = diagnose(root)
    assert (found.state, found.what) == ("red", str(root))
    assert FOREIGN[t4] in found.found


def test_nuscenes_is_not_accused(tmp_path):
    channels = ["CAM_FRONT", "CAM_BACK", "LIDAR_TOP", "RADAR_FRONT"]
    for version in ("v1.0-mini", "v1.0-trainval", "v1.0-custom"):
        tables(tmp_path / version, channels)
    (tmp_path / "nuscenes_infos_train.pkl").write_bytes(b"x")
    (tmp_path / "annotation").mkdir()
    assert foreign(tmp_path) is None
    assert foreign(tmp_path / "nowhere") is None
    for content in ("", "{", "[1]", '[{"token": "a"}]', "[" * 100_000):
        (tmp_path / "v1.0-mini" / "sensor.json").write_text(content)
        assert foreign(tmp_path) is None


RUN = (
    "run",
    "distillbev",
    "--teacher",
    "centerpoint",
    "--student",
    "bevdet",
    "--dataset",
    "nuscenes",
    "--jobs",
    "1",
)


def test_damaged_data_are_refused_before_the_hub_is_asked_for_weights(bevkd, tmp_path, monkeypatch):
    asked = []

    def hub(name):
        asked.append(name)
        raise AssertionError(name)

    monkeypatch.setattr("bevkd_common.models.image_backbones._hub_weights", hub)
    root = tmp_path / "data"
    tables(root / "v1.0-trainval", ["CAM_FRONT", "LIDAR_TOP"])
    code, err = bevkd(*RUN, "--data-root", root, "--out", tmp_path / "run")
    assert (code, "v1.0-trainval lacks calibrated_sensor.json" in err) == (2, True)
    assert "from weights of the hub" in err  # this recipe would ask
    assert asked == []
