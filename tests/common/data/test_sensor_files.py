"""Sensor files of something else are named as what they are."""

import numpy as np
import pytest
from bevkd_common.data.sensor_files import SensorFiles
from bevkd_common.errors import UserError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 12345\n"
PAGE = b"<html><body>Sign in</body></html>"
PCD = b"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z intensity\n"


def refusal(read, name):
    with pytest.raises(UserError) as refused:
        read(name)
    return str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, "is a Git-LFS pointer"),
        (PAGE, "is an HTML page"),
        (PCD, "is a point cloud in the format of PCL (.pcd)"),
    ],
)
@pytest.mark.parametrize("padding", [0, 20])
def test_a_sweep_of_something_else_is_named(tmp_path, content, said, padding):
    """Whether or not its length is one of points."""
    padded = content + b" " * (padding and padding - len(content) % padding)
    (tmp_path / "sweep.bin").write_bytes(padded)
    message = refusal(SensorFiles(tmp_path, cache=False).sweep, "sweep.bin")
    assert f"sweep.bin {said}" in message
    assert "unpack" not in message


@pytest.mark.parametrize(("content", "said"), [(LFS, "is a Git-LFS pointer"), (PAGE, "is an HTML page")])
def test_an_image_of_something_else_is_named(tmp_path, content, said):
    (tmp_path / "image.jpg").write_bytes(content)
    message = refusal(SensorFiles(tmp_path, cache=False).image, "image.jpg")
    assert f"image.jpg {said}" in message
    assert "unpack" not in message


def test_damaged_files_are_called_damaged(tmp_path):
    files = SensorFiles(tmp_path, cache=False)
    (tmp_path / "sweep.bin").write_bytes(b"x" * 21)
    (tmp_path / "image.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    assert "not a whole number of points" in refusal(files.sweep, "sweep.bin")
    assert "is not a complete image" in refusal(files.image, "image.jpg")
    np.arange(10, dtype=np.float32).tofile(tmp_path / "sweep.bin")
    assert files.sweep("sweep.bin").shape == (2, 5)
