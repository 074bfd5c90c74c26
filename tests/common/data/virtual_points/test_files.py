"""Making, keeping and repairing the files of virtual points."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, fields

import numpy as np
import pytest
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.virtual_points.files import (
    VirtualPointFolder,
    make_virtual_points,
    sweep_jobs,
    write_virtual_points,
)
from bevkd_common.data.virtual_points.instances import MaskFolder, named_rng
from bevkd_common.data.virtual_points.lifting import VirtualPoints
from bevkd_common.data.virtual_points.makers import OFFICIAL_CLASSES, FromMasks, FromOfficialFiles
from bevkd_common.data.virtual_points.numpy_pickle import read_numpy_dictionary
from bevkd_common.errors import UserError

SWEEP = "samples/LIDAR_TOP/scene-9001_0500.pcd.bin"


@dataclass
class Drawn:
    """Random points by the name of the sweep; fails at one, and has none for another."""

    seed: int = 0
    fails_at: int = 10_000
    absent: str = ""
    asked: list[str] = field(default_factory=list)
    sentence = "dice"

    @property
    def settings(self):
        return {"seed": self.seed}

    def make(self, job) -> VirtualPoints | None:
        if len(self.asked) == self.fails_at:
            raise UserError("the dice are gone")
        self.asked.append(job.sweep)
        if job.sweep == self.absent:
            return None
        rng = named_rng(job.sweep, str(self.seed))
        count = int(rng.integers(3))
        return VirtualPoints(
            rng.random((count, 3), np.float32),
            rng.integers(10, size=count, dtype=np.uint8),
            rng.random(count, np.float32),
            rng.random((4, 4), np.float32),
            rng.integers(10, size=4, dtype=np.uint8),
            rng.random(4, np.float32),
        )


@pytest.fixture
def index(small_world):
    return open_index(small_world.root, small_world.version)


@pytest.fixture
def folder(tmp_path):
    return VirtualPointFolder(tmp_path / "virtual")


def contents(folder):
    return {path.relative_to(folder.path): path.read_bytes() for path in sorted(folder.path.rglob("*.safetensors"))}


def test_what_is_written_is_read(folder, index):
    maker = Drawn()
    make_virtual_points(maker, index, folder, columns=1)
    assert len(maker.asked) == 8
    (job,) = (job for job in sweep_jobs(index, 1) if job.sweep == SWEEP)
    expected, found = maker.make(job), folder.read(SWEEP)
    for name in [part.name for part in fields(VirtualPoints)]:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert folder.manifest.sentence == "Virtual points from dice."
    content = json.loads((folder.path / "manifest.json").read_text())
    assert (content["sweeps"], content["absent"], content["settings"]["points"]) == (8, 0, 50)


def test_a_second_run_keeps_what_is_sound_and_repairs_what_is_not(folder, index):
    calls = []
    first = make_virtual_points(Drawn(), index, folder, columns=2, progress=lambda *call: calls.append(call))
    count = len(sweep_jobs(index, 2))
    assert first == Counter(made=count)
    assert calls == [(done, count) for done in range(1, count + 1)]
    before = contents(folder)
    assert len(before) == count
    missing, cut, flipped, foreign = sorted(before)[:4]
    (folder.path / missing).unlink()
    (folder.path / cut).write_bytes(before[cut][:-3])
    (folder.path / flipped).write_bytes(before[flipped][:-1] + bytes([before[flipped][-1] ^ 1]))
    (folder.path / foreign).write_bytes(b"something else")
    maker = Drawn()
    assert make_virtual_points(maker, index, folder, columns=2) == Counter(kept=count - 4, made=1, repaired=3)
    assert contents(folder) == before
    assert len(maker.asked) == 4


def test_other_settings_make_everything_anew(folder, index):
    make_virtual_points(Drawn(), index, folder, columns=1)
    before = contents(folder)
    assert make_virtual_points(Drawn(seed=1), index, folder, columns=1) == Counter(repaired=8)
    assert not set(before.values()) & set(contents(folder).values())


def test_an_interruption_loses_nothing_and_is_never_taken_for_complete(folder, index):
    make_virtual_points(Drawn(seed=1), index, folder, columns=1)
    with pytest.raises(UserError, match="the dice are gone"):
        make_virtual_points(Drawn(fails_at=5), index, folder, columns=1)
    with pytest.raises(UserError, match="holds none, or not all: make them with `bevkd data virtual-points`"):
        _ = VirtualPointFolder(folder.path).manifest
    maker = Drawn()
    assert make_virtual_points(maker, index, folder, columns=1) == Counter(kept=5, repaired=3)
    assert len(maker.asked) == 3


def test_the_files_do_not_depend_on_the_processes(folder, index, tmp_path):
    make_virtual_points(Drawn(), index, folder, columns=3)
    other = VirtualPointFolder(tmp_path / "other")
    make_virtual_points(Drawn(), index, other, columns=3, workers=2)
    assert contents(folder) == contents(other)
    assert len(contents(other)) == len(sweep_jobs(index, 3)) > 8


def test_what_cannot_be_had_is_counted_and_an_old_file_of_it_goes(folder, index):
    make_virtual_points(Drawn(seed=1), index, folder, columns=1)
    assert make_virtual_points(Drawn(absent=SWEEP), index, folder, columns=1) == Counter(repaired=7, absent=1)
    assert json.loads((folder.path / "manifest.json").read_text())["absent"] == 1
    assert not folder.file(SWEEP).exists()


def test_reading_says_what_is_wrong(folder, index):
    make_virtual_points(Drawn(), index, folder, columns=1)
    path = folder.file(SWEEP)
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(
        UserError, match=r"0500\.pcd\.bin\.safetensors is damaged; `bevkd data virtual-points` makes"
    ):
        folder.read(SWEEP)
    path.unlink()
    with pytest.raises(UserError, match="is missing; `bevkd data virtual-points`"):
        folder.read(SWEEP)
    write_virtual_points(path, Drawn().make(sweep_jobs(index, 1)[0]), "of something else")
    with pytest.raises(UserError, match="was made with other settings than its folder's manifest says"):
        folder.read(SWEEP)
    (folder.path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is no manifest of virtual points"):
        _ = VirtualPointFolder(folder.path).manifest


def test_a_folder_that_cannot_be_written_is_named(index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.* cannot be .*: choose another .*--out"):
        make_virtual_points(Drawn(), index, VirtualPointFolder(tmp_path / "file"), columns=1)


SIZE = (48, 128)


def write_masks(root, image, **changes):
    arrays = {
        "masks": np.ones((2, *SIZE), np.bool_),
        "classes": np.array(["car", "traffic_cone"]),
        "scores": np.array([0.5, 0.75], np.float32),
    }
    path = (root / image).with_suffix(".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **(arrays | changes))


def test_masks_are_taken_from_a_folder(tmp_path):
    write_masks(tmp_path, "samples/CAM_FRONT/a.jpg")
    found = MaskFolder(tmp_path).instances("samples/CAM_FRONT/a.jpg", "scene", SIZE)
    assert (found.labels.tolist(), found.scores.tolist(), found.size) == ([9, 0], [0.75, 0.5], SIZE)
    assert np.diff(found.offset).tolist() == [48 * 128] * 2
    none = {"masks": np.zeros((0, *SIZE), np.bool_), "classes": np.zeros(0, "U4"), "scores": np.zeros(0)}
    write_masks(tmp_path, "none.jpg", **none)
    assert len(MaskFolder(tmp_path).instances("none.jpg", "scene", SIZE)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": np.array(["car", "van"])}, "names the class 'van'; leave it out, the classes are car, truck"),
        ({"classes": np.array(["car", None], dtype=object)}, "must hold the arrays .*, and no pickles"),
        ({"classes": np.array([0, 1])}, r"`classes` int64 \(2,\).*text \[I\]"),
        ({"masks": np.ones((2, 128, 48), np.bool_)}, r"`masks` bool \(2, 128, 48\)"),
        ({"masks": np.ones((1, *SIZE), np.bool_)}, r"`masks` bool \(1, 48, 128\)"),
        ({"masks": np.ones((2, *SIZE), np.uint8)}, "`masks` uint8"),
        ({"scores": np.array([0.5, 1.5])}, r"score that is not in \(0, 1\]"),
        ({"scores": np.array([0.5, np.nan])}, r"score that is not in \(0, 1\]"),
    ],
)
def test_masks_that_cannot_be_used(tmp_path, changes, message):
    write_masks(tmp_path, "a.jpg", **changes)
    with pytest.raises(UserError, match=message):
        MaskFolder(tmp_path).instances("a.jpg", "scene", SIZE)


def test_a_missing_or_foreign_file_of_masks(index, folder, tmp_path):
    with pytest.raises(UserError, match=r"scene-9001_0\.npz is missing; predict the masks of every image"):
        make_virtual_points(FromMasks(index, MaskFolder(tmp_path)), index, folder, columns=1)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"a\.npz is not a file of masks"):
        MaskFolder(tmp_path).instances("a.jpg", "scene", SIZE)


def official(**changes):
    """Two virtual points, a traffic cone and a truck, and a painted trailer, as the released generator writes."""
    virtual, painted = np.zeros((2, 14)), np.zeros((1, 15))
    virtual[:, :3], virtual[:, 13] = [[1, 2, 3], [4, 5, 6]], [0.5, 0.25]
    virtual[0, 3 + 8] = virtual[1, 3 + 1] = 1
    painted[0, :4], painted[0, 4 + 2], painted[0, 14] = [7, 8, 9, 33], 1, 0.75
    arrays = {"virtual_points": virtual, "real_points": painted, "real_points_indice": np.array([5])}
    return arrays | changes


def save(root, sweep, content):
    path = root / sweep.replace("LIDAR_TOP", "LIDAR_TOP_VIRTUAL").replace(".bin", ".bin.pkl.npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content, allow_pickle=True)
    return path


def test_files_of_the_released_generator_are_taken_over(index, folder, tmp_path):
    save(tmp_path, SWEEP, official())
    outcomes = make_virtual_points(FromOfficialFiles(tmp_path), index, folder, columns=1)
    assert outcomes == Counter(made=1, absent=7)
    made = folder.read(SWEEP)
    np.testing.assert_array_equal(made.virtual, [[1, 2, 3], [4, 5, 6]])
    # Their order of classes is not ours: traffic_cone, truck, trailer.
    assert made.virtual_labels.tolist() == [9, 1]
    assert made.virtual_scores.tolist() == [0.5, 0.25]
    np.testing.assert_array_equal(made.painted, [[7, 8, 9, 33]])
    assert (made.painted_labels.tolist(), made.painted_scores.tolist()) == ([4], [0.75])
    assert len(set(OFFICIAL_CLASSES)) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"virtual_points": np.zeros((2, 13))},
            r"`virtual_points` float64 \(2, 13\), not finite .* \[N, 14\]",
        ),
        ({"virtual_points": np.full((2, 14), np.nan)}, "not finite numbers"),
        ({"real_points": np.zeros((3, 15))}, "`real_points` that are not of exactly one class"),
    ],
)
def test_files_of_another_generator_are_refused(tmp_path, changes, message, index):
    save(tmp_path, SWEEP, official(**changes))
    (job,) = (job for job in sweep_jobs(index, 1) if job.sweep == SWEEP)
    with pytest.raises(UserError, match=message):
        FromOfficialFiles(tmp_path).make(job)


class Dangerous:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_pickle_is_never_run(tmp_path):
    trace = tmp_path / "trace"
    path = save(tmp_path, SWEEP, {"virtual_points": Dangerous(trace)})
    with pytest.raises(UserError, match=r"names io\.open\); nothing in it was run"):
        read_numpy_dictionary(path)
    assert not trace.exists()
    np.load(path, allow_pickle=True)
    assert trace.exists()  # the same file does run where that is allowed


def test_only_a_dictionary_of_arrays_is_read(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, official(), allow_pickle=True)
    assert sorted(read_numpy_dictionary(path)) == ["real_points", "real_points_indice", "virtual_points"]
    for content, message in (
        (np.zeros(3), r"array of float64 \(3,\)"),
        (np.array([1, "a"], dtype=object), r"array of object \(2,\)"),
        ({"a": "text"}, "'a' is no array of numbers"),
        ({"a": np.array([{}], dtype=object)}, "'a' is no array of numbers"),
        ({1: np.zeros(2)}, "1 is no array of numbers"),
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(UserError, match=message):
            read_numpy_dictionary(path)
    for damaged in (b"", b"\x93NUMPY", b"\x80\x04K\x01.", path.read_bytes()[:-4]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is no dictionary of arrays"):
            read_numpy_dictionary(path)
    with pytest.raises(UserError, match="is missing"):
        read_numpy_dictionary(tmp_path / "none.npy")
