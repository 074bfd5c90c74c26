import math

import pytest
import torch
from bevkd_common.config.detectors.center_head import CenterHeadConfig, NmsConfig
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import YAW, Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import wrap_angle
from bevkd_common.models.heads import center_head
from bevkd_common.models.heads.center_head import CenterHead, build_center_head
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

GRID = Grid(x0=-6.0, y0=-8.0, cell=0.8, nx=25, ny=20)
# The data set's order differs from the order of the tasks.
CLASSES = ("cone", "car", "bus", "truck")
TASKS = (("car",), ("truck", "bus", "cone"))
CIRCLES = (NmsConfig(threshold=4.0), NmsConfig(threshold=0.25))
BRANCHES = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


def head_of(grid: Grid = GRID, **settings) -> CenterHead:
    torch.manual_seed(0)
    config = CenterHeadConfig(**{"tasks": TASKS, "channels": 8, "nms": CIRCLES} | settings)
    return build_center_head(config, 6, grid, CLASSES)


def box(x: float, y: float, length: float = 4.0, width: float = 2.0, yaw: float = 0.0) -> list[float]:
    return [x, y, 0.5, length, width, 1.5, yaw, 1.0, -0.5]


def predictions_of(head: CenterHead, *found: tuple[list[float], str, float]) -> list[dict[str, torch.Tensor]]:
    """Logits of one sample that decode to these boxes with these scores, and to nothing else."""
    grid, tasks = head.maps.grid, head.maps.tasks
    maps = [
        {name: torch.zeros(1, count, grid.ny, grid.nx) for name, count in BRANCHES.items()}
        | {"heatmap": torch.full((1, len(task), grid.ny, grid.nx), -20.0)}
        for task in tasks
    ]
    for row, name, score in found:
        task = next(t for t, names in enumerate(tasks) if name in names)
        i, j = (row[0] - grid.x0) / grid.cell, (row[1] - grid.y0) / grid.cell
        at = (0, slice(None), int(j), int(i))
        maps[task]["reg"][at] = torch.tensor([i - int(i), j - int(j)])
        maps[task]["height"][at] = row[2]
        maps[task]["dim"][at] = torch.tensor(row[3:6]).log()
        maps[task]["rot"][at] = torch.tensor([math.sin(row[6]), math.cos(row[6])])
        maps[task]["vel"][at] = torch.tensor(row[7:])
        maps[task]["heatmap"][0, tasks[task].index(name), int(j), int(i)] = math.log(score / (1 - score))
    return maps


def decoded(head: CenterHead, *found: tuple[list[float], str, float]) -> list[tuple[str, float]]:
    (detections,) = head.decode(predictions_of(head, *found))
    return [
        (CLASSES[label], round(score, 3))
        for label, score in zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    ]


def test_paper_size_has_the_parameters_of_the_released_heads():
    grid = Grid(-51.2, -51.2, 0.8, 128, 128)
    names = tuple(name for task in CenterHeadConfig().tasks for name in task)
    counts = {512: 1_667_142, 384: 1_593_414, 256: 1_519_686}
    for channels, expected in counts.items():
        head = build_center_head(CenterHeadConfig(), channels, grid, names)
        assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_logits_come_task_by_task_in_the_order_of_the_branches():
    head = head_of()
    maps = head(torch.randn(2, 6, 20, 25))
    assert [list(task) for task in maps] == [[*BRANCHES, "heatmap"]] * 2
    assert list(head.maps.layout) == list(BRANCHES.items())
    for task, names in zip(maps, TASKS, strict=True):
        widths = BRANCHES | {"heatmap": len(names)}
        assert {name: tuple(value.shape) for name, value in task.items()} == {
            name: (2, width, 20, 25) for name, width in widths.items()
        }


def test_heat_maps_start_at_a_probability_of_a_tenth():
    head = head_of()
    heads = [task["heatmap"][1].bias for task in head.task_heads]
    assert len(heads) == 2
    assert all((bias == -2.19).all() for bias in heads)
    maps = head(torch.randn(2, 6, 20, 25))
    assert all(abs(task["heatmap"].sigmoid().mean().item() - 0.1) < 0.03 for task in maps)


