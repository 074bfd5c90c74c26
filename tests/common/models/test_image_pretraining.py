import math
from dataclasses import replace

import pytest
import torch
import yaml
from bevkd_common.config.detectors.bevdet import BevDetConfig
from bevkd_common.config.detectors.bevformer import BevFormerConfig
from bevkd_common.config.plugins import load
from bevkd_common.data.samples import PADDING_LABEL, Batch, Cameras, Cloud
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.transforms import reflection, rigid, scaling, transform_points
from bevkd_common.models.detectors import bevdet
from bevkd_common.models.image_pretraining import DepthAndClasses, class_cells, nearest_depth
from bevkd_common.models.specs import BEVDET, BEVFORMER

CLASSES = ("car", "truck", "pedestrian")
CONFIG = """
image_size: [32, 80]
image_backbone: {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [8, 16]}
image_neck_channels: 16
depth_bins: {start: 1, stop: 13, step: 1.0}
lift_channels: 8
grid: {x0: -12.8, y0: -6.4, cell: 0.8, nx: 32, ny: 16}
bev_stages: [{channels: 8, blocks: 1}, {channels: 8, blocks: 1}]
bev_neck: {hidden_channels: 8, channels: 8}
head: {channels: 8, tasks: [[car, truck, pedestrian]], nms: [{threshold: 1.0}]}
"""
# Camera axes x right, y down, z forward in LiDAR axes x forward, y left, z up.
AHEAD = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
FOCAL, CENTER_U, CENTER_V, STRIDE = 40.0, 40.0, 12.0, 8


def lidar(points, counts):
    return {"lidar": Cloud(points, counts, tuple("xyzit"))}


def scene() -> Batch:
    """Two samples under one camera at the origin: points ahead, behind and aside; a car, a pedestrian behind."""
    first = [[5.0, 0.0, 0.0], [8.0, 0.0, 0.0], [-5.0, 0.0, 0.0], [6.0, 3.0, -1.5], [2.0, 30.0, 0.0]]
    second = [[12.5, 0.0, 0.0]]
    points = torch.tensor([[*point, 0.0, 0.0] for point in first + second])
    car = [10.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]
    behind = [-10.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]
    around = [0.5, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]
    boxes = torch.tensor([[car, behind, around], [car, car, [0.0] * 9]])
    return Batch(
        tokens=("a", "b"),
        scenes=("s", "s"),
        boxes=Boxes(boxes),
        labels=torch.tensor([[0, 2, 1], [1, 2, PADDING_LABEL]]),
        cameras=Cameras(
            images=torch.randint(0, 256, (2, 1, 3, 32, 80), generator=torch.Generator().manual_seed(0)).byte(),
            intrinsics=torch.tensor([[FOCAL, 0, CENTER_U], [0, FOCAL, CENTER_V], [0, 0, 1]]).expand(2, 1, 3, 3),
            lidar_T_cam=rigid(AHEAD, torch.zeros(3)).expand(2, 1, 4, 4),
            image_aug=torch.eye(3).expand(2, 1, 3, 3),
        ),
        clouds=lidar(points, (len(first), len(second))),
        aug_T_lidar=torch.eye(4).expand(2, 4, 4),
        global_T_lidar=torch.eye(4, dtype=torch.float64).expand(2, 4, 4),
    )


def test_depth_of_a_cell_is_that_of_its_nearest_point():
    depth = nearest_depth(scene(), STRIDE)
    assert depth.shape == (2, 1, 4, 10)
    seen = {tuple(place): depth[tuple(place)].item() for place in torch.isfinite(depth).nonzero().tolist()}
    # The second point is at u = 40 - 40 * 3 / 6 = 20 and v = 12 + 40 * 1.5 / 6 = 22.
    assert seen == {(0, 0, 1, 5): 5.0, (0, 0, 2, 2): 6.0, (1, 0, 1, 5): 12.5}


