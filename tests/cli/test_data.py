"""`bevkd data` on a small synthetic world, and on worlds that somebody wrote wrongly."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bevkd.app import main
from bevkd_common.data.nuscenes.index_file import index_paths
from PIL import Image


@pytest.fixture
def bevkd(capsys):
    """Runs the command: exit code, standard output, standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world that the command has made."""
    out = tmp_path_factory.mktemp("made")
    with pytest.raises(SystemExit) as ended:
        main(["data", "synth", str(out), "--seed", "4", "--train-scenes", "4", "--val-scenes", "1"])
    assert ended.value.code == 0
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


@pytest.fixture
def world(made, tmp_path):
    """A copy whose tables can be changed; the sensor files are shared."""
    root = tmp_path / "world"
    root.mkdir()
    for entry in made.iterdir():
        if entry.name == "v1.0-synthetic":
            shutil.copytree(entry, root / entry.name, ignore=shutil.ignore_patterns("bevkd-index*"))
        else:
            (root / entry.name).symlink_to(entry)
    return root


def rewrite(world, table, change):
    path = world / "v1.0-synthetic" / f"{table}.json"
    records = json.loads(path.read_text())
    for record in records:
        change(record)
    path.write_text(json.dumps(records))


def test_a_made_world_is_sound(bevkd, made, tmp_path):
    code, out, err = bevkd("data", "check", made, "--samples", "10", "--draw", tmp_path / "pictures")
    assert (code, "Traceback" in err) == (0, False)
    assert "scenes        5 with 25 key frames" in out
    assert "images of 176 x 64" in out
    assert out.count("LiDAR points\n") == 10
    assert out.endswith("no problems found\n")
    pictures = [Path(line.split()[1]) for line in out.splitlines() if line.startswith("picture")]
    assert len(pictures) == len(list((tmp_path / "pictures").iterdir())) == 3 * 2 * 2
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 300


def test_an_index_is_made_once(bevkd, world):
    path = index_paths(world, "v1.0-synthetic")[0]
    code, out, err = bevkd("data", "index", world)
    assert code == 0
    assert "v1.0-synthetic: 25 key frames, " in out + err
    stamp = path.stat().st_mtime_ns
    assert bevkd("data", "index", world)[0] == 0
    assert path.stat().st_mtime_ns == stamp
    assert bevkd("data", "index", world, "--rebuild")[0] == 0
    assert path.stat().st_mtime_ns != stamp


def clockwise(record):
    w, x, y, z = record["rotation"]
    record["rotation"] = [w, -x, -y, -z]


def swapped(record):
    width, length, height = record["size"]
    record["size"] = [length, width, height]


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("sample_annotation", clockwise, "the yaw of the boxes runs clockwise instead of counter-clockwise"),
        ("sample_annotation", swapped, "are wider than long"),
    ],
)
def test_what_is_wrong_is_named(bevkd, world, table, change, message):
    rewrite(world, table, change)
    code, _, err = bevkd("data", "check", world, "--samples", "25")
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_sweeps_without_ego_motion_are_named(bevkd, world):
    folder = world / "v1.0-synthetic"
    frames = json.loads((folder / "sample_data.json").read_text())
    poses = {record["token"]: record for record in json.loads((folder / "ego_pose.json").read_text())}
    lidar = [frame for frame in frames if "LIDAR_TOP" in frame["filename"]]
    key_pose = {frame["sample_token"]: poses[frame["ego_pose_token"]] for frame in lidar if frame["is_key_frame"]}
    still = {frame["ego_pose_token"]: key_pose[frame["sample_token"]] for frame in lidar}

    def stop(record):
        pose = still.get(record["token"], record)
        record.update(translation=pose["translation"], rotation=pose["rotation"])

    rewrite(world, "ego_pose", stop)
    code, _, err = bevkd("data", "check", world, "--samples", "25")
    assert code == 2
    assert "the ego-motion between sweeps is wrong" in err


def test_points_of_another_type_are_named(bevkd, world):
    """Files of float64: twice as many bytes, and no whole number of rows in some."""
    original = (world / "samples").resolve()
    (world / "samples").unlink()
    shutil.copytree(original, world / "samples")
    files = list((world / "samples" / "LIDAR_TOP").iterdir())
    assert len(files) == 25
    for path in files:
        path.write_bytes(np.fromfile(path, dtype=np.float32).astype(np.float64).tobytes())
    code, _, err = bevkd("data", "check", world, "--samples", "25")
    assert code == 2
    assert "the files of LiDAR points are float64 instead of float32 with five columns: read so, " in err
    assert "unpack" not in err


@pytest.mark.parametrize("samples", [1, 3, 5, 8])
def test_few_samples_of_sound_data_accuse_nothing(bevkd, made, samples):
    code, out, err = bevkd("data", "check", made, "--samples", samples)
    assert (code, err.count("Traceback")) == (0, 0)
    assert out.endswith("no problems found\n")


def test_missing_files_are_one_message_and_may_be_allowed(bevkd, world):
    rewrite(
        world, "sample_data", lambda record: record.update(filename=record["filename"].replace("CAM_BACK/", "X/"))
    )
    code, _, err = bevkd("data", "index", world)
    assert code == 2
    assert "files that the tables name are missing" in err
    assert "--allow-missing" in err
    code, _, _ = bevkd("data", "index", world, "--allow-missing")
    assert code == 0


def test_of_a_set_that_is_downloaded_in_part_the_rest_is_counted_and_not_read(bevkd, world):
    """The images of the first scene are there, of the others one camera lacks its images."""
    scenes = sorted({path.name.partition("__")[0] for path in (world / "samples" / "CAM_BACK").iterdir()})
    original = (world / "samples").resolve()
    (world / "samples").unlink()
    shutil.copytree(original, world / "samples")
    gone = [path for path in (world / "samples" / "CAM_BACK").iterdir() if not path.name.startswith(scenes[0])]
    assert len(gone) == 20
    for path in gone:
        path.unlink()
    code, out, _ = bevkd("data", "check", world, "--samples", "25")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("missing")]
    assert line.startswith("missing       20 of ")
    assert "such as samples/CAM_BACK/" in line
    assert line.endswith("5 of 25 key frames are complete, and only these were checked")
    assert "read          5 key frames" in out
    for path in (world / "samples" / "LIDAR_TOP").iterdir():
        path.unlink()
    code, _, err = bevkd("data", "check", world)
    assert code == 2
    assert "no key frame of" in err
    assert "unpack more archives" in err


def test_folders_that_are_none(bevkd, tmp_path):
    code, _, err = bevkd("data", "check", tmp_path / "absent")
    assert (code, "no data set at" in err) == (2, True)
    code, _, err = bevkd("data", "index", tmp_path)
    assert (code, "it holds no data of `nuscenes`" in err) == (2, True)
    for version in ("v1.0-mini", "v1.0-trainval"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "sample.json").write_text("[]")
    code, _, err = bevkd("data", "index", tmp_path)
    assert (code, "v1.0-mini, v1.0-trainval: choose one with --version" in err) == (2, True)


def test_a_submission_is_scored_and_its_scores_are_kept(bevkd, made, tmp_path):
    """The cars as they are annotated; then with width and length exchanged."""
    tables = {
        name: json.loads((made / "v1.0-synthetic" / f"{name}.json").read_text())
        for name in ("sample", "scene", "sample_annotation", "instance", "category", "splits")
    }
    scene = next(s["token"] for s in tables["scene"] if s["name"] in tables["splits"]["synthetic_val"])
    results = {s["token"]: [] for s in tables["sample"] if s["scene_token"] == scene}
    category = {c["token"]: c["name"] for c in tables["category"]}
    cars = {i["token"] for i in tables["instance"] if category[i["category_token"]] == "vehicle.car"}
    for record in tables["sample_annotation"]:
        if record["sample_token"] in results and record["instance_token"] in cars:
            results[record["sample_token"]].append(
                {key: record[key] for key in ("sample_token", "translation", "size", "rotation")}
                | {"velocity": [0.0, 0.0], "detection_name": "car", "detection_score": 0.5, "attribute_name": ""}
            )
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    path = tmp_path / "submission.json"
    path.write_text(json.dumps({"meta": meta, "results": results}))
    flags = (path, "--data-root", made, "--split", "synthetic_val")
    code, out, err = bevkd("eval", *flags, "--results", tmp_path / "results.json")
    headline = json.loads((tmp_path / "results.json").read_text())["headline"]
    assert (code, "Traceback" in err) == (0, False)
    assert f"mAP {headline['mAP']['value']:.4f}" in out
    assert headline["mAP"]["value"] > 0.05
    _, theirs, _ = bevkd("eval", *flags, "--engine", "devkit")
    assert theirs.splitlines()[-1] == next(line for line in out.splitlines() if line.startswith("mAP"))
    for boxes in results.values():
        for box in boxes:
            width, length, height = box["size"]
            box["size"] = [length, width, height]
    path.write_text(json.dumps({"meta": meta, "results": results}))
    code, _, err = bevkd("eval", *flags)
    assert code == 2
    assert "width and length of the boxes are swapped" in err


def test_a_submission_needs_to_know_its_data(bevkd, made, tmp_path):
    path = tmp_path / "submission.json"
    path.write_text("{")
    assert "name the folder of its data set with --data-root" in bevkd("eval", path)[2]
    assert "choose ours or devkit" in bevkd("eval", path, "--data-root", made, "--engine", "theirs")[2]
    code, _, err = bevkd("eval", path, "--data-root", made, "--split", "synthetic_val")
    assert (code, "cannot be read as JSON" in err) == (2, True)


def test_flags_that_would_be_ignored_are_refused(bevkd, tmp_path):
    path = tmp_path / "submission.json"
    path.write_text("{")
    code, _, err = bevkd("eval", path, "--gpus", "1", "--submission", tmp_path)
    assert (code, "is a file: leave out --gpus, --submission" in err) == (2, True)
    for flags, message in (
        (["--engine", "devkit", "--results", "x", "--split", "val"], "is a run: leave out --engine, --results"),
        (["--split", "val", "--version", "x"], "without --submission: leave out --version, --split"),
        (["--submission", "x", "--version", "x"], "without --split: leave out --version"),
    ):
        code, _, err = bevkd("eval", tmp_path, *flags)
        assert (code, message in err) == (2, True), err


def test_virtual_points_are_made_checked_and_repaired(bevkd, made, tmp_path):
    out = tmp_path / "virtual"
    call = ("data", "virtual-points", made, "--out", out, "--sweeps", "1", "--set", "miss=0.5")
    code, stdout, err = bevkd(*call)
    assert (code, "Traceback" in err) == (0, False)
    assert "virtual points: 25/25" in stdout
    assert "25 sweeps made" in stdout
    assert "Virtual points from masks of the synthetic world, 50% missed" in stdout
    files = sorted(out.rglob("*.safetensors"))
    assert len(files) == 25
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    assert "23 sweeps kept, 1 sweeps made, 1 sweeps repaired" in bevkd(*call)[1]
    assert "25 sweeps repaired" in bevkd(*call[:-2])[1]
    assert json.loads((out / "manifest.json").read_text())["settings"]["errors"]["miss"] == 0.14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "mis=0.5"), "the error rates are miss, min_pixels, mislabel"),
        (("--set", "miss=2"), "--set miss: "),
        (("--set", "miss"), "must read `dotted.key=value`"),
        (("--masks", "{}/absent"), "absent does not exist; check the path"),
        (("--masks", "{}", "--official", "{}"), "--masks and --official exclude each other"),
        (("--masks", "{}", "--set", "miss=0"), "--masks and --set exclude each other"),
        (("--masks", "{}"), ".npz is missing; predict the masks of every image"),
        (("--weights", "{}", "--workers", "2"), "leave out --workers"),
        (("--weights", "{}"), "there is no checkpoint"),
    ],
)
def test_virtual_points_from_what_cannot_be_used(bevkd, made, tmp_path, arguments, message):
    arguments = [part.format(tmp_path) for part in arguments]
    code, _, err = bevkd("data", "virtual-points", made, "--out", tmp_path / "out", *arguments)
    assert (code, "Traceback" in err) == (2, False)
    assert message in err


def test_data_without_masks_asks_for_some(bevkd, world, tmp_path):
    (world / "world.json").unlink()
    code, _, err = bevkd("data", "virtual-points", world)
    assert code == 2
    assert "has no instance masks of its own: name predictions with --masks" in err
