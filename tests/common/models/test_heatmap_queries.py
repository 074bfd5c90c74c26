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
    start, maps = queries(bev)
    assert set(maps) == {"heatmap"}
    assert start.heading is None
    assert torch.equal(maps["heatmap"], bev[:, :2])
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


@pytest.fixture
def turning() -> HeatmapQueries:
    """The same, whose headings are the last two channels."""
    torch.manual_seed(0)
    made = HeatmapQueries(4, GRID, 2, count=3, headings=True)
    made.heatmap, made.headings = (torch.nn.Conv2d(4, 2, 1, bias=False) for _ in range(2))
    made.heatmap.weight.data, made.headings.weight.data = torch.eye(4)[:, :, None, None].split(2)
    return made


def test_queries_start_from_the_heading_of_their_cell(turning):
    bev = torch.full((1, 4, 4, 8), -5.0)
    bev[0, 0, 1, 6], bev[0, 1, 3, 0] = 2.0, 1.0
    bev[0, 2:, 1, 6], bev[0, 2:, 3, 0] = torch.tensor([0.6, 0.8]), torch.tensor([-1.0, 0.0])
    start, maps = turning(bev.requires_grad_())
    assert torch.equal(maps["headings"], bev[:, 2:])
    torch.testing.assert_close(start.heading[0, :2], torch.tensor([[0.6, 0.8], [-1.0, 0.0]]))
    assert not start.heading.requires_grad


def test_the_loss_of_headings_worked_out_by_hand(turning):
    headings = torch.zeros(1, 2, 4, 8)
    headings[0, :, 1, 6] = torch.tensor([0.5, 0.25])
    code = torch.zeros(1, 3, 10)
    # Columns x + 4, rows y + 2: the first box is in cell (6, 1), the second in (0, 3), the third does not count.
    code[0, :, :2] = torch.tensor([[2.9, -0.1], [-3.5, 1.5], [50.0, 50.0]])
    code[0, :, 6:8] = torch.tensor([[1.0, 0.0], [0.0, -1.0], [9.0, 9.0]])
    loss = turning.heading_loss(headings, code, torch.tensor([[True, True, False]]))
    assert loss.item() == pytest.approx(0.5 + 0.25 + 1.0)


def test_the_decoder_corrects_headings_layer_by_layer():
    made = head(queries_from="heatmap", heading_weight=2.0)
    with torch.no_grad():
        for branch in made.decoder.box_branches:
            branch[-1].weight.zero_()
            branch[-1].bias.zero_()
            branch[-1].bias[6:8] = torch.tensor([0.25, -0.5])
    predictions = made(torch.randn(2, 8, 4, 8))
    start = made.heatmap_queries
    dense = predictions[0]["headings"].flatten(2)
    for layer, prediction in enumerate(predictions, start=1):
        begun = prediction["box_code"][..., 6:8] - layer * torch.tensor([0.25, -0.5])
        # Each is that of some cell.
        assert ((begun[:, :, None] - dense.transpose(1, 2)[:, None]).abs().sum(-1).min(-1).values < 1e-5).all()
    boxes = torch.tensor([[-1.5, 0.5, 0, 2, 1, 1, 0, 0, 0], [2.5, -1.5, 0, 1, 1, 1, 0, 0, 0]]).expand(2, 2, 9)
    targets = made.targets(predictions, Boxes(boxes), torch.tensor([[1, 0], [1, -1]]))
    term = made.losses(predictions, targets)["headings"]
    alone = start.heading_loss(predictions[0]["headings"], targets.code, targets.labels >= 0)
    assert (term.weight, term.value.item()) == (2.0, pytest.approx(alone.item() / 3))


def test_headings_to_start_from_need_a_heat_map():
    with pytest.raises(ValueError, match="needs `queries_from: heatmap`"):
        DetrHeadConfig(heading_weight=1.0)
