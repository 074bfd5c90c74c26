"""Toy taps and outputs of two detectors with centre-point heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Outputs
from bevkd_common.models.taps import BevMap, Branch, HeadMaps, Meaning, Taps
from unidistill.build import build
from unidistill.config import UniDistillConfig
from unidistill.method import UniDistill

GRID = Grid(-8, -8, 1.0, 16, 16)
TASKS = (("car",), ("truck", "bus"))
BRANCHES = (
    Branch("reg", 2, Meaning.CENTER_OFFSET),
    Branch("height", 1, Meaning.HEIGHT),
    Branch("vel", 2, Meaning.VELOCITY),
)


def make_taps(name: str, *, low: int = 4, grid: Grid = GRID, head: Any = None, **changes: Any) -> Taps:
    """Taps with a low-level map of `low` channels and a high-level one of 6."""
    head = head or HeadMaps(grid, changes.get("tasks", TASKS), changes.get("branches", BRANCHES))
    return Taps(name, {"bev_in": BevMap(low, grid), "bev_neck": BevMap(6, grid), "head": head})


def make_outputs(taps: Taps, seed: int, samples: int = 2, dtype: torch.dtype = torch.float64) -> Outputs:
    """Random values of all taps."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(samples, *shape, generator=generator, dtype=dtype).requires_grad_()

    maps = {
        name: draw(spec.channels, spec.grid.ny, spec.grid.nx)
        for name, spec in taps.specs.items()
        if isinstance(spec, BevMap)
    }
    head = taps.specs["head"]
    assert isinstance(head, HeadMaps)
    cells = (head.grid.ny, head.grid.nx)
    tasks = [
        {
            "heatmap": draw(len(task), *cells),
            **{branch.name: draw(branch.channels, *cells) for branch in head.branches},
        }
        for task in head.tasks
    ]
    return Outputs(taps=maps, head=tasks)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch of samples, each a list of x, y, l, w, yaw."""

    def make(*samples: Sequence[Sequence[float]]) -> Batch:
        most = max(map(len, samples))
        rows = torch.zeros(len(samples), most, 9, dtype=torch.float64)
        labels = torch.full((len(samples), most), -1)
        for sample, footprints in enumerate(samples):
            for index, (x, y, length, width, yaw) in enumerate(footprints):
                rows[sample, index] = torch.tensor([x, y, 0.0, length, width, 1.5, yaw, 0.0, 0.0])
                labels[sample, index] = 0
        eye = torch.eye(4).expand(len(samples), 4, 4)
        names = tuple(map(str, range(len(samples))))
        return Batch(names, names, Boxes(rows), labels, None, None, (), eye, eye.double())

    return make


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Two samples of two boxes and one."""
    return make_batch([(1.5, 2.5, 4.0, 2.0, 0.3), (-4.0, 3.0, 1.0, 1.0, 0.0)], [(0.5, -5.0, 10.0, 4.0, 1.2)])


@pytest.fixture
def make_method() -> Callable[..., UniDistill]:
    def make(teacher: Taps | None = None, student: Taps | None = None, **changes: Any) -> UniDistill:
        config = UniDistillConfig.model_validate(changes)
        return build(config, teacher or make_taps("teacher"), student or make_taps("student")).double()

    return make
