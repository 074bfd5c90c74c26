"""The IoU-aware head: hand-computed losses, assignments and scores."""

from __future__ import annotations

import math

import pytest
import torch
from bevkd_common.config.detectors.iou_head import IouHeadConfig
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import HeatmapTargets
from bevkd_common.models.heads.iou_head import IouHead, build_iou_head, rectified
from bevkd_common.models.heads.iou_losses import hard_focal_loss, snapped_iou, uncertainty_weighted, upright_iou
from bevkd_common.models.taps import Meaning
from pydantic import ValidationError

CLASSES = ("car", "truck", "bus")
TASKS = (("car",), ("bus", "truck"))
PAPER = Grid(-54.0, -54.0, 0.6, 180, 180)
SMALL = Grid(-8.0, -8.0, 1.0, 16, 16)


def make_head(grid: Grid = SMALL, **changes: object) -> IouHead:
    config = IouHeadConfig.model_validate({"tasks": TASKS, "channels": 8, **changes})
    return build_iou_head(config, 4, grid, CLASSES).eval()


def boxes(*rows: tuple[float, ...]) -> Boxes:
    """One sample: x, y, l, w, yaw of each."""
    return Boxes(torch.tensor([[[x, y, 0.5, l_, w, 1.5, yaw, 1.0, 0.0] for x, y, l_, w, yaw in rows]]))


def test_learned_weights_by_hand():
    losses = torch.tensor([[2.0, 4.0, 6.0]])
    weighted, penalty = uncertainty_weighted(losses, torch.ones(3))
    assert (weighted.sum() + penalty).item() == pytest.approx(8.079442, abs=1e-5)
    _, penalty = uncertainty_weighted(torch.zeros(6, 3), torch.ones(3))
    assert penalty.item() == pytest.approx(12.476649, abs=1e-5)
    weighted, penalty = uncertainty_weighted(losses, torch.tensor([1.0, 2.0, 1.0]))
    assert weighted.tolist() == pytest.approx([1.0, 0.5, 3.0])
    assert penalty.item() == pytest.approx(2 * math.log(2) + math.log(5))


@pytest.mark.parametrize(("target", "expected"), [((1.0, 0.0, 0.0), 1.442324), ((0.0, 0.0, 0.0), 1.528930)])
def test_focal_loss_by_hand(target, expected):
    logits = torch.tensor([0.5, 0.1, 0.9]).logit()
    assert hard_focal_loss(logits, torch.tensor(target)).item() == pytest.approx(expected, abs=1e-5)


