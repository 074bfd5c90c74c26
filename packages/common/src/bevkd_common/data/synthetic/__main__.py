"""Generates a world in the nuScenes format: `python -m bevkd_common.data.synthetic --out DIR --seed N`."""

import argparse
import sys
from pathlib import Path

from bevkd_common.config.datasets.world import WorldConfig

from . import ensure_world
from .nuscenes import NuScenesWriter


def main() -> None:
    """Parses the command line, generates the world and prints its path."""
    parser = argparse.ArgumentParser(prog="python -m bevkd_common.data.synthetic", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that will hold the data set's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    writer = NuScenesWriter(WorldConfig(seed=arguments.seed))
    path = ensure_world(writer, arguments.out, arguments.workers, _show_progress)
    sys.stdout.write(f"{path}\n")


def _show_progress(done: int, total: int) -> None:
    sys.stderr.write(f"\rscene {done} of {total}" + ("\n" if done == total else ""))


if __name__ == "__main__":
    main()
