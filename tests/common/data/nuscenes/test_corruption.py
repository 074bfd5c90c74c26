"""Damaged data end in one clear sentence, wherever the damage is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.nuscenes.dataset import build
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.errors import UserError
from PIL import Image

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "sample", "sample_annotation",
    "sample_data", "scene", "sensor",
)  # fmt: skip
REFERENCES = (
    ("sample", "scene_token"), ("calibrated_sensor", "sensor_token"), ("sample_data", "sample_token"),
    ("sample_data", "calibrated_sensor_token"), ("sample_data", "ego_pose_token"), ("instance", "category_token"),
    ("sample_annotation", "sample_token"), ("sample_annotation", "instance_token"), ("sample_annotation", "prev"),
    ("sample_annotation", "next"),
)  # fmt: skip
VECTORS = (
    ("calibrated_sensor", "translation"), ("calibrated_sensor", "rotation"), ("ego_pose", "translation"),
    ("ego_pose", "rotation"), ("sample_annotation", "translation"), ("sample_annotation", "size"),
    ("sample_annotation", "rotation"),
)  # fmt: skip
COUNTS = (
    ("sample", "timestamp"), ("sample_data", "timestamp"), ("sample_data", "height"), ("sample_data", "width"),
    ("sample_annotation", "num_lidar_pts"), ("sample_annotation", "num_radar_pts"),
)  # fmt: skip

Fault = Callable[[Any, Path, np.random.Generator], None]


def one(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def becomes(change: Callable[[bytes, np.random.Generator], bytes]) -> Callable[[Path, np.random.Generator], None]:
    """Gives a file another content."""

    def damage(path: Path, rng: np.random.Generator) -> None:
        path.write_bytes(change(path.read_bytes(), rng))

    return damage


def gone(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def to_directory(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.mkdir()


def in_table(damage: Callable[[Path, np.random.Generator], None]) -> Fault:
    return lambda world, folder, rng: damage(folder / f"{one(rng, TABLES)}.json", rng)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(1, len(content) - 1))]


def cut_in_point(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: 20 * int(rng.integers(1, 99)) + int(rng.integers(1, 20))]


def rewritten(name: str, change: Callable[[list[dict], dict, np.random.Generator], None]) -> Fault:
    """A fault in one record of one table."""

    def fault(world: Any, folder: Path, rng: np.random.Generator) -> None:
        records = world.tables[name]
        change(records, one(rng, records), rng)
        (folder / f"{name}.json").write_text(json.dumps(records))

    return fault


def any_of(*faults: Fault) -> Fault:
    return lambda world, folder, rng: one(rng, faults)(world, folder, rng)


def set_value(keys: tuple[tuple[str, str], ...], values: Callable[[Any, np.random.Generator], Any]) -> Fault:
    """Puts something else into one of these columns."""

    def change(key: str) -> Callable[[list[dict], dict, np.random.Generator], None]:
        return lambda records, record, rng: record.update({key: values(record[key], rng)})

    return any_of(*(rewritten(table, change(key)) for table, key in keys))


def in_vector(value: Any) -> Fault:
    def replaced(vector: list[float], rng: np.random.Generator) -> list[Any]:
        place = int(rng.integers(len(vector)))
        return [*vector[:place], value, *vector[place + 1 :]]

    return set_value(VECTORS, replaced)


def without_key(world: Any, folder: Path, rng: np.random.Generator) -> None:
    columns = (*REFERENCES, *VECTORS, *COUNTS, ("scene", "name"), ("sensor", "channel"), ("category", "name"))
    table, key = one(rng, columns)
    rewritten(table, lambda records, record, rng: record.pop(key))(world, folder, rng)


def twice(world: Any, folder: Path, rng: np.random.Generator) -> None:
    """The same token in two records of a table that others look into."""
    name = one(rng, ("scene", "sample", "sensor", "calibrated_sensor", "ego_pose", "category", "instance"))
    rewritten(name, lambda records, record, rng: records.append(dict(record)))(world, folder, rng)


def used_files(world: Any, kind: str) -> list[Path]:
    """Sensor files that every reader needs: those of key frames."""
    return sorted((world.root / "samples").rglob(f"*.{kind}"))


def file_fault(kind: str, damage: Callable[[Path, np.random.Generator], None]) -> Fault:
    return lambda world, folder, rng: damage(one(rng, used_files(world, kind)), rng)


def spoil_points(value: float) -> Callable[[Path, np.random.Generator], None]:
    def damage(path: Path, rng: np.random.Generator) -> None:
        points = np.fromfile(path, dtype=np.float32)
        points[int(rng.integers(len(points)))] = value
        points.tofile(path)

    return damage


def other_size(path: Path, rng: np.random.Generator) -> None:
    Image.new("RGB", (int(rng.integers(1, 127)), 48)).save(path)


def lost_channel(world: Any, folder: Path, rng: np.random.Generator) -> None:
    def change(records: list[dict], record: dict, rng: np.random.Generator) -> None:
        key_frames = [r for r in records if r["is_key_frame"]]
        records.remove(one(rng, key_frames))

    rewritten("sample_data", change)(world, folder, rng)


def turned_time(world: Any, folder: Path, rng: np.random.Generator) -> None:
    """A previous sweep that is younger than the one after it."""

    def change(records: list[dict], record: dict, rng: np.random.Generator) -> None:
        by_token = {r["token"]: r for r in records}
        key_frames = [r for r in records if r["is_key_frame"] and r["prev"] and "LIDAR" in r["filename"]]
        record = one(rng, key_frames)
        by_token[record["prev"]]["timestamp"] = record["timestamp"] + int(rng.integers(0, 1000))

    rewritten("sample_data", change)(world, folder, rng)


def circle(world: Any, folder: Path, rng: np.random.Generator) -> None:
    """A sweep that is its own predecessor."""

    def change(records: list[dict], record: dict, rng: np.random.Generator) -> None:
        key_frames = [r for r in records if r["is_key_frame"] and "LIDAR" in r["filename"]]
        record = one(rng, key_frames)
        record["prev"] = record["token"]

    rewritten("sample_data", change)(world, folder, rng)


def same_time(world: Any, folder: Path, rng: np.random.Generator) -> None:
    def change(records: list[dict], record: dict, rng: np.random.Generator) -> None:
        others = [r for r in records if r["scene_token"] == record["scene_token"] and r is not record]
        record["timestamp"] = one(rng, others)["timestamp"]

    rewritten("sample", change)(world, folder, rng)


def turned_link(world: Any, folder: Path, rng: np.random.Generator) -> None:
    """An annotation whose previous and next are exchanged."""

    def change(records: list[dict], record: dict, rng: np.random.Generator) -> None:
        linked = [r for r in records if r["prev"] or r["next"]]
        record = one(rng, linked)
        record["prev"], record["next"] = record["next"], record["prev"]

    rewritten("sample_annotation", change)(world, folder, rng)


def intrinsics(matrix: Any) -> Fault:
    def change(records: list[dict], record: dict, rng: np.random.Generator) -> None:
        one(rng, [r for r in records if r["camera_intrinsic"]])["camera_intrinsic"] = matrix

    return rewritten("calibrated_sensor", change)


def splits(content: bytes) -> Fault:
    return lambda world, folder, rng: becomes(lambda _, __: content)(folder / "splits.json", rng)


def stretched(quaternion: list[float], rng: np.random.Generator) -> list[float]:
    return [part * float(rng.uniform(1.1, 3.0)) for part in quaternion] if rng.random() < 0.5 else [0.0] * 4


def flat(size: list[float], rng: np.random.Generator) -> list[float]:
    place = int(rng.integers(3))
    return [0.0 if k == place else side for k, side in enumerate(size)]


SIZES = (("sample_annotation", "size"),)
FAULTS: dict[str, Fault] = {
    "a table is missing": in_table(gone),
    "a table is a folder": in_table(to_directory),
    "a table is empty": in_table(becomes(lambda content, rng: b"")),
    "a table is cut off": in_table(becomes(cut)),
    "a table is no list": in_table(becomes(lambda content, rng: b'{"token": "a"}')),
    "a table holds numbers": in_table(becomes(lambda content, rng: b"[1, 2]")),
    "a table is no text": in_table(becomes(lambda content, rng: rng.bytes(200))),
    "a table is nested without end": in_table(becomes(lambda content, rng: b"[" * 99_999)),
    "a key is missing": without_key,
    "a token stands twice": twice,
    "a token leads nowhere": set_value(REFERENCES, lambda value, rng: f"nowhere-{rng.integers(99)}"),
    "a token is null": set_value(REFERENCES, lambda value, rng: None),
    "a token is a number": set_value(REFERENCES, lambda value, rng: 7),
    "a count is text": set_value(COUNTS, lambda value, rng: str(value)),
    "a count is negative": set_value(COUNTS, lambda value, rng: -int(rng.integers(1, 99))),
    "a count is a fraction": set_value(COUNTS, lambda value, rng: value + 0.5),
    "a count has a hundred digits": set_value(COUNTS, lambda value, rng: 10**100),
    "a vector holds NaN": in_vector(float("nan")),
    "a vector holds infinity": in_vector(float("inf")),
    "a vector holds text": in_vector("1.0"),
    "a vector holds null": in_vector(None),
    "a vector is short": set_value(VECTORS, lambda value, rng: value[:-1]),
    "a vector is a number": set_value(VECTORS, lambda value, rng: 1.0),
    "a box is flat": set_value(SIZES, flat),
    "a box is inside out": set_value(SIZES, lambda value, rng: [-side for side in value]),
    "a rotation is stretched": set_value((("calibrated_sensor", "rotation"),), stretched),
    "intrinsics are transposed": intrinsics([[90.0, 0, 0], [0, 90.0, 0], [64.2, 23.5, 1]]),
    "intrinsics are empty": intrinsics([]),
    "intrinsics are negative": intrinsics([[-90.0, 0, 64.2], [0, 90.0, 23.5], [0, 0, 1]]),
    "intrinsics are text": intrinsics(["a", "b", "c"]),
    "a key frame lacks a sensor": lost_channel,
    "a sweep follows a younger one": turned_time,
    "a sweep follows itself": circle,
    "key frames have the same time": same_time,
    "an annotation is linked backwards": turned_link,
    "the splits are no JSON": splits(b"{"),
    "a split is empty": splits(b'{"small_train": [], "small_val": ["scene-9003"]}'),
    "a split names a scene that is not there": splits(b'{"small_train": ["scene-1"], "small_val": ["scene-9003"]}'),
    "an image is missing": file_fault("jpg", gone),
    "an image is cut off": file_fault("jpg", becomes(lambda content, rng: content[: len(content) // 2])),
    "an image is empty": file_fault("jpg", becomes(lambda content, rng: b"")),
    "an image is something else": file_fault("jpg", becomes(lambda content, rng: rng.bytes(500))),
    "an image is a folder": file_fault("jpg", to_directory),
    "an image has another size": file_fault("jpg", other_size),
    "a sweep is missing": file_fault("bin", gone),
    "a sweep is empty": file_fault("bin", becomes(lambda content, rng: b"")),
    "a sweep is cut off": file_fault("bin", becomes(cut_in_point)),
    "a sweep is a folder": file_fault("bin", to_directory),
    "a sweep holds NaN": file_fault("bin", spoil_points(float("nan"))),
    "a sweep holds infinity": file_fault("bin", spoil_points(float("inf"))),
}
"""Each takes the world, the folder of its tables, and a random generator that chooses the place."""


PLACES = 6
CONFIG = NuScenesConfig(
    version="v1.0-small",
    train_split="small_train",
    val_split="small_val",
    images=ImageInputConfig(height=32, width=96),
)
WHAT_TO_DO = (
    "unpack",
    "check",
    "choose",
    "write it again",
    "must map each split",
    "must be width, length, height",
    "write the",
)


def read_everything(root):
    """Reads every sample of both splits; returns how many boxes there are."""
    dataset = build(CONFIG, root)
    boxes = 0
    for split in ("train", "val"):
        source = dataset.source(split, DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=10))
        for index in range(len(source)):
            boxes += len(source.load(index, seed=None).boxes)
    return boxes


def test_what_is_not_damaged_is_read(own_world):
    assert read_everything(own_world.root) > 30


@pytest.mark.parametrize("name", FAULTS)
def test_damage_is_one_sentence(make_world, name):
    for place in range(PLACES):
        world = make_world()
        rng = np.random.default_rng([place, *name.encode()])
        FAULTS[name](world, world.root / world.version, rng)
        with pytest.raises(UserError) as caught:
            read_everything(world.root)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 500, message
        assert str(world.root) in message, message
        assert any(words in message for words in WHAT_TO_DO), message


def test_there_are_three_hundred_of_them():
    assert len(FAULTS) * PLACES == 300


@pytest.mark.parametrize("allow_missing", [False, True])
@pytest.mark.parametrize("climbing", [False, True])
def test_a_file_outside_the_data_set_is_never_read(own_world, tmp_path, climbing, allow_missing):
    outside = tmp_path / "outside.pcd.bin"
    outside.write_bytes(np.zeros(25, np.float32).tobytes())
    record = next(r for r in own_world.tables["sample_data"] if "LIDAR" in r["filename"])
    record["filename"] = "samples/../../outside.pcd.bin" if climbing else str(outside)
    own_world.write("sample_data")
    with pytest.raises(UserError, match=rf"record {record['token']} in .* a filename that is not a path inside"):
        open_index(own_world.root, own_world.version, allow_missing=allow_missing)