def test_augmentation_of_the_birds_eye_view_leaves_depth_alone():
    batch = scene()
    aug = scaling(1.1) @ reflection("y")
    points, counts = batch.cloud("lidar").points, batch.cloud("lidar").counts
    moved = replace(
        batch,
        clouds=lidar(torch.cat([transform_points(aug, points[:, :3]), points[:, 3:]], dim=1), counts),
        boxes=batch.boxes.transform(aug),
        cameras=replace(batch.cameras, lidar_T_cam=aug @ batch.cameras.lidar_T_cam),
    )
    torch.testing.assert_close(nearest_depth(moved, STRIDE), nearest_depth(batch, STRIDE))
    assert torch.equal(class_cells(moved, STRIDE, 3), class_cells(batch, STRIDE, 3))


def test_a_mirrored_image_has_mirrored_depth_and_classes():
    batch = scene()
    mirror = torch.tensor([[-1.0, 0, 80], [0, 1, 0], [0, 0, 1]]).expand(2, 1, 3, 3)
    # Points on the border of two cells belong to the right one, which mirroring would make the left one.
    points = batch.cloud("lidar").points + torch.tensor([0.0, -0.01, 0.0, 0.0, 0.0])
    plain = replace(batch, clouds=lidar(points, batch.cloud("lidar").counts))
    mirrored = replace(plain, cameras=replace(batch.cameras, image_aug=mirror))
    assert torch.equal(nearest_depth(mirrored, STRIDE), nearest_depth(plain, STRIDE).flip(-1))
    assert torch.equal(class_cells(mirrored, STRIDE, 3), class_cells(plain, STRIDE, 3).flip(-1))


def test_a_cell_shows_the_boxes_whose_projection_covers_its_centre():
    shown = class_cells(scene(), STRIDE, 3)
    assert shown.shape == (2, 1, 3, 4, 10)
    # The near face is 9 m away: u from 35.6 to 44.4, v from 7.6 to 16.4; centres of cells at 36 and 44, and at 12.
    cells = [(1, 4), (1, 5)]
    expected = {(0, 0, 0, *cell) for cell in cells} | {(1, 0, label, *cell) for label in (1, 2) for cell in cells}
    assert {tuple(place) for place in shown.nonzero().tolist()} == expected


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return bevdet.build(BevDetConfig.model_validate(yaml.safe_load(CONFIG)), CLASSES)


@pytest.fixture
def objective():
    torch.manual_seed(0)
    config = BevDetConfig.model_validate(yaml.safe_load(CONFIG))
    return load(BEVDET.pretraining)(config, CLASSES)


def test_losses_of_a_blank_guess(detector, objective):
    detector.lift_splat.depth_net.joint.weight.data.zero_()
    detector.lift_splat.depth_net.joint.bias.data.zero_()
    objective.classify.weight.data.zero_()
    terms = objective(detector, scene()).terms
    assert set(terms) == {"depth", "classes"}
    # Twelve bins of equal probability wherever a point falls.
    assert terms["depth"].value.item() == pytest.approx(math.log(12), rel=1e-6)
    positive, negative = math.log1p(math.exp(3.0)), math.log1p(math.exp(-3.0))
    cells = 2 * 3 * 4 * 10
    assert terms["classes"].value.item() == pytest.approx(
        (6 * 5.0 * positive + (cells - 6) * negative) / cells, rel=1e-5
    )


def test_bins_begin_at_their_lower_border_and_points_beyond_them_do_not_count(detector, objective):
    detector.lift_splat.depth_net.joint.weight.data.zero_()
    bias = torch.zeros(12 + 8)
    bias[4] = 100.0  # the bin of 5 m to 6 m
    detector.lift_splat.depth_net.joint.bias.data = bias
    batch = scene()

    def depth_loss(*depths):
        points = torch.tensor([[depth, 0.0, 0.0, 0.0, 0.0] for depth in depths])
        return objective(detector, replace(batch, clouds=lidar(points, (1, 1)))).terms["depth"].value.item()

    assert depth_loss(5.0, 5.99) == pytest.approx(0.0, abs=1e-6)
    assert depth_loss(5.5, 6.01) == pytest.approx(50.0)
    assert depth_loss(5.5, 13.5) == pytest.approx(0.0, abs=1e-6)
    assert depth_loss(5.5, 0.9) == pytest.approx(0.0, abs=1e-6)
    assert depth_loss(30.0, 0.9) == 0.0