def test_nine_cells_predict_a_box():
    """A centre at (90.5, 89.67) cells: its two nearest columns and three nearest rows, and three more."""
    head = make_head(PAPER)
    targets = head.targets(boxes((0.3, -0.2, 4.0, 2.0, 0.3)), torch.tensor([[0]]))
    assert isinstance(targets, HeatmapTargets)
    assert targets.heatmaps[0].sum() == 9
    assert targets.heatmaps[1].sum() == 0
    cells = {(int(flat) % 180, int(flat) // 180) for flat in targets.place[:, 2]}
    sure = {(i, j) for i in (90, 91) for j in (89, 90, 91)} | {(89, 90), (92, 90)}
    assert sure < cells
    assert cells - sure < {(89, 89), (92, 89)}
    row = targets.place[:, 2].tolist().index(90 * 180 + 90)
    assert targets.code[row, :2].tolist() == pytest.approx([0.5, -1 / 3], abs=1e-4)
    assert targets.code[row, 2:].tolist() == pytest.approx(
        [0.5, math.log(4), math.log(2), math.log(1.5), math.sin(0.3), math.cos(0.3), 1.0, 0.0], abs=1e-4
    )


def test_a_cell_between_two_boxes_of_a_task_predicts_the_nearer_one():
    head = make_head()
    pair = boxes((0.1, 0.1, 4.0, 2.0, 0.0), (2.1, 0.1, 8.0, 3.0, 0.0), (0.1, 0.1, 9.0, 3.0, 0.0))
    targets = head.targets(pair, torch.tensor([[1, 2, 0]]))
    lengths = {
        (int(flat) % 16 - 8, int(flat) // 16 - 8): box[3].item()
        for (_, task, flat), box in zip(targets.place.tolist(), targets.boxes, strict=True)
        if task == 1
    }
    assert lengths[0, 0] == lengths[1, 0] == 4.0
    assert lengths[2, 0] == lengths[3, 0] == 8.0
    assert len(lengths) < 18
    bus, truck = targets.heatmaps[1][0]
    assert (truck.sum() + bus.sum()).item() == len(lengths)
    assert not (truck * bus).any()
    assert targets.heatmaps[0].sum() == 9


def test_at_a_corner_of_the_grid_there_are_fewer_cells_and_without_boxes_none():
    head = make_head()
    beside = head.targets(boxes((-7.9, -7.9, 1.0, 1.0, 0.0), (40.0, 0.0, 1.0, 1.0, 0.0)), torch.tensor([[0, 0]]))
    cells = {(int(flat) % 16, int(flat) // 16) for flat in beside.place[:, 2]}
    assert {(0, 0), (1, 0), (0, 1), (1, 1)} < cells
    assert len(cells) == 9
    none = head.targets(Boxes(torch.zeros(2, 0, 9)), torch.zeros(2, 0, dtype=torch.long))
    assert none.place.shape == (0, 3)
    losses = head.losses(head(torch.zeros(2, 4, 16, 16)), none)
    assert all(term.value.isfinite() for term in losses.values())
    assert losses["boxes"].value == losses["iou"].value == losses["overlap"].value == 0


def test_padded_boxes_do_not_count():
    head = make_head()
    one = head.targets(boxes((1.0, 1.0, 4.0, 2.0, 0.0)), torch.tensor([[0]]))
    two = head.targets(boxes((1.0, 1.0, 4.0, 2.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0)), torch.tensor([[0, -1]]))
    assert torch.equal(one.place, two.place)


def test_overlaps_by_hand():
    first = boxes((0.0, 0.0, 4.0, 2.0, 0.0))
    second = boxes((1.0, 0.0, 2.0, 4.0, math.pi / 2))
    flat = [Boxes(found.tensor[0]) for found in (first, second)]
    # Turned by a quarter, the second covers x -1 to 3 and y -1 to 1.
    assert snapped_iou(*flat).item() == pytest.approx(6 / 10)
    # Without its yaw it covers x 0 to 2 and y -2 to 2.
    assert upright_iou(*flat).item() == pytest.approx(4 / 12)
    swapped = upright_iou(*flat, swap_width_and_height=True)
    assert swapped.item() == pytest.approx((2 * 1.5 * 2) / (12 + 12 - 2 * 1.5 * 2))
    diagonal = [Boxes(boxes((0.0, 0.0, 4.0, 2.0, yaw)).tensor[0]) for yaw in (0.7, 0.9)]
    assert snapped_iou(*diagonal).item() == pytest.approx(4 / 12)


def test_perfect_predictions_cost_only_what_the_learned_weights_cost():
    head = make_head()
    found = boxes((1.3, 2.2, 4.0, 2.0, 0.3), (-4.0, -3.0, 10.0, 3.0, 0.0))
    targets = head.targets(found, torch.tensor([[0, 1]]))
    predictions = predictions_of(head, targets)
    losses = head.losses(predictions, targets)
    assert losses["boxes"].value.item() == pytest.approx(0, abs=1e-4)
    assert losses["iou"].value.item() == pytest.approx(0, abs=1e-4)
    assert losses["heatmap"].value.item() == pytest.approx(0, abs=1e-3)
    assert losses["overlap"].value.item() == pytest.approx(0, abs=1e-4)
    assert losses["overlap"].weight == 5.0
    assert losses["penalty"].value.item() == pytest.approx(2 * 3 * math.log(2), abs=1e-5)


def test_losses_by_hand():
    """Heights 0.4 m off at every positive of one task: 0.4 / 2 of boxes, and the IoU of volumes 1.1 / 1.9."""
    head = make_head()
    targets = head.targets(boxes((1.3, 2.2, 4.0, 2.0, 0.0)), torch.tensor([[0]]))
    predictions = predictions_of(head, targets)
    predictions[0]["height"] += 0.4
    losses = head.losses(predictions, targets)
    share = 9 / 9.0001
    assert losses["boxes"].value.item() == pytest.approx(0.2 * share, abs=1e-5)
    assert losses["overlap"].value.item() == pytest.approx((1 - 1.1 / 1.9) * share, abs=1e-4)
    predictions[0]["height"] += 1.0
    assert head.losses(predictions, targets)["overlap"].value == 0


def test_unknown_velocities_do_not_count():
    head = make_head()
    unknown = boxes((1.3, 2.2, 4.0, 2.0, 0.0))
    unknown.tensor[..., 7:] = torch.nan
    targets = head.targets(unknown, torch.tensor([[0]]))
    predictions = predictions_of(head, targets)
    predictions[0]["vel"] += 5.0
    assert head.losses(predictions, targets)["boxes"].value.item() == pytest.approx(0, abs=1e-4)


def test_gradients_reach_every_branch_and_the_learned_weights():
    head = make_head().train()
    targets = head.targets(boxes((1.3, 2.2, 4.0, 2.0, 0.3), (-4.0, -3.0, 10.0, 3.0, 0.0)), torch.tensor([[0, 1]]))
    generator = torch.Generator().manual_seed(0)
    losses = head.losses(head(torch.randn(1, 4, 16, 16, generator=generator)), targets)
    sum(term.value * term.weight for term in losses.values()).backward()
    silent = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert silent == []
    assert head.loss_weights.grad is not None
    assert (head.loss_weights.grad != 0).tolist() == [True] * 3 + [False] * 9


def test_what_was_encoded_is_decoded():
    head = make_head()
    found = boxes((1.3, 2.2, 4.0, 2.0, 0.3), (-4.0, -3.0, 10.0, 3.0, 0.0))
    targets = head.targets(found, torch.tensor([[0, 1]]))
    (decoded,) = head.decode(predictions_of(head, targets))
    assert sorted(decoded.labels.tolist()) == [0, 1]
    order = decoded.labels.argsort()
    torch.testing.assert_close(decoded.boxes.tensor[order], found.tensor[0], atol=1e-4, rtol=0)


def test_the_predicted_iou_orders_the_suppression_and_leaves_the_score():
    assert rectified(torch.tensor(0.25), torch.tensor(0.0), 0.65).item() == pytest.approx(0.392292, abs=1e-6)
    head = make_head()
    targets = head.targets(boxes((1.0, 1.0, 4.0, 2.0, 0.0)), torch.tensor([[0]]))
    predictions = predictions_of(head, targets)
    predictions[0]["heatmap"].fill_(-9)
    predictions[0]["iou"].fill_(-0.9)
    better = 9 * 16 + 9
    worse = better + 1
    for cell, score, iou in ((worse, 0.5, -0.9), (better, 0.25, 0.9)):
        predictions[0]["heatmap"].view(-1)[cell] = math.log(score / (1 - score))
        predictions[0]["iou"].view(-1)[cell] = iou
    (decoded,) = head.decode(predictions)
    assert decoded.scores.tolist() == pytest.approx([0.25])


def test_large_boxes_are_cut_and_the_head_describes_its_branches():
    head = make_head()
    targets = head.targets(boxes((1.0, 1.0, 4.0, 2.0, 0.0)), torch.tensor([[0]]))
    predictions = predictions_of(head, targets)
    predictions[0]["dim"].fill_(9.0)
    (decoded,) = head.decode(predictions)
    assert decoded.boxes.size.max() == 30.0
    assert [branch.meaning for branch in head.maps.branches][-1] is Meaning.IOU
    assert head.maps.problem(predictions, 1) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "must not be empty"),
        ({"tasks": (("car",), ("car",))}, "name a class twice"),
        ({"code_weights": (1.0,)}, "must be 10 numbers"),
        ({"nms_threshold": 1.0}, "less than 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        IouHeadConfig.model_validate(changes)


def test_tasks_that_do_not_fit_the_classes_are_refused():
    with pytest.raises(UserError, match=r"missing are none, unknown are tram; change `head\.tasks`"):
        make_head(tasks=(*TASKS, ("tram",)))


def predictions_of(head: IouHead, targets) -> list[dict[str, torch.Tensor]]:
    """Predictions of one sample that equal the targets, with an IoU of 1."""
    cells = (head.maps.grid.ny, head.maps.grid.nx)
    predictions = []
    for task, heatmap in enumerate(targets.heatmaps):
        code = torch.zeros(10, cells[0] * cells[1])
        own = targets.place[:, 1] == task
        code[:, targets.place[own, 2]] = targets.code[own].nan_to_num().T
        values = code.unflatten(1, cells)[None].split([2, 1, 3, 2, 2], dim=1)
        predictions.append(
            {
                **dict(
                    zip(("reg", "height", "dim", "rot", "vel"), (value.clone() for value in values), strict=True)
                ),
                "iou": torch.ones(1, 1, *cells),
                "heatmap": torch.where(heatmap == 1, 9.0, -9.0),
            }
        )
    return predictions
