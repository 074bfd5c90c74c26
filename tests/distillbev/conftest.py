"""A worked example, and toy detectors with the taps and the head that the method asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import CenterTargets, Losses, Outputs
from bevkd_common.models.taps import BevMap, Branch, HeadMaps, Meaning, Taps
from distillbev.build import build
from distillbev.config import DistillBevConfig
from distillbev.method import DistillBev
from torch import Tensor, nn

TASKS = (("car",), ("truck", "bus"))
BRANCHES = (Branch("reg", 2, Meaning.CENTER_OFFSET), Branch("height", 1, Meaning.HEIGHT))


def make_batch(boxes: Sequence[Sequence[Sequence[float]]], dtype: torch.dtype = torch.float64) -> Batch:
    """A batch of samples, each a list of x, y, l, w, yaw."""
    most = max(len(sample) for sample in boxes)
    rows = torch.zeros(len(boxes), most, 9, dtype=dtype)
    labels = torch.full((len(boxes), most), -1)
    for sample, footprints in enumerate(boxes):
        for index, (x, y, length, width, yaw) in enumerate(footprints):
            rows[sample, index] = torch.tensor([x, y, 0.0, length, width, 1.5, yaw, 0.0, 0.0])
            labels[sample, index] = 0
    eye = torch.eye(4).expand(len(boxes), 4, 4)
    names = tuple(str(sample) for sample in range(len(boxes)))
    return Batch(names, names, Boxes(rows), labels, None, None, (), eye, eye.double())


def make_targets(heatmaps: Sequence[Tensor]) -> CenterTargets:
    return CenterTargets(heatmaps=heatmaps, regression=(), indices=(), mask=())


@dataclass
class Scene:
    """Everything a method's forward pass takes."""

    teacher: Outputs
    student: Outputs
    targets: CenterTargets
    batch: Batch

    def run(self, method: DistillBev) -> Losses:
        return method(self.teacher, self.student, self.targets, self.batch)

    def weighted(self, method: DistillBev) -> dict[str, float]:
        return {name: term.value.item() * term.weight for name, term in self.run(method).terms.items()}


def logits(probability: Tensor) -> Tensor:
    return torch.logit(probability.double().clamp(1e-9, 1 - 1e-9))


@pytest.fixture
def worked_example() -> Callable[..., Scene]:
    """4 x 4 cells of a metre, one box, one false positive; a teacher of zeros and a student of ones."""

    def make(batch: int = 1, boxes: bool = True, seen: bool = True, layers: int = 1) -> Scene:
        probability, truth = torch.zeros(2, 1, 4, 4)
        if seen:
            probability[0, 0, 0], probability[0, 0, 1] = 0.9, 0.2
            probability[0, 3, 3], probability[0, 1, 0] = 0.9, 0.05
        if boxes:
            truth[0, 3, 3], truth[0, 2, 2], truth[0, 0, 1] = 1.0, 0.5, 0.2
        nothing = torch.zeros(batch, 2, 4, 4)
        first, second = probability.expand(batch, 1, 4, 4), truth.expand(batch, 1, 4, 4)
        footprints = [[(1.0, 1.0, 2.0, 2.0, 0.0)] if boxes else []] * batch
        zeros, ones = (value * torch.ones(batch, 2, 4, 4).double() for value in (0.0, 1.0))
        names = [f"map{index}" for index in range(layers)]
        return Scene(
            Outputs(
                {name: zeros.clone() for name in names}, [{"heatmap": logits(nothing)}, {"heatmap": logits(first)}]
            ),
            Outputs({name: ones.clone() for name in names}),
            make_targets([second, nothing]),
            make_batch(footprints),
        )

    return make


def square(cells: int, cell: float = 1.0) -> Grid:
    return Grid(-cells * cell / 2, -cells * cell / 2, cell, cells, cells)


def make_taps(name: str, cells: int, channels: int, layers: int, head_cells: int | None = None) -> Taps:
    grid = square(cells)
    head = square(head_cells or cells, cells / (head_cells or cells))
    maps = {f"map{index}": BevMap(channels, grid) for index in range(layers)}
    return Taps(name, {**maps, "head": HeadMaps(head, TASKS, BRANCHES)})


