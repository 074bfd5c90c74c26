import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bevkd_common.data import contents
from bevkd_common.data.contents import Contents, file_contents
from bevkd_common.errors import UserError

LATER = 1_700_000_000

Look = Callable[..., Contents]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folders of 40 files of 100 bytes."""
    made = tmp_path / "root"
    for folder in ("samples/CAM_FRONT", "samples/LIDAR_TOP"):
        (made / folder).mkdir(parents=True)
        for number in range(40):
            (made / folder / f"{number:03}.bin").write_bytes(bytes([number]) * 100)
    return made


@pytest.fixture
def names(root: Path) -> list[str]:
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*.bin"))
    assert len(found) == 80
    return found


@pytest.fixture
def look(tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> Look:
    """Fingerprints the files with four samples of each folder: 0, 13, 26 and 39."""
    monkeypatch.setattr(contents, "SAMPLES", 4)

    def call(root: Path, **options: object) -> Contents:
        return file_contents(root, names, [tmp_path / "record.safetensors"], **options)  # type: ignore[arg-type]

    return call


def change(path: Path, content: bytes, *, seconds: int | None = LATER) -> None:
    """Write other content; None keeps the time of modification."""
    modified = path.stat().st_mtime_ns if seconds is None else seconds * 10**9
    path.write_bytes(content)
    os.utime(path, ns=(modified, modified))


def test_nothing_changed_reads_nothing_and_gives_the_same_fingerprint(
    root: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(root)
    monkeypatch.setattr(
        contents, "_read", lambda root, states, rows, progress: pytest.fail(f"reads {rows}") if len(rows) else None
    )
    assert look(root) == first == Contents(first.fingerprint, 80, ())


def test_a_copy_under_another_root_with_other_times_has_the_same_fingerprint(
    root: Path, look: Look, tmp_path: Path, names: list[str]
) -> None:
    first = look(root)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    assert file_contents(copy, names, [tmp_path / "other.safetensors"]).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "name", ["samples/CAM_FRONT/013.bin", "samples/LIDAR_TOP/007.bin"], ids=["sampled", "not sampled"]
)
def test_a_changed_file_of_the_same_size_changes_the_fingerprint_for_good(
    root: Path, look: Look, name: str
) -> None:
    first = look(root)
    change(root / name, b"x" * 100)
    second = look(root)
    assert second.fingerprint != first.fingerprint
    assert look(root).fingerprint == second.fingerprint
    assert second.changed == ((name,) if "013" in name else ())


def test_a_change_of_all_files_is_found_by_the_sample(
    root: Path, look: Look, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "FEW", 10)
    first = look(root)
    for name in names:
        change(root / name, (root / name).read_bytes()[::-1][:99] + b"!")
    second = look(root)
    assert second.fingerprint != first.fingerprint
    assert len(second.changed) == 8


def test_new_times_of_all_files_leave_the_fingerprint(
    root: Path, look: Look, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "FEW", 10)
    first = look(root)
    for name in names:
        os.utime(root / name, (LATER, LATER))
    assert look(root) == first


@pytest.mark.parametrize("content", [b"x" * 99, None], ids=["shorter", "missing"])
def test_another_size_and_a_missing_file_change_the_fingerprint(
    root: Path, look: Look, content: bytes | None
) -> None:
    first = look(root)
    path = root / "samples/LIDAR_TOP/007.bin"
    if content is None:
        path.unlink()
    else:
        change(path, content)
    second = look(root)
    assert second.fingerprint != first.fingerprint
    assert second.changed == ("samples/LIDAR_TOP/007.bin",)


def test_a_file_that_returns_to_its_first_size_with_other_content_does_not_return_to_the_first_fingerprint(
    root: Path, look: Look
) -> None:
    path = root / "samples/LIDAR_TOP/007.bin"
    first = look(root)
    change(path, b"x" * 50, seconds=LATER)
    look(root)
    change(path, b"x" * 100, seconds=LATER + 1)
    assert look(root).fingerprint != first.fingerprint


def test_reading_everything_leaves_the_fingerprint_and_finds_later_changes_that_keep_size_and_time(
    root: Path, look: Look
) -> None:
    path = root / "samples/LIDAR_TOP/007.bin"
    first = look(root)
    counted: list[tuple[int, int]] = []
    assert look(root, whole=True, progress=lambda done, total: counted.append((done, total))) == first
    assert counted == [(number, 80) for number in range(1, 81)]
    change(path, b"x" * 100, seconds=None)
    assert look(root) == first
    found = look(root, whole=True)
    assert found.changed == ("samples/LIDAR_TOP/007.bin",)
    assert found.fingerprint != first.fingerprint
    assert look(root).fingerprint == found.fingerprint


def test_other_files_keep_their_record(root: Path, look: Look, names: list[str], tmp_path: Path) -> None:
    place = tmp_path / "record.safetensors"
    cameras, clouds = names[:40], names[40:]
    first = file_contents(root, cameras, [place])
    file_contents(root, clouds, [place])
    change(root / cameras[7], b"x" * 100)
    second = file_contents(root, cameras, [place])
    assert second.fingerprint != first.fingerprint
    both = file_contents(root, names, [place])
    assert both.changed == ()
    assert both.files == 80


def test_the_sample_is_spread_over_each_folder() -> None:
    names = np.array(sorted(f"{folder}/{number:04}".encode() for folder in "ab" for number in range(1000)))
    flags = contents._spread(names)
    assert flags.sum() == 2 * contents.SAMPLES
    gaps = np.diff(np.flatnonzero(flags[:1000]))
    assert set(gaps.tolist()) == {7, 8}
    assert flags[[0, 999, 1000, 1999]].all()


def test_a_damaged_record_is_made_again_with_a_warning(
    root: Path, look: Look, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = look(root)
    record = tmp_path / "record.safetensors"
    damaged = bytearray(record.read_bytes())
    damaged[-5] ^= 255
    record.write_bytes(damaged)
    assert look(root) == first
    assert "is damaged and is made again" in caplog.text


def test_a_file_that_cannot_be_read_is_named(root: Path, look: Look) -> None:
    path = root / "samples/LIDAR_TOP/013.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"013\.bin cannot be read \(Is a directory\)"):
        look(root)


def test_without_a_place_for_the_record_the_sample_still_counts(root: Path, names: list[str]) -> None:
    nowhere = [Path("/proc/bevkd/record.safetensors")]
    first = file_contents(root, names, nowhere)
    change(root / names[0], b"x" * 100)
    assert file_contents(root, names, nowhere).fingerprint != first.fingerprint


def test_no_files_have_a_fingerprint(root: Path, tmp_path: Path) -> None:
    assert file_contents(root, [], [tmp_path / "record"]).files == 0
