"""Time and peak memory of our operators beside their naive forms, at published sizes, forward and backward.

    python benchmarks/ops.py

BEV pooling: BEVDet-R50's lift, six cameras, 59 depths, 16 x 44 cells, 64 channels; the naive form makes all
products at once. Deformable attention: BEVFormer-base's temporal attention, 40 000 queries, 8 heads of 32
channels, 4 points on a map of 200 x 200; the naive form gathers the four corners of every sample. Deformable
convolution: BEVDepth's depth net, six cameras, 256 channels, 16 x 44 cells; the other form is torchvision's. Each
runs in a process of its own, so that its peak memory is its own; what the inputs take is subtracted.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from bevkd_common.geometry.grid import Grid
from bevkd_common.ops.bev_pool import bev_pool
from bevkd_common.ops.deform_conv import deform_conv
from bevkd_common.ops.deformable_attention import deformable_attention
from torch import Tensor
from torchvision.ops import deform_conv2d

GRID = Grid(-51.2, -51.2, 0.8, 128, 128)
SIDE, HEADS, CHANNELS, POINTS = 200, 8, 32, 4
Case = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=CASES, help="measure one in this process and print it as JSON")
    parser.add_argument("--output", type=Path, default=Path("ops-benchmark.json"))
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(_measure(arguments.only, arguments.repeats)))
        return
    figures = {}
    for name in CASES:
        command = [sys.executable, __file__, "--only", name, "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures[name] = json.loads(done.stdout)
    print(f"{'':28}{'seconds':>10}{'peak GB':>10}")
    for name, figure in figures.items():
        print(f"{name:28}{figure['seconds']:10.3f}{figure['peak_gb']:10.3f}")
    figures["threads"] = torch.get_num_threads()
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


def _measure(name: str, repeats: int) -> dict[str, float]:
    function, inputs = CASES[name]()
    before = _peak()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function(*inputs).sum().backward()
        seconds.append(time.perf_counter() - started)
        for value in inputs:
            value.grad = None
    return {"seconds": median(seconds), "peak_gb": (_peak() - before) / 1e9}


def _peak() -> int:
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) * 1024


def _pooling() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(1, 6, 59, 16, 44, generator=generator, requires_grad=True)
    context = torch.randn(1, 6, 64, 16, 44, generator=generator, requires_grad=True)
    cells = torch.randint(0, GRID.nx * GRID.ny + 1, depth.shape, generator=generator)
    return depth, context, cells


def _our_pooling() -> Case:
    return lambda depth, context, cells: bev_pool(depth, context, cells, GRID), _pooling()


def _naive_pooling() -> Case:
    def pool(depth: Tensor, context: Tensor, cells: Tensor) -> Tensor:
        products = (depth[:, :, None] * context[:, :, :, None]).permute(0, 1, 3, 4, 5, 2).flatten(0, 4)
        return products.new_zeros(GRID.nx * GRID.ny + 1, 64).index_add(0, cells.flatten(), products)[:-1]

    return pool, _pooling()


def _attention() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = SIDE * SIDE
    value = torch.randn(1, queries, HEADS, CHANNELS, generator=generator, requires_grad=True)
    where = torch.rand(1, queries, HEADS, 1, POINTS, 2, generator=generator, requires_grad=True)
    weights = torch.rand(1, queries, HEADS, 1, POINTS, generator=generator, requires_grad=True)
    return value, where, weights


def _our_attention() -> Case:
    return lambda value, where, weights: deformable_attention(value, [(SIDE, SIDE)], where, weights), _attention()


def _naive_attention() -> Case:
    def attend(value: Tensor, where: Tensor, weights: Tensor) -> Tensor:
        place = where[:, :, :, 0] * SIDE - 0.5
        low = place.detach().floor()
        heads = torch.arange(HEADS)[:, None]
        total = torch.zeros((), dtype=value.dtype)
        for right in (0, 1):
            for down in (0, 1):
                corner = low + torch.tensor([right, down])
                near = (1 - (place - corner).abs()).prod(dim=-1)
                inside = ((corner >= 0) & (corner < SIDE)).all(dim=-1)
                column, row = corner.clamp(0, SIDE - 1).long().unbind(-1)
                pixels = value[0, row[0] * SIDE + column[0], heads][None]
                total = total + (near * inside * weights[:, :, :, 0])[..., None] * pixels
        return total.sum(dim=3).flatten(2)

    return attend, _attention()


def _convolution() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 256, 16, 44, generator=generator, requires_grad=True)
    offset = torch.randn(6, 18, 16, 44, generator=generator, requires_grad=True)
    mask = torch.rand(6, 9, 16, 44, generator=generator, requires_grad=True)
    weight = torch.randn(256, 256, 3, 3, generator=generator, requires_grad=True)
    return x, offset, mask, weight


def _our_convolution() -> Case:
    return lambda x, offset, mask, weight: deform_conv(x, offset, weight, mask=mask), _convolution()


def _torchvisions_convolution() -> Case:
    return lambda x, offset, mask, weight: deform_conv2d(x, offset, weight, padding=1, mask=mask), _convolution()


CASES: dict[str, Callable[[], Case]] = {
    "bev pooling, ours": _our_pooling,
    "bev pooling, naive": _naive_pooling,
    "deformable attention, ours": _our_attention,
    "deformable attention, naive": _naive_attention,
    "deformable conv, ours": _our_convolution,
    "deformable conv, torchvision": _torchvisions_convolution,
}

if __name__ == "__main__":
    main()
