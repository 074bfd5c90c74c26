import numpy as np
import pytest
from bevkd_common.data.array_file import ArrayFileError, map_arrays, write_arrays

ARRAYS = {
    "numbers": np.arange(12.0).reshape(3, 4),
    "integers": np.array([-1, 2**40]),
    "flags": np.array([True, False, True]),
    "names": np.array([b"a", b"scene-0001", b""]),
    "table of names": np.array([[b"x", b"yy"], [b"", b"zzz"]]),
    "none": np.zeros((0, 9)),
    "no names": np.array([], dtype="S1"),
}


def test_arrays_come_back(tmp_path):
    write_arrays(tmp_path / "file", {"a": [1, "b"]}, ARRAYS)
    file = map_arrays(tmp_path / "file")
    assert file.about == {"a": [1, "b"]}
    assert file.arrays.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        assert file.arrays[name].dtype == expected.dtype
        assert not file.arrays[name].flags.writeable
        np.testing.assert_array_equal(file.arrays[name], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in "ab":
        write_arrays(tmp_path / name, {"x": 1, "y": 2}, ARRAYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_array_that_is_cut_or_turned_is_written_as_it_is_seen(tmp_path):
    table = np.arange(12.0).reshape(3, 4)
    write_arrays(tmp_path / "file", {}, {"turned": table.T, "cut": table[:, 1:3]})
    arrays = map_arrays(tmp_path / "file").arrays
    np.testing.assert_array_equal(arrays["turned"], table.T)
    np.testing.assert_array_equal(arrays["cut"], table[:, 1:3])


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_what_is_no_such_file(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ArrayFileError):
        map_arrays(tmp_path / "file")


def test_a_file_that_is_cut_off_or_absent(tmp_path):
    write_arrays(tmp_path / "file", {}, ARRAYS)
    content = (tmp_path / "file").read_bytes()
    refused = 0
    for length in range(0, len(content), 7):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ArrayFileError):
            map_arrays(tmp_path / "cut")
        refused += 1
    assert refused > 50
    with pytest.raises(ArrayFileError):
        map_arrays(tmp_path / "absent")
    with pytest.raises(ArrayFileError):
        map_arrays(tmp_path)


def test_nothing_is_left_where_nothing_can_be_written(tmp_path):
    with pytest.raises(TypeError):
        write_arrays(tmp_path / "file", {"a": object()}, ARRAYS)
    assert not list(tmp_path.iterdir())


def test_what_is_verified_is_what_was_written(tmp_path):
    about = {"version": "v1.0", "format": 1}
    write_arrays(tmp_path / "file", about, ARRAYS)
    content = (tmp_path / "file").read_bytes()
    changes = [(place, content[place] ^ bit) for place in range(len(content)) for bit in (0x01, 0x80)]
    accepted = 0
    for place, changed in changes:
        (tmp_path / "changed").write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
        try:
            file = map_arrays(tmp_path / "changed", verify=True)
        except ArrayFileError:
            continue
        accepted += 1
        assert file.about == about
        for name, expected in ARRAYS.items():
            np.testing.assert_array_equal(file.arrays[name], expected, strict=True)
    # The places of arrays without content.
    assert accepted < 20
    assert len(changes) > 1500


@pytest.mark.parametrize("header", ["3", "null", '"a"', "[" * 2000, '{"__metadata__": 3}', '{"__metadata__": {}}'])
def test_a_header_of_another_kind(tmp_path, header):
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    with pytest.raises(ArrayFileError):
        map_arrays(tmp_path / "file")
