"""One training step, frozen: terms, metrics, gradients, parameters after the step; float64 on the CPU.

A change that is meant to change numbers regenerates the file, and says so in its commit:

    python tests/distillbev/test_golden.py --regenerate
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import CenterTargets, Outputs
from bevkd_common.models.taps import BevMap, HeadMaps, Taps
from distillbev.build import build
from distillbev.config import DistillBevConfig
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "one_step.json"
TAPS = [
    {
        "name": "bev_block1",
        "teacher": "bev_block1",
        "student": "bev_block0",
        "adapter": "up2_mlp2",
        "alpha": 5e-3,
        "beta": 3e-2,
        "lam": 1e-3,
        "normalize": "teacher_rms",
    },
    {
        "name": "bev_neck",
        "teacher": "bev_neck",
        "student": "bev_in",
        "adapter": "conv1x1",
        "false_positives": True,
    },
]


def wave(*shape: int, pace: float, offset: float = 0.0) -> Tensor:
    """Numbers that look arbitrary and come from no random generator."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(count * pace) + offset).view(shape)


def one_step(preset: str) -> dict:
    fine, coarse, coarsest = (Grid(-5.0, -4.0, cell, int(12 / cell), int(8 / cell)) for cell in (1.0, 2.0, 4.0))
    head = HeadMaps(fine, (("car",), ("bus", "truck")), ())
    teacher_taps = {"bev_block1": BevMap(4, coarse), "bev_neck": BevMap(3, fine), "head": head}
    student_taps = {"bev_block0": BevMap(3, coarsest), "bev_in": BevMap(2, fine), "head": head}
    config = DistillBevConfig.model_validate({"taps": TAPS, "inherit": "none", "preset": preset})
    method = build(config, Taps("teacher", teacher_taps), Taps("student", student_taps)).double()
    with torch.no_grad():
        for index, parameter in enumerate(method.parameters()):
            parameter.copy_(wave(*parameter.shape, pace=0.9 + 0.1 * index, offset=0.1))
    method.layers[0].teacher_rms.fill_(0.8)

    teacher = Outputs(
        {"bev_block1": wave(2, 4, 4, 6, pace=0.37).relu(), "bev_neck": wave(2, 3, 8, 12, pace=0.53).relu()},
        [
            {"heatmap": 2 * wave(2, 1, 8, 12, pace=1.3, offset=-1.6)},
            {"heatmap": 2 * wave(2, 2, 8, 12, pace=1.7, offset=-1.6)},
        ],
    )
    maps = {"bev_block0": wave(2, 3, 2, 3, pace=0.71), "bev_in": wave(2, 2, 8, 12, pace=0.43)}
    student = Outputs({name: value.requires_grad_() for name, value in maps.items()})
    truth = [torch.zeros(2, 1, 8, 12).double(), wave(2, 2, 8, 12, pace=2.1, offset=-0.6).clamp(min=0)]
    boxes = torch.zeros(2, 3, 9, dtype=torch.float64)
    boxes[0, :, [0, 1, 3, 4, 6]] = torch.tensor(
        [[1.0, -1.0, 4.0, 1.8, 0.6], [1.2, -0.8, 1.6, 1.4, 0.0], [-2.9, 2.1, 0.5, 0.4, 1.0]], dtype=torch.float64
    )
    boxes[1, 0, [0, 1, 3, 4, 6]] = torch.tensor([-1.5, 0.5, 3.0, 2.0, -1.1], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 0], [0, -1, -1]])
    eye = torch.eye(4).expand(2, 4, 4)
    batch = Batch(("a", "b"), ("a", "b"), Boxes(boxes), labels, None, None, (), eye, eye.double())

    output = method(teacher, student, CenterTargets(truth, (), (), ()), batch)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2, weight_decay=0.01)
    sum(term.value * term.weight for term in output.terms.values()).backward()
    leaves = {**dict(method.named_parameters()), **{f"student.{name}": value for name, value in maps.items()}}
    gradients = {
        name: {"mean": leaf.grad.mean().item(), "rms": leaf.grad.square().mean().sqrt().item()}
        for name, leaf in leaves.items()
    }
    optimizer.step()
    return {
        "terms": {name: [term.value.item(), term.weight] for name, term in output.terms.items()},
        "metrics": {name: metric.item() for name, metric in output.metrics.items()},
        "gradients": gradients,
        "parameters": {name: value.flatten().tolist() for name, value in method.named_parameters()},
        "buffers": {name: value.flatten().tolist() for name, value in method.named_buffers()},
    }


def flat(value: object, path: str = "") -> dict[str, float]:
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in flat(item, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {
            key: leaf for index, item in enumerate(value) for key, leaf in flat(item, f"{path}/{index}").items()
        }
    return {path: float(value)}


@pytest.mark.parametrize("preset", ["clean", "official"])
def test_one_step_is_what_it_was(preset):
    expected, actual = flat(json.loads(GOLDEN.read_text())[preset]), flat(one_step(preset))
    assert actual.keys() == expected.keys()
    assert len(actual) > 100
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_the_frozen_step_exercises_everything():
    golden = json.loads(GOLDEN.read_text())
    for preset, step in golden.items():
        assert len(step["terms"]) == 7
        assert all(value > 1e-3 for value, _ in step["terms"].values()), preset
        regions = [
            value for name, value in step["metrics"].items() if "/cells_" in name and "block1/cells_fp" not in name
        ]
        assert len(regions) == 5
        assert all(count > 0 for count in regions)
        still = {name for name, gradient in step["gradients"].items() if gradient["rms"] < 1e-6}
        assert still == {f"layers.0.adapter.1.{index}.bias" for index in (0, 3)}, "biases before a batch norm"
    assert golden["clean"]["terms"] != golden["official"]["terms"]
    assert len(golden) == 2


if __name__ == "__main__" and "--regenerate" in sys.argv:
    GOLDEN.parent.mkdir(exist_ok=True)
    steps = {preset: one_step(preset) for preset in ("clean", "official")}
    GOLDEN.write_text(json.dumps(steps, indent=1) + "\n")