def test_the_losses_reach_the_image_part_alone_and_fall(detector, objective):
    batch = scene()
    parts = objective.trained(detector)
    reached = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW([*reached, *objective.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        terms = objective(detector, batch).terms
        optimizer.zero_grad()
        sum(term.value * term.weight for term in terms.values()).backward()
        optimizer.step()
        losses.append({name: term.value.item() for name, term in terms.items()})
    assert all(parameter.grad is not None for parameter in reached)
    others = [p for n, p in detector.named_parameters() if not n.startswith(("image_", "lift_splat."))]
    assert len(others) > 20
    assert all(parameter.grad is None for parameter in others)
    assert losses[-1]["depth"] < 0.2 * losses[0]["depth"]
    assert losses[-1]["classes"] < 0.5 * losses[0]["classes"]


def test_a_batch_without_points_is_refused(detector, objective):
    with pytest.raises(ValueError, match="cameras and points"):
        objective(detector, replace(scene(), clouds={}))
    assert DepthAndClasses.needs.cameras
    assert DepthAndClasses.needs.sweeps == 1


QUERIES = """
image_size: [32, 80]
image_backbone:
  {kind: small_resnet, stem_channels: 8, channels: [8, 16, 16, 16], blocks: [1, 1, 1, 1], strides: [8, 16, 32]}
image_levels: 3
channels: 16
cameras: 1
frames: 1
grid: {x0: -12.8, y0: -6.4, cell: 1.6, nx: 16, ny: 8}
encoder_layers: 1
hidden_channels: 16
head: {queries: 4, layers: 1, hidden_channels: 16}
"""


def test_a_detector_without_depths_learns_them_too_and_drops_what_tells_them():
    config = BevFormerConfig.model_validate(yaml.safe_load(QUERIES))
    torch.manual_seed(0)
    detector, objective = load(BEVFORMER.build)(config, CLASSES), load(BEVFORMER.pretraining)(config, CLASSES)
    # A metre a bin, as far as the map: 13 of them from 1 m.
    assert (objective.measure.out_channels, objective.classify.out_channels) == (13, 3)
    batch = scene()
    torch.nn.init.zeros_(objective.measure.weight)
    torch.nn.init.zeros_(objective.measure.bias)
    assert objective(detector, batch).terms["depth"].value.item() == pytest.approx(math.log(13))

    trained = {id(p) for module in objective.trained(detector) for p in module.parameters()}
    optimizer = torch.optim.AdamW([*detector.parameters(), *objective.parameters()], lr=3e-3)
    losses = []
    for _ in range(40):
        terms = objective(detector, batch).terms
        loss = sum(term.value * term.weight for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    reached = {id(p) for p in detector.parameters() if p.grad is not None}
    assert reached <= trained
    assert len(reached) > 20


def test_padding_of_the_images_is_no_place(monkeypatch):
    config = BevFormerConfig.model_validate(yaml.safe_load(QUERIES))
    torch.manual_seed(0)
    detector, objective = load(BEVFORMER.build)(config, CLASSES), load(BEVFORMER.pretraining)(config, CLASSES)
    batch = scene()
    features, size = detector.image_features(batch.cameras)
    assert (features[0].shape[-2:], size) == ((4, 12), (32, 96))
    leaf = torch.randn_like(features[0]).requires_grad_()
    monkeypatch.setattr(detector, "image_features", lambda cameras: ([leaf], size))
    objective(detector, batch).terms["depth"].value.backward()
    # The cells of the nearest points, as above.
    assert leaf.grad.any(dim=1).nonzero().tolist() == [[0, 1, 5], [0, 2, 2], [1, 1, 5]]
