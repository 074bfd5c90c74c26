"""Files and folders that are whole or absent."""

import errno
import os
import pickle
import resource

import numpy as np
import pytest
from bevkd_common.errors import CannotWriteError, UserError
from bevkd_common.files import folder_when_complete, inside, replaced_when_complete
from safetensors.numpy import save_file


def test_a_file_stays_as_it_was_when_writing_fails(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(TypeError), replaced_when_complete(path) as partial, partial.open("w") as stream:
        stream.writelines(["ne", 2])
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_two_processes_that_write_the_same_file_do_not_meet(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    with replaced_when_complete(path) as slow:
        slow.write_text("slow")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with replaced_when_complete(path) as quick:
            quick.write_text("quick")
        assert path.read_text() == "quick"
    assert path.read_text() == "slow"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_stays_as_it_was_when_writing_fails(tmp_path):
    path = tmp_path / "a"
    with folder_when_complete(path) as partial:
        (partial / "old").touch()
    with pytest.raises(FileNotFoundError), folder_when_complete(path) as partial:
        (partial / "new" / "deeper").touch()
    assert sorted(str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*")) == ["a", "a/old"]


def test_a_folder_is_replaced_as_a_whole_and_leftovers_are_removed(tmp_path):
    path = tmp_path / "deep" / "a"
    for name in ("old", "new"):
        leftover = path.with_name(".a.partial")
        leftover.mkdir(parents=True)
        (leftover / "of a killed process").touch()
        with folder_when_complete(path) as partial:
            (partial / name).touch()
    assert sorted(str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*")) == [
        "deep",
        "deep/a",
        "deep/a/new",
    ]


@pytest.mark.parametrize("writer", [replaced_when_complete, folder_when_complete])
def test_a_path_that_cannot_be_written_is_the_users_error_and_names_it(tmp_path, writer):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "inside.json"
    with (
        pytest.raises(UserError, match=r"inside\.json cannot be written \((Not a directory|File exists)\)"),
        writer(path),
    ):
        pass


@pytest.mark.parametrize("writer", [replaced_when_complete, folder_when_complete])
def test_a_full_disk_names_the_file_and_another_error_passes(tmp_path, writer):
    path = tmp_path / "a.json"
    with pytest.raises(CannotWriteError, match=r"a\.json cannot be written \(No space"), writer(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError) as raised, writer(path):
        (tmp_path / "no such file").read_text()
    assert not isinstance(raised.value, UserError)
    assert list(tmp_path.iterdir()) == []


def test_the_error_travels_between_processes(tmp_path):
    error = CannotWriteError(tmp_path / "a", OSError(errno.EIO, "Input/output error"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.errno) == (str(error), errno.EIO)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "../a", "a/../../b", "a/..", "\\a", "..\\a", "a\\..\\b"])
def test_names_that_lead_out_of_a_folder(tmp_path, name):
    with pytest.raises(UserError, match="leads out of"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "samples/LIDAR_TOP/n015__2018+0800.pcd.bin", "a..b/c...d", "./a"])
def test_names_that_stay_in_a_folder(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_safetensors_files_have_the_permissions_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        for name in ("new", "old"):
            path = tmp_path / f"{name}.safetensors"
            if name == "old":
                path.touch(mode=0o600)
            with replaced_when_complete(path) as partial:
                save_file({"a": np.zeros(3)}, partial)
            assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


def test_a_full_disk_under_safetensors_names_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(CannotWriteError, match=r"a\.safetensors cannot be written \(File too large\)"),
            replaced_when_complete(path) as partial,
        ):
            save_file({"a": np.zeros(10_000)}, partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.safetensors"]
