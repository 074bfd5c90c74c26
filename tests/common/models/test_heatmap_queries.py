"""Queries that start at the peaks of a heat map."""

import pytest
import torch
from bevkd_common.config.detectors.detr_head import DetrHeadConfig
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.heads.detr_head import build_detr_head
from bevkd_common.models.heads.heatmap_queries import HeatmapQueries

GRID = Grid(-4.0, -2.0, 1.0, 8, 4)
CLASSES = ("car", "pedestrian")


@pytest.fixture
def queries() -> HeatmapQueries:
    """Of four channels, whose heat map is the first two of them."""
    torch.manual_seed(0)
    made = HeatmapQueries(4, GRID, 2, count=3)
    made.heatmap = torch.nn.Conv2d(4, 2, 1, bias=False)
    made.heatmap.weight.data = torch.eye(4)[:2, :, None, None]
    return made


def test_queries_start_at_the_peaks(queries):
    bev = torch.full((1, 4, 4, 8), -5.0)
    bev[0, 2:] = torch.arange(32.0).view(4, 8)
    bev[0, 0, 1, 6] = 2.0  # a car
    bev[0, 0, 1, 5] = 1.5  # its flank, higher than the next peaks
    bev[0, 1, 3, 0] = 1.0  # a pedestrian in a corner
    bev[0, 1, 1, 6] = 0.5  # another where the car is
    start, logits = queries(bev)
    assert torch.equal(logits, bev[:, :2])
    # Cells (6, 1), (0, 3), (6, 1) of 8 x 4, by their centres.
    expected = [[6.5 / 8, 1.5 / 4, 0.5], [0.5 / 8, 3.5 / 4, 0.5], [6.5 / 8, 1.5 / 4, 0.5]]
    torch.testing.assert_close(start.reference, torch.tensor([expected]))
    features = torch.stack([bev[0, :, 1, 6], bev[0, :, 3, 0], bev[0, :, 1, 6]])
    content = features + queries.class_embedding.weight[[0, 1, 1]]
    torch.testing.assert_close(start.content, content[None])
    torch.testing.assert_close(start.position[0, 0], start.position[0, 2])


def test_heights_are_learned_by_class(queries):
    bev = torch.full((1, 4, 4, 8), -5.0)
    bev[0, 0, 1, 6], bev[0, 1, 3, 0] = 2.0, 1.0
    queries.heights.data = torch.tensor([0.0, 1.0])
    start, _ = queries(bev)
    assert start.reference[0, :2, 2].tolist() == pytest.approx([0.5, 0.731059], abs=1e-6)
    start.reference[0, 1, 2].backward()
    assert queries.heights.grad.tolist() == pytest.approx([0.0, 0.196612], abs=1e-6)


def test_targets_are_gaussians_of_the_class(queries):
    boxes = torch.tensor([[[-1.5, 0.5, 0, 2, 1, 1, 0, 0, 0], [2.5, -1.5, 0, 1, 1, 1, 0, 0, 0], [0.0] * 9]])
    heatmap = queries.targets(Boxes(boxes), torch.tensor([[1, 0, -1]]))
    assert (heatmap == 1).nonzero().tolist() == [[0, 0, 0, 6], [0, 1, 2, 2]]
    # Radius 1: a standard deviation of half a cell.
    assert heatmap[0, 1, 2, 1:5].tolist() == pytest.approx([0.135335, 1.0, 0.135335, 0.0], abs=1e-6)


def head(**changes):
    torch.manual_seed(0)
    config = DetrHeadConfig(queries=6, layers=2, attention_heads=2, hidden_channels=16, dropout=0.0)
    return build_detr_head(config.model_copy(update=changes), 8, GRID, CLASSES)


def test_the_head_learns_its_heat_map_beside_the_boxes():
    made = head(queries_from="heatmap", heatmap_weight=3.0)
    bev = torch.randn(2, 8, 4, 8, requires_grad=True)
    predictions = made(bev)
    assert [set(prediction) for prediction in predictions] == [
        {"class_logits", "box_code", "heatmap"}, {"class_logits", "box_code"},
    ]  # fmt: skip
    boxes = torch.tensor([[-1.5, 0.5, 0, 2, 1, 1, 0, 0, 0], [2.5, -1.5, 0, 1, 1, 1, 0, 0, 0]]).expand(2, 2, 9)
    targets = made.targets(predictions, Boxes(boxes), torch.tensor([[1, 0], [1, -1]]))
    terms = made.losses(predictions, targets)
    assert terms["heatmap"].weight == 3.0
    p = predictions[0]["heatmap"].double().sigmoid()
    loss = 0.0
    for index, target in zip(
        torch.cartesian_prod(*map(torch.arange, p.shape)), targets.heatmap.flatten(), strict=True
    ):
        q, t = p[tuple(index)], target.double()
        loss -= (1 - q) ** 2 * q.log() if t == 1 else (1 - t) ** 4 * q**2 * (1 - q).log()
    torch.testing.assert_close(terms["heatmap"].value.double(), loss / 3, rtol=1e-5, atol=1e-6)
    sum(term.value * term.weight for term in terms.values()).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_the_rest_of_the_head_does_not_know_where_queries_come_from():
    learned, peaks = head().state_dict(), head(queries_from="heatmap").state_dict()
    assert {name for name in learned if name not in peaks} == {
        "queries.weight", "reference_points.weight", "reference_points.bias",
    }  # fmt: skip
    assert {name.split(".")[0] for name in peaks if name not in learned} == {"heatmap_queries"}