@pytest.fixture
def plain_method() -> Callable[..., DistillBev]:
    """A method without anything learnable, false positives at the last of its layers alone."""

    def make(layers: int = 1, cells: int = 4, channels: int = 2, head_cells: int | None = None, **changes):
        taps = [
            {
                "name": f"map{index}",
                "teacher": f"map{index}",
                "student": f"map{index}",
                "adapter": "identity",
                "false_positives": index == layers - 1,
            }
            for index in range(layers)
        ]
        settings = {"taps": taps, "inherit": "none", "attention": "none", "attention_kernel": "identity"}
        config = DistillBevConfig.model_validate(settings | changes)
        teacher, student = (
            make_taps(name, cells, channels, layers, head_cells) for name in ("CenterPoint", "BEVDet")
        )
        return build(config, teacher, student)

    return make


class ToyHead(nn.Module):
    """The two parts of a centre head that a student can inherit."""

    def __init__(self, in_channels: int, channels: int = 8) -> None:
        super().__init__()
        self.shared_conv = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.task_heads = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: nn.Sequential(
                        nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.Conv2d(channels, count, 1)
                    )
                    for name, count in (*(branch.layout for branch in BRANCHES), ("heatmap", len(task)))
                }
            )
            for task in TASKS
        )
        for task in self.task_heads:
            # So that most cells are background, as with any trained head.
            nn.init.constant_(task["heatmap"][-1].bias, -2.6)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        shared = self.shared_conv(x)
        return [{name: branch(shared) for name, branch in task.items()} for task in self.task_heads]


class ToyDetector(nn.Module):
    """From the batch's boxes to a noise map, one block at half resolution, a neck and a head."""

    def __init__(self, block: int, neck: int, cells: int = 16, block_stride: int = 2) -> None:
        super().__init__()
        self.cells = cells
        self.block = nn.Sequential(
            nn.Conv2d(3, block, block_stride, stride=block_stride), nn.BatchNorm2d(block), nn.ReLU()
        )
        self.neck = nn.Conv2d(3, neck, 3, padding=1)
        self.head = ToyHead(neck)
        self.parts = {"head.task_heads": self.head.task_heads, "head": self.head}
        grid = square(cells)
        coarse = square(cells // block_stride, float(block_stride))
        self.taps = {
            "bev_block1": BevMap(block, coarse, "relu"),
            "bev_neck": BevMap(neck, grid),
            "head": HeadMaps(grid, TASKS, BRANCHES),
        }

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        generator = torch.Generator().manual_seed(len(batch))
        dtype = self.neck.weight.dtype
        x = torch.randn(len(batch), 3, self.cells, self.cells, generator=generator, dtype=torch.float64).to(dtype)
        maps = {"bev_block1": self.block(x), "bev_neck": self.neck(x)}
        head = self.head(maps["bev_neck"]) if "head" in want else ()
        return Outputs({name: maps[name] for name in want if name != "head"}, head)


@pytest.fixture
def toy_detector() -> Callable[..., ToyDetector]:
    return ToyDetector


@pytest.fixture
def toy_scene() -> Callable[..., Scene]:
    """The outputs of two toy detectors for two samples with boxes."""

    def make(
        method: DistillBev, teacher: nn.Module, student: nn.Module, dtype: torch.dtype = torch.float32
    ) -> Scene:
        boxes = [
            [(2.0, -3.0, 4.6, 1.9, 0.3), (2.4, -2.6, 1.5, 1.2, 0.0), (-5.0, 4.0, 0.7, 0.7, 0.0)],
            [(0.5, 6.0, 10.0, 2.9, 1.2)],
        ]
        batch = make_batch(boxes, dtype)
        truth = [torch.zeros(2, len(task), 16, 16, dtype=dtype) for task in TASKS]
        truth[0][0, 0, 5, 10] = truth[1][1, 1, 14, 8] = 1.0
        with torch.no_grad():
            seen = teacher(batch, method.teacher_taps)
        return Scene(seen, student(batch, method.student_taps), make_targets(truth), batch)

    return make
