"""Time and peak memory of our sparse convolution beside spconv's on a CPU, forward and backward.

    python benchmarks/sparse_conv.py

A submanifold 3x3x3 convolution over 60,000 voxels of 0.1 x 0.1 x 0.2 m, at the widths of CenterPoint's encoder.
The voxels are those of ten sweeps of a 32-beam LiDAR that drives past round obstacles, sorted as the encoder sorts
them; how many neighbours they have is printed. What depends on the voxels alone is built once, before anything is
measured.

Each backend and width runs in a process of its own, so that its peak memory is its own; what the inputs take is
subtracted. The two take turns, so that a busy moment hits both; the ratio is that of their medians.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from bevkd_common.ops import sparse_conv as ops
from bevkd_common.ops.sparse_conv import submanifold_conv
from bevkd_common.ops.sparse_tensor import SparseTensor, linear_index
from bevkd_common.ops.voxelize import VoxelSpec, voxelize
from torch import Tensor

SPEC = VoxelSpec((-51.2, -51.2, -5.0), (51.2, 51.2, 3.0), (0.1, 0.1, 0.2), max_voxels=60_000)
SHAPE = (41, 1024, 1024)
WIDTHS = (16, 32, 64, 128)
BACKENDS = ("ours", "spconv")
TIME_LIMIT, MEMORY_LIMIT = 1.5, 2.0
LIDAR_HEIGHT = 1.84


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each backend and width")
    parser.add_argument("--repeats", type=int, default=7, help="measurements in each process")
    parser.add_argument("--only", nargs=2, metavar=("BACKEND", "WIDTH"), help="measure here and print JSON")
    parser.add_argument("--output", type=Path, default=Path("sparse-conv-benchmark.json"))
    arguments = parser.parse_args()
    if arguments.only:
        backend, width = arguments.only
        print(json.dumps(measure(backend, int(width), arguments.repeats)))
        return
    coordinates = lidar_voxels()
    neighbours = mean_neighbours(coordinates)
    threads = torch.get_num_threads()
    print(f"{len(coordinates)} voxels, {neighbours:.2f} of 27 cells around each are occupied; {threads} threads")
    print(f"{'channels':>8}{'seconds':>18}{'':9}{'ratio':>7}{'peak MB':>18}{'':9}{'ratio':>7}")
    print(f"{'':8}{'ours':>18}{'spconv':>9}{'':7}{'ours':>18}{'spconv':>9}")
    rows = [compare(width, arguments.rounds, arguments.repeats) for width in WIDTHS]
    within = all(row["time_ratio"] <= TIME_LIMIT and row["memory_ratio"] <= MEMORY_LIMIT for row in rows)
    print(
        f"{'within' if within else 'NOT within'} {TIME_LIMIT} x the time and {MEMORY_LIMIT} x the memory of spconv"
    )
    report = {
        "voxels": len(coordinates),
        "mean_occupied_of_27": neighbours,
        "threads": threads,
        "rows": rows,
        "within_limits": within,
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def compare(width: int, rounds: int, repeats: int) -> dict[str, float]:
    """Both backends in turns at one width; prints the row of the table."""
    figures: dict[str, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
    for _ in range(rounds):
        for backend in BACKENDS:
            command = [sys.executable, __file__, "--only", backend, str(width), "--repeats", str(repeats)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures[backend].append(json.loads(done.stdout.splitlines()[-1]))
    row: dict[str, float] = {"channels": width}
    for name in ("seconds", "peak_mb"):
        for backend in BACKENDS:
            row[f"{backend}_{name}"] = median(figure[name] for figure in figures[backend])
    row["time_ratio"] = row["ours_seconds"] / row["spconv_seconds"]
    row["memory_ratio"] = row["ours_peak_mb"] / row["spconv_peak_mb"]
    seconds = f"{row['ours_seconds']:18.4f}{row['spconv_seconds']:9.4f}{row['time_ratio']:7.2f}"
    memory = f"{row['ours_peak_mb']:18.1f}{row['spconv_peak_mb']:9.1f}{row['memory_ratio']:7.2f}"
    print(f"{width:8}{seconds}{memory}", flush=True)
    return row


def measure(backend: str, width: int, repeats: int) -> dict[str, float]:
    """Median seconds of forward and backward, and megabytes beyond the inputs, in this process."""
    if backend == "spconv" and not ops.spconv_is_installed():
        raise SystemExit("spconv is not installed; it comes with the extra `cu120`")
    ops.spconv_is_installed = lambda: backend == "spconv"
    generator = torch.Generator().manual_seed(0)
    coordinates = lidar_voxels()
    features = torch.randn(len(coordinates), width, generator=generator, requires_grad=True)
    weight = (torch.randn(width, 3, 3, 3, width, generator=generator) / (27 * width) ** 0.5).requires_grad_()
    slope = torch.randn(len(coordinates), width, generator=generator)
    x = SparseTensor(features, coordinates, SHAPE, 1)
    with torch.no_grad():
        x = x.with_features(features[:, :1])
        rulebooks = submanifold_conv(x, weight[:1, ..., :1], None, "shared").rulebooks
    x = SparseTensor(features, coordinates, SHAPE, 1, rulebooks)
    seconds = []
    reset_peak()
    before = peak()
    for _ in range(repeats):
        started = time.perf_counter()
        submanifold_conv(x, weight, None, "shared").features.backward(slope)
        seconds.append(time.perf_counter() - started)
        features.grad = weight.grad = None
    return {"seconds": median(seconds), "peak_mb": (peak() - before) / 1e6}


def lidar_voxels() -> Tensor:
    """Coordinates [60000, 4] batch, z, y, x."""
    points = lidar_points(torch.Generator().manual_seed(0))
    coordinates = voxelize(points, (len(points),), SPEC).coordinates
    return coordinates[linear_index(coordinates, SHAPE).argsort()]


def lidar_points(generator: torch.Generator, sweeps: int = 10, obstacles: int = 120) -> Tensor:
    """Returns [P, 3] in metres of ten sweeps, half a metre apart, over flat ground with round obstacles."""
    elevation = torch.linspace(-30.67, 10.67, 32).deg2rad()[:, None]
    azimuth = torch.arange(1080) / 1080 * 2 * torch.pi
    heading = torch.stack([azimuth.cos(), azimuth.sin()], dim=1)
    place = (torch.rand(obstacles, 2, generator=generator) - 0.5) * 100
    radius = 0.4 + 2 * torch.rand(obstacles, generator=generator)
    top = 0.8 + 2.5 * torch.rand(obstacles, generator=generator) - LIDAR_HEIGHT
    to_ground = torch.where(elevation < 0, LIDAR_HEIGHT / elevation.neg().clamp(min=1e-6).tan(), torch.inf)
    clouds = []
    for sweep in range(sweeps):
        offset = place - torch.tensor([0.0, -0.5 * sweep])
        along = heading @ offset.T
        half_chord = (radius.square() - (offset.square().sum(dim=1) - along.square())).clamp(min=0).sqrt()
        to_obstacle = torch.where((half_chord > 0) & (along > 1), along - half_chord, torch.inf)
        hit_height = to_obstacle * elevation[..., None].tan()
        to_obstacle = torch.where((hit_height < top) & (hit_height > -LIDAR_HEIGHT), to_obstacle, torch.inf)
        reach = torch.minimum(to_ground.expand(32, 1080), to_obstacle.amin(dim=-1))
        reach = reach + 0.02 * torch.randn(reach.shape, generator=generator)
        ground = reach[..., None] * heading + torch.tensor([0.0, -0.5 * sweep])
        points = torch.cat([ground, (reach * elevation.tan())[..., None]], dim=-1)
        clouds.append(points[reach < 80])
    return torch.cat(clouds)


def mean_neighbours(coordinates: Tensor) -> float:
    """Occupied cells of the 27 in and around a voxel, its own included."""
    pairs = ops.submanifold_rulebook(coordinates, SHAPE, (3, 3, 3)).pairs
    return 1 + sum(len(rows[0]) for rows in pairs if rows is not None) / len(coordinates)


def reset_peak() -> None:
    """Forget the peak so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Highest resident memory in bytes."""
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) * 1024


if __name__ == "__main__":
    main()
