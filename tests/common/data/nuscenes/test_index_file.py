"""The index of a version on disk: built once, read again, built anew where it must be."""

from __future__ import annotations

import numpy as np
import pytest
from bevkd_common.data.nuscenes import index_build
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.nuscenes.index_build import build_index
from bevkd_common.data.nuscenes.index_file import PARTS, index_paths, open_index
from bevkd_common.errors import UserError


@pytest.fixture(scope="module")
def index(small_world) -> NuScenesIndex:
    return build_index(small_world.root, small_world.version)


def test_a_second_opening_reads_the_file(own_world, monkeypatch):
    steps = []
    first = open_index(own_world.root, own_world.version, lambda done, total: steps.append((done, total)))
    assert steps == [(step, 12) for step in range(1, 13)]
    assert index_paths(own_world.root, own_world.version)[0].is_file()
    monkeypatch.setattr("bevkd_common.data.nuscenes.index_file.build_index", _unexpected)
    second = open_index(own_world.root, own_world.version)
    compared = 0
    for part in PARTS:
        for name, value in vars(getattr(first, part)).items():
            np.testing.assert_array_equal(getattr(getattr(second, part), name), value)
            compared += 1
    assert compared == 33
    assert (second.root, second.version, second.tables_sha256) == (first.root, first.version, first.tables_sha256)


def _unexpected(*_):
    raise AssertionError("the index was built again")


def test_a_changed_table_is_read_again_and_this_is_said(own_world, caplog):
    before = open_index(own_world.root, own_world.version)
    own_world.tables["sample_annotation"][0]["num_lidar_pts"] = 1234
    own_world.write("sample_annotation")
    after = open_index(own_world.root, own_world.version)
    assert (before.annotations.lidar_points[0], after.annotations.lidar_points[0]) == (9, 1234)
    assert before.tables_sha256 != after.tables_sha256
    assert "have changed since" in caplog.text


def test_a_damaged_index_file_is_made_again_and_this_is_said(own_world, caplog):
    path = index_paths(own_world.root, own_world.version)[0]
    open_index(own_world.root, own_world.version)
    whole = path.read_bytes()
    places = np.linspace(9, len(whole) - 1, 40).astype(int)
    changed = [whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :] for place in places]
    for content in (b"", b"no index", whole[:-1], whole[: len(whole) // 2], b"\xff" * 8 + whole[8:], *changed):
        path.write_bytes(content)
        caplog.clear()
        assert len(open_index(own_world.root, own_world.version).key_frames.token) == 8
        assert f"{path} is damaged and is rebuilt" in caplog.text
        assert path.read_bytes() == whole


def test_an_index_of_another_format_is_made_again_and_this_is_said(own_world, monkeypatch, caplog):
    monkeypatch.setattr("bevkd_common.data.nuscenes.index_file.FORMAT", 0)
    open_index(own_world.root, own_world.version)
    monkeypatch.undo()
    path = index_paths(own_world.root, own_world.version)[0]
    stamp = path.stat().st_mtime_ns
    assert len(open_index(own_world.root, own_world.version).key_frames.token) == 8
    assert path.stat().st_mtime_ns != stamp
    assert "was built by another version of bevkd" in caplog.text


def test_a_current_index_is_made_again_where_that_is_asked_for(own_world):
    open_index(own_world.root, own_world.version)
    path = index_paths(own_world.root, own_world.version)[0]
    stamp = path.stat().st_mtime_ns
    open_index(own_world.root, own_world.version, rebuild=True)
    assert path.stat().st_mtime_ns != stamp


def test_an_interrupted_building_goes_on_where_it_was(own_world, monkeypatch):
    read = []
    original = index_build.read_table

    def watched(root, version, name):
        read.append(name)
        if name == "sample_annotation" and len(read) <= 10:
            raise KeyboardInterrupt
        return original(root, version, name)

    monkeypatch.setattr(index_build, "read_table", watched)
    with pytest.raises(KeyboardInterrupt):
        open_index(own_world.root, own_world.version)
    assert len(read) == 10
    own_world.write("ego_pose")  # the same content at another time: it may have changed
    index = open_index(own_world.root, own_world.version)
    assert read[10:] == ["ego_pose", "sample_annotation"]
    fresh = build_index(own_world.root, own_world.version)
    np.testing.assert_array_equal(index.annotations.boxes, fresh.annotations.boxes)
    np.testing.assert_array_equal(index.sweeps.lidar_T_sweep, fresh.sweeps.lidar_T_sweep)
    assert index.tables_sha256 == fresh.tables_sha256
    assert not list(own_world.root.rglob("*.partial"))


def test_files_are_looked_for_before_the_large_tables_are_read(own_world):
    (own_world.root / own_world.version / "ego_pose.json").write_text("cut off")
    gone = own_world.root / own_world.tables["sample_data"][0]["filename"]
    gone.unlink()
    with pytest.raises(UserError, match=r"1 files that the tables name are missing under .*, such as "):
        open_index(own_world.root, own_world.version)
    own_world.write("ego_pose")
    assert len(open_index(own_world.root, own_world.version, allow_missing=True).key_frames.token) == 8


def test_an_index_is_mapped_and_not_read(own_world):
    open_index(own_world.root, own_world.version)
    index = open_index(own_world.root, own_world.version)
    boxes = index.annotations.boxes
    assert not boxes.flags.owndata
    assert not boxes.flags.writeable
    assert isinstance(boxes.base.base if not isinstance(boxes.base, np.memmap) else boxes.base, np.memmap)


def test_read_only_data_is_indexed_in_the_users_cache(own_world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside, cached = index_paths(own_world.root, own_world.version)
    beside.mkdir()  # nothing can be written there, whoever runs the test
    open_index(own_world.root, own_world.version)
    assert cached.is_file()
    assert cached.is_relative_to(tmp_path / "cache")
    monkeypatch.setattr("bevkd_common.data.nuscenes.index_file.build_index", _unexpected)
    assert len(open_index(own_world.root, own_world.version).key_frames.token) == 8


def test_an_index_that_cannot_be_kept_is_said(own_world, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    index_paths(own_world.root, own_world.version)[0].mkdir()
    assert len(open_index(own_world.root, own_world.version).key_frames.token) == 8
    assert "the tables will be read each time" in caplog.text
