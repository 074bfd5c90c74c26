"""Measure the index of a simulated nuScenes: building it, opening it, reading samples; beside the devkit's load.

    python benchmarks/index.py --scenes 850
    python benchmarks/index.py --scenes 20 --devkit

850 scenes have the table sizes of v1.0-trainval (34 149 key frames, 2.63 million files, 1.17 million annotations);
their tables take 3 GB of disk under --folder and are removed afterwards. Each measurement is a process of its own,
so that its peak memory is its own.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

VERSION = "v1.0-simulated"
KEY_FRAMES_PER_SCENE = 40.175  # of 34 149 in 850 scenes
BOXES_PER_KEY_FRAME = 34
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
FRAMES_PER_KEY = {"LIDAR_TOP": 10} | dict.fromkeys(CAMERAS, 6) | dict.fromkeys(RADARS, 6)
SAMPLES_READ = 1000
READ = """
import sys, time, resource
import numpy as np
started = time.perf_counter()
from pathlib import Path
from bevkd_common.data.nuscenes.index_file import open_index
imported = time.perf_counter()
index = open_index(Path(sys.argv[1]), sys.argv[2])
rng = np.random.default_rng(0)
total = 0.0
for row in rng.integers(len(index.key_frames.token), size=int(sys.argv[3])):
    filled = int(index.sweeps.count[row])
    paths = [path.decode() for path in index.sweeps.path[row, :filled]]
    total += len(paths) + index.sweeps.lidar_T_sweep[row, :filled].sum() + index.cameras.lidar_T_cam[row].sum()
    total += np.nansum(index.annotations.boxes[index.annotations.rows(int(row))])
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(index.key_frames.token), len(index.annotations.token), done - imported, peak, total)
"""
BUILD = """
import sys
from pathlib import Path
from bevkd_common.data.nuscenes.index_file import open_index
open_index(Path(sys.argv[1]), sys.argv[2])
"""
DEVKIT = """
import sys
from nuscenes import NuScenes
NuScenes(sys.argv[2], sys.argv[1], verbose=False)
"""


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=850)
    parser.add_argument("--folder", type=Path, help="where the tables are made; the system's temporary folder")
    parser.add_argument("--devkit", action="store_true", help="let nuscenes-devkit load the tables too")
    parser.add_argument("--output", type=Path, default=Path("index-benchmark.json"))
    arguments = parser.parse_args()

    root = Path(tempfile.mkdtemp(prefix="bevkd-index-", dir=arguments.folder))
    try:
        figures: dict[str, float] = {"tables_bytes": write_tables(root, arguments.scenes)}
        figures |= _process("build", BUILD, root)
        index = root / VERSION / "bevkd-index.safetensors"
        figures["index_bytes"] = index.stat().st_size
        frames, boxes, seconds, peak, _ = map(float, _run(READ, root, str(SAMPLES_READ))[0].split())
        figures |= {"key_frames": frames, "annotations": boxes, "open_and_read_s": seconds}
        figures["open_and_read_gb"] = peak * 1024 / 1e9
        if arguments.devkit:
            figures |= _process("devkit_load", DEVKIT, root)
            figures["devkit_load_over_open_and_read"] = figures["devkit_load_s"] / seconds
    finally:
        shutil.rmtree(root)
    for name, value in figures.items():
        print(f"{name:32} {value:,.3f}")
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


def _process(name: str, code: str, root: Path) -> dict[str, float]:
    _, seconds, peak = _run(code, root)
    return {f"{name}_s": seconds, f"{name}_gb": peak}


def _run(code: str, root: Path, *arguments: str) -> tuple[str, float, float]:
    """Output, seconds and peak memory in GB of a process."""
    wrapped = f"{code}\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    started = time.perf_counter()
    command = [sys.executable, "-c", wrapped, str(root), VERSION, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    *lines, peak = done.stdout.splitlines()
    return "\n".join(lines), seconds, int(peak) * 1024 / 1e9


def write_tables(root: Path, scenes: int) -> int:
    """Tables of the right sizes and shapes, and an empty file for each sensor file; returns their bytes."""
    folder = root / VERSION
    folder.mkdir(parents=True)
    world = _World(root, scenes)
    for name, records in world.tables().items():
        with (folder / f"{name}.json").open("w") as file:
            file.write("[\n")
            for number, record in enumerate(records):
                file.write((",\n" if number else "") + record)
            file.write("\n]")
    world.make_files()
    return sum(path.stat().st_size for path in folder.iterdir())


class _World:
    """Scenes in which the ego drives a curve among objects that stand or drive along."""

    def __init__(self, root: Path, scenes: int) -> None:
        self.root, self.scenes = root, scenes
        self.random = random.Random(0)
        self.files: dict[str, list[str]] = {}

    def tables(self) -> dict[str, Iterator[str]]:
        return {
            "scene": (
                json.dumps({"token": _token("scene", s), "name": f"scene-{s:04d}", "log_token": "log"})
                for s in range(self.scenes)
            ),
            "sensor": (
                json.dumps({"token": _token("sensor", c), "channel": c, "modality": ""}) for c in FRAMES_PER_KEY
            ),
            "calibrated_sensor": self._rigs(),
            "category": (
                json.dumps({"token": _token("category", n), "name": n}) for n in ("vehicle.car", "animal")
            ),
            "attribute": iter([json.dumps({"token": _token("attribute", 0), "name": "vehicle.parked"})]),
            "instance": self._instances(),
            "sample": self._samples(),
            "sample_data": self._frames(),
            "ego_pose": self._poses(),
            "sample_annotation": self._annotations(),
            "log": iter(
                [json.dumps({"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": ""})]
            ),
            "map": iter(
                [json.dumps({"token": "map", "log_tokens": ["log"], "category": "", "filename": "map.png"})]
            ),
            "visibility": iter([json.dumps({"token": "4", "level": "", "description": ""})]),
        }

    def key_frames(self, scene: int) -> int:
        return round((scene + 1) * KEY_FRAMES_PER_SCENE) - round(scene * KEY_FRAMES_PER_SCENE)

    def make_files(self) -> None:
        (self.root / "map.png").touch()
        for folder, names in self.files.items():
            (self.root / folder).mkdir(parents=True)
            for name in names:
                (self.root / folder / name).touch()

    def _rigs(self) -> Iterator[str]:
        for scene in range(self.scenes):
            for channel in FRAMES_PER_KEY:
                camera = channel in CAMERAS
                yield json.dumps({
                    "token": _token("rig", scene, channel), "sensor_token": _token("sensor", channel),
                    "translation": [0.9, 0.0, 1.8], "rotation": [math.sqrt(0.5), 0, 0, -math.sqrt(0.5)],
                    "camera_intrinsic": [[1266.0, 0, 816.0], [0, 1266.0, 491.0], [0, 0, 1]] if camera else [],
                })  # fmt: skip

    def _samples(self) -> Iterator[str]:
        for scene in range(self.scenes):
            count = self.key_frames(scene)
            for key in range(count):
                yield json.dumps({
                    "token": _token("sample", scene, key), "timestamp": _time(scene, key * 0.5),
                    "prev": _token("sample", scene, key - 1) if key else "",
                    "next": _token("sample", scene, key + 1) if key + 1 < count else "",
                    "scene_token": _token("scene", scene),
                })  # fmt: skip

    def _each_frame(self) -> Iterator[tuple[int, str, int, int, int]]:
        """Scene, channel, number of the frame, frames in all, frames a key frame."""
        for scene in range(self.scenes):
            for channel, rate in FRAMES_PER_KEY.items():
                count = (self.key_frames(scene) - 1) * rate + 1
                for number in range(count):
                    yield scene, channel, number, count, rate

    def _frames(self) -> Iterator[str]:
        for scene, channel, number, count, rate in self._each_frame():
            key = number % rate == 0
            folder = f"{'samples' if key else 'sweeps'}/{channel}"
            time_s = number * 0.5 / rate
            kind = "jpg" if channel in CAMERAS else "pcd.bin"
            name = f"n015-2018-07-18-11-07-57+0800__{channel}__{_time(scene, time_s)}.{kind}"
            if not channel.startswith("RADAR"):
                self.files.setdefault(folder, []).append(name)
            yield json.dumps({
                "token": _token("frame", scene, channel, number),
                "sample_token": _token("sample", scene, -(-number // rate)),
                "ego_pose_token": _token("pose", scene, channel, number),
                "calibrated_sensor_token": _token("rig", scene, channel), "timestamp": _time(scene, time_s),
                "fileformat": kind, "is_key_frame": key, "height": 900 if kind == "jpg" else 0,
                "width": 1600 if kind == "jpg" else 0, "filename": f"{folder}/{name}",
                "prev": _token("frame", scene, channel, number - 1) if number else "",
                "next": _token("frame", scene, channel, number + 1) if number + 1 < count else "",
            })  # fmt: skip

    def _poses(self) -> Iterator[str]:
        for scene, channel, number, _, rate in self._each_frame():
            time_s = number * 0.5 / rate
            yaw = 0.02 * time_s
            yield json.dumps({
                "token": _token("pose", scene, channel, number), "timestamp": _time(scene, time_s),
                "rotation": [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)],
                "translation": [600.0 + 8.0 * time_s, 1600.0 + self.random.random(), 0.0],
            })  # fmt: skip

    def _instances(self) -> Iterator[str]:
        for scene in range(self.scenes):
            for number in range(BOXES_PER_KEY_FRAME):
                category = "animal" if number == 0 else "vehicle.car"
                yield json.dumps({
                    "token": _token("instance", scene, number), "category_token": _token("category", category),
                    "nbr_annotations": self.key_frames(scene), "first_annotation_token": "",
                    "last_annotation_token": "",
                })  # fmt: skip

    def _annotations(self) -> Iterator[str]:
        for scene in range(self.scenes):
            count = self.key_frames(scene)
            for number in range(BOXES_PER_KEY_FRAME):
                for key in range(count):
                    yield json.dumps({
                        "token": _token("box", scene, number, key), "sample_token": _token("sample", scene, key),
                        "instance_token": _token("instance", scene, number), "visibility_token": "4",
                        "attribute_tokens": [_token("attribute", 0)],
                        "translation": [600.0 + 4.0 * key + 3.0 * number, 1600.0 + number, 1.0],
                        "size": [1.9, 4.6, 1.7], "rotation": [0.9238795325, 0.0, 0.0, 0.3826834324],
                        "prev": _token("box", scene, number, key - 1) if key else "",
                        "next": _token("box", scene, number, key + 1) if key + 1 < count else "",
                        "num_lidar_pts": number, "num_radar_pts": 0,
                    })  # fmt: skip


def _token(*parts: object) -> str:
    """32 characters, as long as the real ones."""
    return "-".join(map(str, parts)).ljust(32, ".")


def _time(scene: int, seconds: float) -> int:
    return 1_531_000_000_000_000 + scene * 100_000_000 + round(seconds * 1e6)


if __name__ == "__main__":
    main()
