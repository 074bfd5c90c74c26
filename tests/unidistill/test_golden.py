"""One training step of each route, frozen: terms, gradients, parameters after the step; float64 on the CPU.

A change that is meant to change numbers regenerates the file, and says so in its commit:

    python tests/unidistill/test_golden.py --regenerate
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Outputs
from bevkd_common.models.heads.center_code import BRANCHES
from bevkd_common.models.heads.iou_head import IOU
from bevkd_common.models.taps import BevMap, HeadMaps, Taps
from torch import Tensor
from unidistill.build import build
from unidistill.config import UniDistillConfig

GOLDEN = Path(__file__).parent / "golden" / "one_step.json"
FINE, COARSE = Grid(-6.0, -4.0, 0.5, 24, 16), Grid(-6.0, -4.0, 1.0, 12, 8)
CONV = {"adapter": "conv1x1"}
LOW, HIGH = ({"teacher": name, "student": name} for name in ("bev_in", "bev_neck"))
ROUTES = {
    "lidar to camera": {"feature_weight": 100, "relation_weight": 40, "response_weight": 10},
    "camera to lidar": {
        "feature_weight": 10,
        "relation_weight": 5,
        "response_weight": 1,
        "low": LOW | CONV,
        "high": HIGH | CONV,
    },
    "both to camera": {
        "feature_weight": 10,
        "relation_weight": 5,
        "response_weight": 10,
        "preset": "official",
        "clamp": 1e-3,
    },
    "both to lidar": {
        "feature_weight": 10,
        "relation_weight": 1,
        "response_weight": 10,
        "low": LOW | {"adapter": "conv3x3_bn_relu"},
        "area": "gaussian",
    },
}
"""The paper's weights; between them the routes try every adapter, an area, and the quirks of the release."""


def wave(*shape: int, pace: float, offset: float = 0.0) -> Tensor:
    """Numbers that look arbitrary and come from no random generator."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(count * pace) + offset).view(shape)


def taps_and_outputs(name: str, grid: Grid, pace: float) -> tuple[Taps, Outputs]:
    head = HeadMaps(grid, (("car",), ("bus", "truck")), (*BRANCHES, IOU))
    taps = Taps(name, {"bev_in": BevMap(4, grid), "bev_neck": BevMap(5, grid), "head": head})
    cells = (grid.ny, grid.nx)
    maps = {
        key: wave(2, taps.specs[key].channels, *cells, pace=pace + i)
        for i, key in enumerate(("bev_in", "bev_neck"))
    }
    tasks = []
    for index, task in enumerate(head.tasks):
        widths = {"heatmap": len(task), **dict(head.layout)}
        tasks.append(
            {
                key: wave(2, width, *cells, pace=pace + 0.1 * i + index)
                for i, (key, width) in enumerate(widths.items())
            }
        )
    return taps, Outputs({key: value.requires_grad_() for key, value in maps.items()}, tasks)


def one_step(route: str) -> dict:
    teacher_taps, teacher = taps_and_outputs("teacher", FINE, 0.37)
    student_taps, student = taps_and_outputs("student", COARSE if "camera to" in route else FINE, 0.71)
    method = build(UniDistillConfig.model_validate(ROUTES[route]), teacher_taps, student_taps).double()
    with torch.no_grad():
        for index, parameter in enumerate(method.parameters()):
            parameter.copy_(wave(*parameter.shape, pace=0.9 + 0.1 * index, offset=0.1))
    for task in student.head:
        for value in task.values():
            value.requires_grad_()
    boxes = torch.zeros(2, 3, 9, dtype=torch.float64)
    boxes[0, :, [0, 1, 3, 4, 6]] = torch.tensor(
        [[1.0, -1.0, 4.0, 1.8, 0.6], [3.2, 2.8, 1.6, 1.4, 0.0], [-2.9, 2.1, 0.5, 0.4, 1.0]], dtype=torch.float64
    )
    boxes[1, 0, [0, 1, 3, 4, 6]] = torch.tensor([-1.5, 0.5, 5.0, 2.0, -1.1], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 0], [0, -1, -1]])
    eye = torch.eye(4).expand(2, 4, 4)
    batch = Batch(("a", "b"), ("a", "b"), Boxes(boxes), labels, None, None, (), eye, eye.double())

    losses = method(teacher, student, None, batch)
    sum(term.value * term.weight for term in losses.terms.values()).backward()
    leaves = {
        **dict(method.named_parameters()),
        **{f"student.{key}": value for key, value in student.taps.items()},
        **{
            f"student.{index}.{key}": value
            for index, task in enumerate(student.head)
            for key, value in task.items()
        },
    }
    gradients = {
        key: {"mean": leaf.grad.mean().item(), "rms": leaf.grad.square().mean().sqrt().item()}
        for key, leaf in leaves.items()
        if leaf.grad is not None
    }
    parameters = list(method.parameters())
    if parameters:
        torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01).step()
    return {
        "terms": {key: [term.value.item(), term.weight] for key, term in losses.terms.items()},
        "metrics": {key: metric.item() for key, metric in losses.metrics.items()},
        "gradients": gradients,
        "parameters": {key: value.flatten().tolist() for key, value in method.named_parameters()},
    }


def flat(value: object, path: str = "") -> dict[str, float]:
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in flat(item, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {
            key: leaf for index, item in enumerate(value) for key, leaf in flat(item, f"{path}/{index}").items()
        }
    return {path: float(value)}


@pytest.mark.parametrize("route", ROUTES)
def test_one_step_is_what_it_was(route):
    expected, actual = flat(json.loads(GOLDEN.read_text())[route]), flat(one_step(route))
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_the_frozen_steps_exercise_everything():
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 4
    for route, step in golden.items():
        assert len(step["terms"]) == 4
        assert all(value > 1e-3 for value, _ in step["terms"].values()), route
        assert all(gradient["rms"] > 1e-8 for gradient in step["gradients"].values()), route
    assert [len(step["parameters"]) for step in golden.values()] == [0, 4, 0, 3]
    # On other cells the offsets in cells are left out.
    assert [len(step["gradients"]) for step in golden.values()] == [16, 18, 16, 19]


if __name__ == "__main__" and "--regenerate" in sys.argv:
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({route: one_step(route) for route in ROUTES}, indent=1) + "\n")
