"""Time the synthetic world: seconds a key frame on one core, everything between key frames and writing included.

    python benchmarks/world.py --scenes 6

Times are processor seconds of this process, so that other load on the machine does not count.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.synthetic.cameras import render
from bevkd_common.data.synthetic.generate import write_scene
from bevkd_common.data.synthetic.lidar import sweep
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
from bevkd_common.data.synthetic.scene import draw_scene
from bevkd_common.data.synthetic.solids import build_solids

SIZES = {
    "tiny": WorldConfig(),
    "256x704": WorldConfig(image_size=(256, 704), lidar_azimuths=1080),
}
BUDGET = 0.3  # seconds a key frame at the tiny size


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6, help="scenes of five key frames to make at each size")
    parser.add_argument("--output", type=Path, default=Path("world-benchmark.json"))
    arguments = parser.parse_args()
    figures = {name: _measure(config, arguments.scenes) for name, config in SIZES.items()}
    print(f"{'':24}" + "".join(f"{name:>12}" for name in figures))
    for row in figures["tiny"]:
        print(f"{row:24}" + "".join(f"{figures[name][row]:12.4g}" for name in figures))
    report = {"machine": platform.processor() or platform.machine(), "numpy": np.__version__} | figures
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    if figures["tiny"]["keyframe_s"] > BUDGET:
        raise SystemExit(f"a key frame takes more than {BUDGET} s")


def _measure(config: WorldConfig, scenes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        writer = NuScenesWriter(config)
        whole = _seconds(lambda: [write_scene(writer, index, Path(folder)) for index in range(scenes)])
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    keyframes = scenes * config.keyframes_per_scene
    scene = draw_scene(config, 0)
    solids, rig = build_solids(scene), writer.rig(0)
    rng = np.random.default_rng(0)
    one_sweep = _seconds(lambda: [sweep(scene, solids, 0.0, rig, rng) for _ in range(5)])
    six_images = _seconds(lambda: [render(scene, solids, 0.0, camera, rng) for camera in rig.cameras])
    return {
        "keyframe_s": whole / keyframes,
        "layout_s_per_scene": _seconds(lambda: [draw_scene(config, index) for index in range(scenes)]) / scenes,
        "sweep_s": one_sweep / 5,
        "image_s": six_images / len(rig.cameras),
        "files_per_keyframe": len(files) / keyframes,
        "megabytes_per_keyframe": size / keyframes / 1e6,
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
