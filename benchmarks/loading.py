"""Time loading: samples a second at the tiny and at the published size, and where the time goes.

    python benchmarks/loading.py --size tiny
    python benchmarks/loading.py --size paper

A synthetic world is made first: 64 x 176 images and one sweep, or 900 x 1600 images and ten sweeps of 1080
columns, as nuScenes has them. Shares are CPU seconds without loader processes; samples a second are wall-clock
time without, with one and with two of them, augmented, from files that the system has cached.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data import assemble
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.loader import training_batches
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.nuscenes import dataset as nuscenes
from bevkd_common.data.sensor_files import SensorFiles
from bevkd_common.data.synthetic import ensure_world
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter

PLAIN = {"lidar_rate": 2.0, "camera_rate": 2.0}
SIZES = {
    "tiny": (
        WorldConfig(train_scenes=10, val_scenes=1, **PLAIN),
        ImageInputConfig(height=64, width=176, resize=(0.0, 0.0), rotate_degrees=(0.0, 0.0)),
        1,
    ),
    "paper": (
        WorldConfig(train_scenes=3, val_scenes=1, image_size=(900, 1600), lidar_azimuths=1080, camera_rate=2.0),
        ImageInputConfig(),
        10,
    ),
}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--samples", type=int, default=60, help="to load in each measurement")
    parser.add_argument("--folder", type=Path, help="where the world is made; a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("loading-benchmark.json"))
    arguments = parser.parse_args()
    world, images, sweeps = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as temporary:
        root = ensure_world(NuScenesWriter(world), arguments.folder or Path(temporary), workers=2)
        config = NuScenesConfig(
            version="v1.0-synthetic", train_split="synthetic_train", val_split="synthetic_val", images=images
        )
        source = nuscenes.build(config, root).source(
            "train", DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=sweeps)
        )
        figures = {"key_frames": float(len(source))} | _shares(source, arguments.samples)
        for workers in (0, 1, 2):
            figures[f"samples_per_s_{workers}_workers"] = _throughput(source, arguments.samples, workers)
    for name, value in figures.items():
        print(f"{name:28} {value:10.4f}")
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


def _shares(source: FrameSource, samples: int) -> dict[str, float]:
    """CPU seconds a sample: all, and those in decoding, in resizing, and in points."""
    spent = dict.fromkeys(("decode", "resize", "points"), 0.0)
    timed = {
        (SensorFiles, "image"): "decode",
        (assemble, "augmented_image"): "resize",
        (FrameSource, "_cloud"): "points",
    }
    originals = {(owner, name): getattr(owner, name) for owner, name in timed}
    try:
        for (owner, name), part in timed.items():
            setattr(owner, name, _timed(originals[owner, name], spent, part))
        started = time.process_time()
        for number in range(samples):
            source.load(number % len(source), seed=number)
        total = time.process_time() - started
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)
    shares = {f"{part}_share": seconds / total for part, seconds in spent.items()}
    return {"cpu_s_per_sample": total / samples} | shares


def _timed(function: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        result = function(*args, **kwargs)
        spent[part] += time.process_time() - started
        return result

    return call


def _throughput(source: FrameSource, samples: int, workers: int) -> float:
    """Samples a second after the loader has started."""
    batches = training_batches(source, batch=2, seed=0, steps=samples // 2 + 4, workers=workers)
    for _ in range(4):
        next(batches)
    started = time.perf_counter()
    loaded = sum(len(batch) for batch in batches)
    return loaded / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
