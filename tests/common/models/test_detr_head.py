import math
from itertools import permutations

import pytest
import torch
from bevkd_common.config.detectors.detr_head import DetrHeadConfig
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import SetTargets
from bevkd_common.models.heads.detr_code import CODE, decode, encode, inverse_sigmoid
from bevkd_common.models.heads.detr_head import DetrHead, build_detr_head
from bevkd_common.models.heads.detr_losses import class_loss
from bevkd_common.models.heads.detr_targets import class_costs, match, matching_cost
from bevkd_common.models.taps import Queries
from torch import nn

CLASSES = ("car", "pedestrian", "barrier")
GRID = Grid(-12.8, -6.4, 0.8, 32, 16)
SMALL = DetrHeadConfig(queries=12, layers=2, hidden_channels=24, max_detections=20)


def small(seed: int = 0, **changes) -> DetrHead:
    torch.manual_seed(seed)
    return build_detr_head(SMALL.model_copy(update=changes), 16, GRID, CLASSES)


def boxes_of(samples: int = 2, count: int = 4, seed: int = 0) -> tuple[Boxes, torch.Tensor]:
    """Boxes on the grid, of which the last of each sample is padding."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([-12.0, -6, -2, 1, 1, 1, -3, -2, -2])
    spread = torch.tensor([24.0, 12, 2, 3, 2, 1, 6, 4, 4])
    boxes = torch.rand(samples, count, 9, generator=generator) * spread + low
    labels = torch.randint(0, len(CLASSES), (samples, count), generator=generator)
    boxes[:, -1], labels[:, -1] = 0.0, -1
    return Boxes(boxes), labels


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- Code --------------------------------------------------------------------------------------------------------


def test_code_of_a_box_worked_out_by_hand():
    box = Boxes(torch.tensor([[1.0, 2.0, 0.5, 4.0, 2.0, 1.5, math.pi / 6, 1.0, -1.0]]))
    expected = [1, 2, 0.693147, 1.386294, 0.5, 0.405465, 0.5, 0.866025, 1, -1]
    assert encode(box)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_decoding_inverts_encoding():
    boxes, _ = boxes_of(samples=3, count=50)
    boxes = Boxes(boxes.tensor[:, :-1].double())
    torch.testing.assert_close(decode(encode(boxes)).tensor, boxes.tensor)


def test_inverse_sigmoid_is_finite_at_its_ends():
    logits = inverse_sigmoid(torch.tensor([0.5, 0.75, 0.0, 1.0], dtype=torch.float64))
    assert logits.tolist() == pytest.approx([0.0, 1.098612, -11.512925, 11.512925], abs=1e-6)


# --- Decoder -----------------------------------------------------------------------------------------------------


def test_paper_size_has_the_parameters_of_the_released_decoder():
    head = build_detr_head(DetrHeadConfig(), 256, Grid(-51.2, -51.2, 0.512, 200, 200), ("class",) * 10)
    layer = head.decoder.layers[0]
    branches = (head.decoder.class_branches[0], head.decoder.box_branches[0])
    assert (len(list(layer.parameters())), parameters(layer)) == (22, 683_872)
    assert sum(len(list(branch.parameters())) for branch in branches) == 16
    assert sum(parameters(branch) for branch in branches) == 269_332
    assert parameters(head) == 6 * (683_872 + 269_332) + 900 * 512 + 3 * 256 + 3


def test_boxes_are_refined_layer_by_layer():
    # Every layer moves by (.1, -.2, .3) in logits, from the middle of 102.4 m x 102.4 m x 8 m.
    head = build_detr_head(SMALL, 16, Grid(-51.2, -51.2, 0.8, 128, 128), CLASSES)
    with torch.no_grad():
        head.reference_points.weight.zero_()
        for branch in head.decoder.box_branches:
            branch[-1].weight.zero_()
            branch[-1].bias.copy_(torch.tensor([0.1, -0.2, 0, 0, 0.3, 0, 0, 0, 0, 0]))
    first, second = (layer["box_code"][0, 0] for layer in head(torch.randn(1, 16, 128, 128)))
    assert first[[0, 1, 4]].tolist() == pytest.approx([2.557869, -5.103001, -0.404460], abs=1e-5)
    x, y, z = (1 / (1 + math.exp(-2 * step)) for step in (0.1, -0.2, 0.3))
    assert second[[0, 1, 4]].tolist() == pytest.approx([x * 102.4 - 51.2, y * 102.4 - 51.2, z * 8 - 5], abs=1e-5)


def test_no_gradient_reaches_a_layer_through_the_reference_points_of_the_next():
    head = small()
    prediction = head(torch.randn(1, 16, 16, 32))
    prediction[1]["box_code"][..., 0].sum().backward()
    assert head.decoder.box_branches[0][-1].weight.grad is None
    assert head.decoder.box_branches[1][-1].weight.grad.abs().sum() > 0


def test_predictions_are_as_described():
    head = small()
    predictions = head(torch.randn(2, 16, 16, 32))
    assert head.maps == Queries(GRID, CLASSES, layers=2, count=12, channels=16, code=CODE)
    assert len(predictions) == 2
    for layer in predictions:
        assert {name: tuple(value.shape) for name, value in layer.items()} == {
            "class_logits": (2, 12, 3),
            "box_code": (2, 12, 10),
        }
        center = layer["box_code"][..., [0, 1, 4]]
        assert (center > torch.tensor([-12.8, -6.4, -5.0])).all()
        assert (center < torch.tensor([12.8, 6.4, 3.0])).all()
        # Nearly all queries start as background.
        assert layer["class_logits"].sigmoid().mean() < 0.05


def test_queries_have_no_order():
    head, order = small().eval(), torch.randperm(12)
    bev = torch.randn(2, 16, 16, 32)
    before = head(bev)
    with torch.no_grad():
        head.queries.weight.copy_(head.queries.weight[order])
    for one, other in zip(before, head(bev), strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value[:, order], other[name], atol=1e-4, rtol=1e-4)


def test_queries_look_where_they_are():
    # Offsets start with up to four pixels; between columns 24 and 25 and rows 4 and 5 they reach the next pixel.
    head = small(layers=1).eval()
    bev = torch.randn(1, 16, 16, 32, requires_grad=True)
    with torch.no_grad():
        head.reference_points.weight.zero_()
        head.reference_points.bias.copy_(torch.logit(torch.tensor([25 / 32, 5 / 16, 0.5])))
    head(bev)[0]["class_logits"].sum().backward()
    rows, columns = bev.grad[0].abs().sum(dim=0).nonzero().T
    assert (rows.min(), rows.max()) == (0, 9)
    assert (columns.min(), columns.max()) == (20, 29)


def test_boxes_keep_full_precision_under_autocast():
    head, bev = small().eval(), torch.randn(1, 16, 16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        layer = head(bev)[-1]
    assert layer["box_code"].dtype == torch.float32
    coarse = layer["box_code"].to(torch.bfloat16).float()
    assert (layer["box_code"] != coarse).float().mean() > 0.9


# --- Matching ----------------------------------------------------------------------------------------------------


def test_class_costs_worked_out_by_hand():
    costs = 2 * class_costs(torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64))
    assert costs.tolist() == pytest.approx([-0.1732868, -2.4742147, 0.8223338], abs=1e-6)


def test_assignment_worked_out_by_hand():
    cost = torch.tensor([[[4.0, 1], [2.5, 0], [3, 2]]])
    assert match([cost], torch.ones(1, 2, dtype=torch.bool))[0].tolist() == [[-1, 1, 0]]


@pytest.mark.parametrize(("queries", "boxes"), [(5, 3), (3, 5), (4, 4), (4, 0)])
def test_assignment_costs_least_of_all(queries, boxes):
    generator = torch.Generator().manual_seed(queries)
    for _ in range(10):
        cost = torch.rand(1, queries, boxes, generator=generator, dtype=torch.float64)
        matched = match([cost], torch.ones(1, boxes, dtype=torch.bool))[0][0]
        taken = [(query, box) for query, box in enumerate(matched.tolist()) if box >= 0]
        count = min(queries, boxes)
        assert len({box for _, box in taken}) == len(taken) == count
        least = min(
            sum(cost[0, query, box].item() for query, box in zip(some, others, strict=True))
            for some in permutations(range(queries), count)
            for others in ([range(boxes)] if boxes <= queries else permutations(range(boxes), count))
        )
        assert sum(cost[0, query, box].item() for query, box in taken) == pytest.approx(least)


def test_padding_takes_no_query():
    cost = torch.tensor([[[-9.0, 1, 0], [-9.0, 0, 1]]])
    assert match([cost], torch.tensor([[False, True, True]]))[0].tolist() == [[2, 1]]


def test_cost_of_classes_and_boxes_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    logits, code = torch.randn(2, 5, 3, generator=generator), torch.randn(2, 5, 10, generator=generator)
    labels, boxes = torch.tensor([[0, 2], [1, 1]]), torch.randn(2, 2, 10, generator=generator)
    # What nobody knows of a velocity does not matter.
    boxes[..., 8:] = torch.nan
    cost = matching_cost(logits, code, labels, boxes, class_cost=2.0, box_cost=0.25)
    for b in range(2):
        for q in range(5):
            for m in range(2):
                p = 1 / (1 + math.exp(-logits[b, q, labels[b, m]]))
                gain = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
                apart = sum(abs(float(code[b, q, i] - boxes[b, m, i])) for i in range(8))
                assert cost[b, q, m].item() == pytest.approx(2.0 * gain + 0.25 * apart, rel=1e-5)


def test_layers_are_matched_on_their_own():
    head = small(queries=2)
    boxes = Boxes(torch.tensor([[[-8.0, 0, 0, 4, 2, 1, 0, 0, 0], [8.0, 0, 0, 4, 2, 1, 0, 0, 0]]]))
    code = encode(boxes)
    layers = [{"class_logits": torch.zeros(1, 2, 3), "box_code": order} for order in (code, code.flip(1))]
    targets = head.targets(layers, boxes, torch.tensor([[0, 0]]))
    assert [matched.tolist() for matched in targets.matched] == [[[0, 1]], [[1, 0]]]


def test_boxes_that_cannot_be_predicted_are_left_out():
    head = small()
    row = [0.0, 0, 0, 4, 2, 1, 0, 0, 0]
    boxes = torch.tensor([[row] * 5])
    boxes[0, 1, 0] = 12.8  # on the upper border of x
    boxes[0, 2, 1] = -6.41  # below the lower border of y
    boxes[0, 3, 4] = 0.0  # without a width
    boxes[0, 4, 2] = 9.0  # above the range: learned as well as it goes
    targets = head.targets(head(torch.randn(1, 16, 16, 32)), Boxes(boxes), torch.zeros(1, 5, dtype=torch.int64))
    assert targets.labels.tolist() == [[0, -1, -1, -1, 0]]
    assert sorted(targets.matched[-1][targets.matched[-1] >= 0].tolist()) == [0, 4]


# --- Losses ------------------------------------------------------------------------------------------------------


def test_class_loss_worked_out_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert 2 * class_loss(logits, torch.tensor([[0, -1]])).item() == pytest.approx(0.7806924, abs=1e-6)
    one = torch.tensor([[[0.0]], [[2.0]], [[-2.0]]], dtype=torch.float64)
    background = [class_loss(logit, torch.tensor([-1])).item() for logit in one]
    assert background == pytest.approx([0.1299651, 1.2375582, 0.00135267], abs=1e-6)
    own = [class_loss(logit, torch.tensor([0])).item() for logit in one[:2]]
    assert own == pytest.approx([0.0433217, 0.00045089], abs=1e-6)


def naive_losses(predictions, targets, weights):
    """Both losses by the book, query by query."""
    classes = boxes = 0.0
    for prediction, matched in zip(predictions, targets.matched, strict=True):
        positives = max(1, int((matched >= 0).sum()))
        layer_classes = layer_boxes = 0.0
        for b, row in enumerate(matched.tolist()):
            for q, box in enumerate(row):
                p = prediction["class_logits"][b, q].sigmoid()
                for k in range(len(p)):
                    if box >= 0 and targets.labels[b, box] == k:
                        layer_classes = layer_classes - 0.25 * (1 - p[k]) ** 2 * p[k].log()
                    else:
                        layer_classes = layer_classes - 0.75 * p[k] ** 2 * (1 - p[k]).log()
                for i in range(10):
                    if box >= 0 and not targets.code[b, box, i].isnan():
                        apart = (prediction["box_code"][b, q, i] - targets.code[b, box, i]).abs()
                        layer_boxes = layer_boxes + weights[i] * apart
        classes, boxes = classes + layer_classes / positives, boxes + layer_boxes / positives
    return {"classes": classes, "boxes": boxes}


def test_losses_and_gradients_against_a_loop():
    head = small().double()
    boxes, labels = boxes_of()
    boxes.tensor[0, 1, 7:] = torch.nan
    predictions = head(torch.randn(2, 16, 16, 32, dtype=torch.float64))
    predictions = [{name: value.detach() for name, value in layer.items()} for layer in predictions]
    leaves = [value.requires_grad_() for layer in predictions for value in layer.values()]
    targets = head.targets(predictions, Boxes(boxes.tensor.double()), labels)
    assert [int((matched >= 0).sum()) for matched in targets.matched] == [6, 6]
    losses = head.losses(predictions, targets)
    naive = naive_losses(predictions, targets, [1.0] * 8 + [0.2] * 2)
    assert {name: term.weight for name, term in losses.items()} == {"classes": 2.0, "boxes": 0.25}
    for name, expected in naive.items():
        torch.testing.assert_close(losses[name].value, expected, atol=0, rtol=1e-6)
        ours = torch.autograd.grad(losses[name].value, leaves, allow_unused=True, materialize_grads=True)
        theirs = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-6)


def test_headings_of_symmetric_classes_are_learned_up_to_half_a_turn():
    head = small(symmetric_classes=("barrier",))
    boxes = torch.tensor([[[0.0, 0, 0, 1, 1, 1, 2.0, 3, 0], [4.0, 0, 0, 1, 1, 1, 2.0, 3, 0]]])
    targets = head.targets(head(torch.randn(1, 16, 16, 32)), Boxes(boxes), torch.tensor([[0, 2]]))
    assert targets.code[0, 0, 6:].tolist() == pytest.approx([0.909297, -0.416147, 3, 0], abs=1e-5)
    assert targets.code[0, 1, 6:].tolist() == pytest.approx([-0.909297, 0.416147, 3, 0], abs=1e-5)


def test_unknown_symmetric_classes_are_refused():
    with pytest.raises(UserError, match="names bollard, which the data set does not have; it has car, pedestrian"):
        small(symmetric_classes=("bollard",))


def test_boxes_have_no_order():
    head = small()
    boxes, labels = boxes_of(count=6)
    predictions = head(torch.randn(2, 16, 16, 32))
    order = torch.randperm(6)
    one = head.losses(predictions, head.targets(predictions, boxes, labels))
    other = head.losses(predictions, head.targets(predictions, Boxes(boxes.tensor[:, order]), labels[:, order]))
    for name, term in one.items():
        torch.testing.assert_close(term.value, other[name].value)


@pytest.mark.parametrize("padding", [0, 3])
def test_no_boxes_at_all(padding):
    head = small()
    predictions = head(torch.randn(2, 16, 16, 32))
    labels = torch.full((2, padding), -1)
    losses = head.losses(predictions, head.targets(predictions, Boxes(torch.zeros(2, padding, 9)), labels))
    assert losses["boxes"].value == 0
    assert losses["classes"].value > 0
    sum(term.value * term.weight for term in losses.values()).backward()
    missing = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert missing == [], "processes with boxes wait for these gradients"
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_of_more_boxes_than_queries_the_rest_is_not_learned():
    head = small(queries=2)
    boxes, labels = boxes_of(count=6)
    predictions = head(torch.randn(2, 16, 16, 32))
    targets = head.targets(predictions, boxes, labels)
    assert all((matched >= 0).all() for matched in targets.matched)
    assert all(term.value.isfinite() for term in head.losses(predictions, targets).values())


def test_a_diverged_prediction_reaches_the_loss():
    head = small()
    boxes, labels = boxes_of()
    predictions = head(torch.full((2, 16, 16, 32), torch.nan))
    losses = head.losses(predictions, head.targets(predictions, boxes, labels))
    assert all(term.value.isnan() for term in losses.values())


# --- Decoding ----------------------------------------------------------------------------------------------------


def test_best_pairs_of_query_and_class_worked_out_by_hand():
    head = small(queries=2, max_detections=3)
    code = encode(Boxes(torch.tensor([[[1.0, 0, 0, 4, 2, 1, 0, 0, 0], [2.0, 0, 0, 4, 2, 1, 0, 0, 0]]])))
    logits = torch.tensor([[[0.0, 2, -1], [1, -3, 3]]])
    found = head.decode([{}, {"class_logits": logits, "box_code": code}])
    assert len(found) == 1
    assert found[0].scores.tolist() == pytest.approx([0.952574, 0.880797, 0.731059], abs=1e-6)
    assert found[0].labels.tolist() == [2, 1, 0]
    assert found[0].boxes.x.tolist() == [2.0, 1.0, 2.0]


def test_learned_boxes_decode_to_themselves():
    head = small(queries=3)
    boxes, labels = boxes_of()
    logits = torch.where(torch.arange(3) == labels[:, :3, None], 9.0, -9.0)
    found = head.decode([{"class_logits": logits, "box_code": encode(Boxes(boxes.tensor[:, :3]))}])
    for one, truth, label in zip(found, boxes.tensor, labels, strict=True):
        best = one.scores > 0.5
        assert best.sum() == 3
        order = one.boxes.x[best].argsort()
        expected = truth[:3].gather(0, truth[:3, :1].argsort(dim=0).expand(-1, 9))
        torch.testing.assert_close(one.boxes.tensor[best][order], expected)
        assert one.labels[best][order].tolist() == label[:3][truth[:3, 0].argsort()].tolist()


def test_centres_beyond_the_range_are_dropped():
    head = small(queries=2, max_detections=6, center_range=(-5.0, -5, -5, 5, 5, 5))
    code = encode(Boxes(torch.tensor([[[1.0, 0, 0, 4, 2, 1, 0, 0, 0], [6.0, 0, 0, 4, 2, 1, 0, 0, 0]]])))
    found = head.decode([{"class_logits": torch.zeros(1, 2, 3), "box_code": code}])
    assert found[0].boxes.x.tolist() == [1.0] * 3


# --- Building ----------------------------------------------------------------------------------------------------


def test_heads_must_share_the_channels():
    with pytest.raises(UserError, match="the 20 channels of the BEV map cannot be shared by 8"):
        build_detr_head(DetrHeadConfig(), 20, GRID, CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"code_weights": (1.0,) * 9}, "10 numbers, got 9"), ({"z_range": (1.0, 1.0)}, "`z_range` is empty")],
)
def test_configurations_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        DetrHeadConfig(**changes)


def test_overfits_two_samples():
    head = small(queries=8, layers=2, dropout=0.0)
    boxes, labels = boxes_of()
    bev = torch.randn(2, 16, 16, 32)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(250):
        predictions = head(bev)
        targets = head.targets(predictions, boxes, labels)
        loss = sum(term.value * term.weight for term in head.losses(predictions, targets).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimizer.step()
    assert isinstance(targets, SetTargets)
    for one, truth, label in zip(head.eval().decode(head(bev)), boxes.tensor, labels, strict=True):
        apart = torch.cdist(truth[:3, :2], one.boxes.tensor[:3, :2])
        nearest = apart.argmin(dim=1)
        assert sorted(nearest.tolist()) == [0, 1, 2]
        assert apart.amin(dim=1).max() < 1.0
        assert one.labels[:3][nearest].tolist() == label[:3].tolist()