def test_norms_have_the_defaults():
    norms = [module for module in head_of().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + 2 * 6
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


def test_labels_find_their_task_and_channel_by_name():
    head = head_of()
    rows = [box(0, 0), box(2, 0), box(4, 0), box(6, 0), [0.0] * 9]
    targets = head.targets(Boxes(torch.tensor([rows])), torch.tensor([[0, 1, 2, 3, -1]]))
    assert [mask[0].tolist() for mask in targets.mask] == [
        [False, True, False, False, False],
        [True, False, True, True, False],
    ]
    # Rows of the heat map are truck, bus, cone; columns (x + 6) / 0.8.
    assert (targets.heatmaps[1][0] == 1).nonzero().tolist() == [[0, 10, 15], [1, 10, 12], [2, 10, 7]]


def test_headings_of_symmetric_classes_are_learned_up_to_half_a_turn():
    head = head_of(symmetric_classes=("bus",))
    rows = [box(0, 0, yaw=2.0), box(2, 0, yaw=2.0), box(4, 0, yaw=1.0)]
    targets = head.targets(Boxes(torch.tensor([rows])), torch.tensor([[1, 2, 2]]))
    # Only the bus that looks back is turned: sin 2 and cos 2 change their signs.
    expected = [[0.909297, -0.416147], [-0.909297, 0.416147], [0.841471, 0.540302]]
    assert targets.regression[0][0, :, 6:8].tolist() == [pytest.approx(pair, abs=1e-5) for pair in expected]


def test_losses_divide_each_task_by_its_own_positives():
    head = head_of(code_weights=(1.0,) * 10)
    rows = [box(0, 0), box(2, 0), box(6, 0)]
    targets = head.targets(Boxes(torch.tensor([rows])), torch.tensor([[0, 2, 1]]))
    maps = predictions_of(head)
    for task in maps:
        task["heatmap"].fill_(0.0)
    terms = head.losses(maps, targets)
    assert list(terms) == ["heatmap", "boxes"]
    assert [term.weight for term in terms.values()] == [1.0, 0.25]

    def focal(heatmap: torch.Tensor) -> float:
        beside = heatmap[heatmap < 1]
        return float((0.25 * math.log(2) * (1 - beside) ** 4).sum() + 0.25 * math.log(2) * (heatmap == 1).sum())

    car, others = (focal(heatmap) for heatmap in targets.heatmaps)
    assert terms["heatmap"].value.item() == pytest.approx(car / 1 + others / 2, rel=1e-5)
    l1 = targets.regression[0][0].abs().sum(dim=1)
    expected = l1[2] / (1 + 1e-4) + (l1[0] + l1[1]) / (2 + 1e-4)
    assert terms["boxes"].value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_without_boxes_are_finite():
    head = head_of()
    targets = head.targets(Boxes(torch.zeros(2, 3, 9)), torch.full((2, 3), -1))
    terms = head.losses(head(torch.randn(2, 6, 20, 25)), targets)
    assert 0 < terms["heatmap"].value < 1e4
    assert terms["boxes"].value == 0


def test_normalisers_are_averaged_over_ranks(monkeypatch):
    head = head_of()
    targets = head.targets(Boxes(torch.tensor([[box(0, 0), box(6, 0)]])), torch.tensor([[1, 0]]))
    maps = head(torch.randn(1, 6, 20, 25))
    alone = head.losses(maps, targets)
    seen = []
    monkeypatch.setattr(center_head, "mean_over_ranks", lambda counts: seen.append(counts) or counts * 2)
    shared = head.losses(maps, targets)
    assert [counts.tolist() for counts in seen] == [[1, 1, 1, 1]]
    assert shared["heatmap"].value.item() == pytest.approx(alone["heatmap"].value.item() / 2, rel=1e-5)
    assert shared["boxes"].value.item() == pytest.approx(alone["boxes"].value.item() / 2, rel=1e-3)


def test_code_weights_and_term_weights_come_from_the_configuration():
    head = head_of(code_weights=tuple(range(10)), heatmap_weight=3.0, box_weight=0.5)
    targets = head.targets(Boxes(torch.tensor([[box(0, 0)]])), torch.tensor([[1]]))
    terms = head.losses(predictions_of(head), targets)
    expected = (targets.regression[0][0, 0].abs() * torch.arange(10)).sum() / (1 + 1e-4)
    assert terms["boxes"].value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert [term.weight for term in terms.values()] == [3.0, 0.5]


def test_every_parameter_gets_a_gradient():
    head = head_of()
    rows = [box(0, 0), box(2, 0), box(4, 0), box(6, 0)]
    targets = head.targets(Boxes(torch.tensor([rows])), torch.tensor([[0, 1, 2, 3]]))
    terms = head.losses(head(torch.randn(1, 6, 20, 25)), targets)
    sum(term.value * term.weight for term in terms.values()).backward()
    named = list(head.named_parameters())
    assert len(named) == 3 + 2 * 6 * 5
    assert [name for name, parameter in named if parameter.grad is None or not parameter.grad.any()] == []


def test_a_prediction_is_decoded_to_its_box():
    head = head_of()
    row = [1.3, -2.1, 0.4, 4.6, 1.9, 1.6, 2.5, 3.0, -4.0]
    (detections,) = head.decode(predictions_of(head, (row, "bus", 0.8)))
    torch.testing.assert_close(detections.boxes.tensor, torch.tensor([row]), atol=1e-5, rtol=0)
    assert detections.scores.tolist() == pytest.approx([0.8])
    assert detections.labels.tolist() == [CLASSES.index("bus")]


@pytest.mark.parametrize("tasks", [TASKS, TASKS[::-1], (("bus", "car"), ("cone", "truck"))])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_keeps_its_label_whatever_the_tasks(name, tasks):
    head = head_of(tasks=tasks)
    assert decoded(head, (box(0, 0), name, 0.8)) == [(name, 0.8)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_targets_decode_to_the_boxes_they_were_made_of(seed):
    generator = torch.Generator().manual_seed(seed)
    head = head_of(nms=(NmsConfig(threshold=1e-6),) * 2)
    # One box in every fifth cell along x and y: Gaussians meet, cells do not.
    j, i = torch.meshgrid(torch.arange(2, 20, 5), torch.arange(2, 25, 5), indexing="ij")
    count = i.numel()
    offset = torch.rand(2, count, 2, generator=generator)
    ground = (torch.stack([i.flatten(), j.flatten()], dim=-1) + offset) * 0.8 + torch.tensor([-6.0, -8.0])
    rest = torch.rand(2, count, 7, generator=generator) * torch.tensor([3.0, 5, 2, 2, 6.2, 10, 10])
    rest = rest + torch.tensor([-2.0, 0.4, 0.4, 0.4, -3.1, -5, -5])
    boxes = Boxes(torch.cat([ground, rest], dim=-1))
    labels = torch.randint(-1, 4, (2, count), generator=generator)
    targets = head.targets(boxes, labels)
    maps = []
    for heatmap, code, indices, mask in zip(
        targets.heatmaps, targets.regression, targets.indices, targets.mask, strict=True
    ):
        dense = torch.zeros(2, 10, 20 * 25)
        for sample in range(2):
            dense[sample][:, indices[sample][mask[sample]]] = code[sample][mask[sample]].T
        parts = dense.view(2, 10, 20, 25).split(list(BRANCHES.values()), dim=1)
        # A Gaussian is at most 0.487 beside its centre: 0.5 is what lies between them.
        logits = (heatmap - 0.6) * 30
        maps.append(dict(zip(BRANCHES, parts, strict=True)) | {"heatmap": logits})
    found = head.decode(maps)
    for sample in range(2):
        present = labels[sample] >= 0
        wanted, got = boxes.tensor[sample, present], found[sample].boxes.tensor
        match = torch.cdist(wanted[:, :2], got[:, :2]).argmin(dim=1)
        assert sorted(match.tolist()) == list(range(len(got)))
        difference = got[match] - wanted
        difference[:, YAW] = wrap_angle(difference[:, YAW])
        assert difference.abs().max() < 1e-4
        assert torch.equal(found[sample].labels[match], labels[sample, present])


def test_scores_must_exceed_the_threshold_and_come_best_first():
    head = head_of()
    found = [(box(0, 0), "bus", 0.3), (box(6, 0), "car", 0.2), (box(3, 5), "truck", 0.9), (box(9, 5), "cone", 0.09)]
    assert decoded(head, *found) == [("truck", 0.9), ("bus", 0.3), ("car", 0.2)]
    assert decoded(head_of(score_threshold=0.25), *found) == [("truck", 0.9), ("bus", 0.3)]


def test_no_detections():
    (detections,) = head_of().decode(predictions_of(head_of()))
    assert detections.boxes.tensor.shape == (0, 9)
    assert detections.scores.shape == detections.labels.shape == (0,)


def test_samples_of_a_batch_keep_their_own_detections():
    head = head_of()
    first = predictions_of(head, (box(0, 0), "car", 0.5), (box(6, 0), "car", 0.6))
    second = predictions_of(head, (box(3, 3), "bus", 0.7))
    both = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(first, second, strict=True)]
    found = head.decode(both)
    assert [(len(d.boxes), d.labels.tolist()) for d in found] == [(2, [1, 1]), (1, [2])]
    torch.testing.assert_close(found[0].boxes.x, torch.tensor([6.0, 0.0]), atol=1e-5, rtol=0)


def test_centres_outside_the_range_are_dropped():
    head = head_of(center_range=(-1.0, -2.0, 0.0, 7.0, 4.0, 1.0))
    low = box(0, 0)
    low[2] = -0.1
    found = [(box(-1.2, 0), "car", 0.9), (box(0, 4.2), "car", 0.8), (low, "bus", 0.7), (box(3, 0), "bus", 0.6)]
    assert decoded(head, *found) == [("bus", 0.6)]


def test_suppression_works_within_a_task_whatever_the_class():
    head = head_of()
    near = [(box(0.0, 0), "truck", 0.9), (box(0.45, 0), "cone", 0.8), (box(0.3, 0), "car", 0.7)]
    assert decoded(head, *near) == [("truck", 0.9), ("car", 0.7)]


def test_each_task_has_its_own_rule():
    # 1.6 m apart: within 2 m for cars, not within 0.5 m for the others.
    head = head_of()
    found = [(box(0, 0), "car", 0.9), (box(1.6, 0), "car", 0.8), (box(0, 3), "bus", 0.7), (box(1.6, 3), "bus", 0.6)]
    assert decoded(head, *found) == [("car", 0.9), ("bus", 0.7), ("bus", 0.6)]


def test_dropped_boxes_do_not_suppress():
    head = head_of(center_range=(0.0, -9.0, -9.0, 20.0, 9.0, 9.0))
    assert decoded(head, (box(-0.4, 0), "car", 0.9), (box(0.5, 0), "car", 0.8)) == [("car", 0.8)]


def test_rotated_suppression_looks_at_footprints():
    rules = (NmsConfig(kind="rotate", threshold=0.2), NmsConfig(threshold=0.25))
    head = head_of(nms=rules)
    # Side by side 2.1 m apart: parallel they do not touch, crossed they overlap.
    assert len(decoded(head, (box(0, 0), "car", 0.9), (box(0, 2.1), "car", 0.8))) == 2
    crossed = box(0.1, 0.9, yaw=math.pi / 2)
    assert decoded(head, (box(0, 0), "car", 0.9), (crossed, "car", 0.8)) == [("car", 0.9)]


def test_scale_nms_scales_footprints_for_the_test_alone():
    factors = NmsConfig(kind="rotate", threshold=0.2, size_factors=(1.0, 1.0, 5.0))
    head = head_of(nms=(NmsConfig(threshold=4.0), factors))
    small = {"length": 0.4, "width": 0.4}
    for step in (1.0, 0.0), (0.0, 1.0):
        # Enlarged to 2 m they overlap by 1/3; as trucks, with a factor of 1, they do not.
        pair = [(box(0, 0, **small), "cone", 0.9), (box(*step, **small), "cone", 0.8)]
        assert decoded(head, *pair) == [("cone", 0.9)]
        assert len(decoded(head, *((row, "truck", score) for row, _, score in pair))) == 2
        (kept,) = head.decode(predictions_of(head, *pair))
        assert kept.boxes.size.tolist()[0] == pytest.approx([0.4, 0.4, 1.5])


def test_detections_of_a_task_are_capped():
    head = head_of(max_detections=2)
    cars = [(box(3.0 * k, 0), "car", 0.9 - 0.1 * k) for k in range(4)]
    assert decoded(head, *cars, (box(0, 5), "bus", 0.15)) == [("car", 0.9), ("car", 0.8), ("bus", 0.15)]


def test_only_the_best_cells_are_decoded():
    head = head_of(max_candidates=3)
    found = [(box(3.0 * k, 0), "bus", 0.9 - 0.1 * k) for k in range(3)] + [(box(0, 5), "truck", 0.85)]
    assert decoded(head, *found) == [("bus", 0.9), ("truck", 0.85), ("bus", 0.8)]


def test_more_candidates_than_cells():
    head = head_of(Grid(-6.0, -8.0, 0.8, 3, 4), max_candidates=500)
    assert decoded(head, (box(-5, -7), "car", 0.5)) == [("car", 0.5)]


def test_tasks_must_name_the_classes_of_the_data_set():
    config = CenterHeadConfig(tasks=TASKS, nms=CIRCLES)
    with pytest.raises(UserError, match=r"missing are barrier, unknown are bus.*head\.tasks"):
        build_center_head(config, 6, GRID, ("cone", "car", "barrier", "truck"))
