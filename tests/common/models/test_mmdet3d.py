"""The adapter over a model with mmdet3d's outer form, under stand-ins for the packages."""

import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from bevkd_common.config.detectors.mmdet3d import Mmdet3dConfig
from bevkd_common.data.samples import Batch, Cameras, Cloud
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import rigid, rotation_z
from bevkd_common.models.detectors.mmdet3d import build, camera_metas
from bevkd_common.models.taps import BevMap
from torch import nn

CLASSES = ("car", "bus", "pedestrian")
GRID = Grid(-4.0, -2.0, 1.0, 8, 4)
# x, y, bottom z, l, w, h, yaw, vx, vy.
FOUND = torch.tensor(
    [[1.0, 2, -1, 4, 2, 1.5, 0.5, 3, 0], [0, 0, 0, 1, 1, 2, -0.5, 0, 1], [5, 5, 0, 9, 3, 3, 0, 0, 0]]
)


class LiDARInstance3DBoxes:
    def __init__(self, tensor):
        self.tensor = tensor


class Neck(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return [x, self.conv(x)]


class Model(nn.Module):
    """Sees where points are; finds the same boxes everywhere."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(1, 2, 1)
        self.neck = Neck()
        self.decoded = 0
        self.given = None

    def data_preprocessor(self, data, training):
        assert training is False
        self.given = data
        return data

    def forward(self, inputs, data_samples, mode):
        assert mode == "predict"
        maps = torch.stack([cloud.sum().expand(1, 4, 8) for cloud in inputs["points"]])
        self.neck(self.backbone(maps))
        self.decoded += 1
        # As many boxes as the number of the sample says.
        return [
            SimpleNamespace(
                pred_instances_3d=SimpleNamespace(
                    bboxes_3d=self.boxes(FOUND[: 3 - number]),
                    scores_3d=torch.tensor([0.3, 0.9, 0.6])[: 3 - number],
                    labels_3d=torch.tensor([2, 0, 1], dtype=torch.int32)[: 3 - number],
                )
            )
            for number, _ in enumerate(data_samples)
        ]

    boxes = LiDARInstance3DBoxes


@pytest.fixture
def installed(monkeypatch):
    """Stand-ins for what the adapter imports; gives the model that any file describes."""
    model = Model()
    file = SimpleNamespace(model={}, get=lambda key, default=None: {"class_names": ["van", "car", "bus"]}.get(key))
    stand_ins = {
        "mmdet3d": {"models": ModuleType("mmdet3d.models")},
        "mmdet3d.models": {},
        "mmdet3d.registry": {"MODELS": SimpleNamespace(build=lambda config: model)},
        "mmdet3d.structures": {
            "Det3DDataSample": lambda metainfo: SimpleNamespace(metainfo=metainfo),
            "LiDARInstance3DBoxes": LiDARInstance3DBoxes,
        },
        "mmengine": {},
        "mmengine.config": {"Config": SimpleNamespace(fromfile=lambda path: file)},
        "mmengine.registry": {"init_default_scope": lambda scope: None},
    }
    for name, content in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return model


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("")

    def make(**changes):
        settings = {
            "config": path,
            "weights": None,
            "sweeps": 1,
            "taps": {"bev_neck": {"module": "neck", "output": 1, "channels": 3, "grid": GRID}},
        }
        return Mmdet3dConfig(**(settings | changes))

    return make


@pytest.fixture
def batch():
    return Batch(
        tokens=("a", "b"),
        scenes=("s", "s"),
        boxes=Boxes(torch.zeros(2, 0, 9)),
        labels=torch.zeros(2, 0, dtype=torch.int64),
        cameras=None,
        clouds={"lidar": Cloud(torch.arange(15.0).view(3, 5), (1, 2), tuple("xyzit"))},
        aug_T_lidar=torch.eye(4).expand(2, 4, 4),
        global_T_lidar=torch.eye(4).double().expand(2, 4, 4),
    )


def test_without_mmdet3d_one_sentence_says_what_to_do(monkeypatch, config):
    monkeypatch.setitem(sys.modules, "mmdet3d", None)
    with pytest.raises(UserError, match=r"needs mmdetection3d, .* `make oracle`") as caught:
        build(config(), CLASSES)
    assert "\n" not in str(caught.value)


def test_a_tap_is_what_its_module_returned_and_nothing_after_it_is_computed(installed, config, batch):
    detector = build(config(), CLASSES)
    outputs = FrozenTeacher(detector)(batch, frozenset({"bev_neck"}))
    sums = batch.cloud("lidar").points.sum(dim=1)
    maps = torch.stack([sums[0], sums[1] + sums[2]]).view(2, 1, 1, 1).expand(2, 1, 4, 8)
    torch.testing.assert_close(outputs.taps["bev_neck"], installed.neck(installed.backbone(maps))[1])
    assert detector.taps == {"bev_neck": BevMap(3, GRID, "none")}
    assert installed.decoded == 0
    assert not outputs.extras
    assert not installed.neck._forward_hooks


def test_boxes_come_best_first_in_our_convention_under_our_labels(installed, config, batch):
    detector = build(config(), CLASSES)
    outputs = detector(batch, frozenset({"head"}))
    assert (dict(outputs.taps), list(outputs.head), installed.decoded) == ({}, [], 1)
    first, second = detector.decode(outputs, batch)
    # Theirs are bus, van, car; a van is nothing here. The centre lies half a height above the bottom.
    torch.testing.assert_close(first.scores, torch.tensor([0.6, 0.3]))
    assert first.labels.tolist() == [0, 1]
    expected = torch.tensor([[5.0, 5, 1.5, 9, 3, 3, 0, 0, 0], [1, 2, -0.25, 4, 2, 1.5, 0.5, 3, 0]])
    torch.testing.assert_close(first.boxes.tensor, expected)
    assert second.labels.tolist() == [1]
    torch.testing.assert_close(second.boxes.tensor, expected[1:])


def test_classes_of_the_recipe_precede_those_of_the_file(installed, config, batch):
    detector = build(config(classes=("bus", "car", "pedestrian")), CLASSES)
    found = detector.decode(detector(batch, frozenset({"head"})), batch)
    assert [one.labels.tolist() for one in found] == [[1, 0, 2], [1, 2]]
    with pytest.raises(UserError, match="no class of mmdet3d's model is one of the data set: tram"):
        build(config(classes=("tram",)), CLASSES)


def test_points_have_the_columns_that_the_model_reads(installed, config, batch):
    detector = build(config(point_columns=(0, 1, 2, 4)), CLASSES)
    detector(batch, frozenset({"head"}))
    given = installed.given["inputs"]["points"]
    assert [cloud.tolist() for cloud in given] == [[[0, 1, 2, 4]], [[5, 6, 7, 9], [10, 11, 12, 14]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": 2}, r"output 2 of the module `neck` must be \(2, 3, 4, 8\), but it returned"),
        ({"output": 0}, r"it returned \(2, 2, 4, 8\), \(2, 3, 4, 8\); correct `taps.bev_neck`"),
        ({"grid": Grid(-4.0, -2.0, 0.5, 16, 8)}, r"must be \(2, 3, 8, 16\)"),
    ],
)
def test_a_map_of_another_size_than_stated_is_refused(installed, config, batch, changes, message):
    tap = {"module": "neck", "output": 1, "channels": 3, "grid": GRID} | changes
    detector = build(config(taps={"bev_neck": tap}), CLASSES)
    with pytest.raises(UserError, match=message):
        detector(batch, frozenset({"bev_neck"}))


def test_a_module_that_is_not_there_is_named_with_the_nearest(installed, config):
    tap = {"module": "nek", "channels": 3, "grid": GRID}
    with pytest.raises(UserError, match=r"`taps.bev_neck`: .* no module `nek`; did you mean `neck`"):
        build(config(taps={"bev_neck": tap}), CLASSES)


def test_boxes_in_other_axes_are_refused(installed, config, batch):
    installed.boxes = type("CameraInstance3DBoxes", (LiDARInstance3DBoxes,), {})
    with pytest.raises(UserError, match="gives CameraInstance3DBoxes; only boxes in LiDAR axes"):
        build(config(), CLASSES)(batch, frozenset({"head"}))


def test_weights_are_loaded_whole_or_not_at_all(installed, config, tmp_path):
    weights = {key: torch.full_like(value, 2.0) for key, value in installed.state_dict().items()}
    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "whole.pth")
    build(config(weights=tmp_path / "whole.pth"), CLASSES)
    assert all((value == 2).all() for value in installed.state_dict().values())
    short = {key: value + 1 for key, value in weights.items() if key != "neck.conv.bias"}
    torch.save({"state_dict": short}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"does not fit the model of mmdet3d:\n  missing neck.conv.bias"):
        build(config(weights=tmp_path / "short.pth"), CLASSES)
    assert all((value == 2).all() for value in installed.state_dict().values())


def test_the_layout_of_weights_is_told_when_they_are_loaded_again(installed, config):
    class Sparse(nn.Module):
        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
            assert local_metadata["version"] == 2

    installed.sparse = Sparse()
    detector = build(config(), CLASSES)
    detector.load_state_dict({key: value.clone() for key, value in detector.state_dict().items()})


def test_images_come_with_blue_first_and_a_matrix_for_each(installed, config, batch):
    images = torch.randint(0, 256, (2, 1, 3, 4, 8), dtype=torch.uint8)
    eye = torch.eye(4).expand(2, 1, 4, 4)
    cameras = Cameras(images, eye[..., :3, :3], eye, eye[..., :3, :3])
    detector = build(config(cameras=True), CLASSES)
    assert (detector.needs.cameras, detector.needs.sweeps) == (True, 1)
    detector(replace(batch, cameras=cameras), frozenset({"head"}))
    given = installed.given
    assert torch.equal(torch.stack(given["inputs"]["img"])[:, :, 2], images[:, :, 0])
    assert [sample.metainfo["lidar2img"].shape for sample in given["data_samples"]] == [(1, 4, 4)] * 2


def test_it_refuses_to_be_trained(installed, config, batch):
    detector = build(config(), CLASSES)
    outputs = detector(batch, frozenset({"head"}))
    for call in (lambda: detector.targets(outputs, batch), lambda: detector.losses(outputs, None, batch)):
        with pytest.raises(UserError, match="is not trained here; it can only be a teacher"):
            call()


def test_matrices_lead_from_augmented_lidar_axes_to_augmented_pixels():
    # A camera 1 m above the LiDAR looks along +y; images are halved and lose 10 columns.
    lidar_T_cam = rigid(torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), torch.tensor([0.0, 0, 1]))
    turn = rigid(rotation_z(torch.tensor(math.pi / 2)), torch.zeros(3))
    cameras = Cameras(
        images=torch.zeros(1, 2, 3, 20, 30, dtype=torch.uint8),
        intrinsics=torch.tensor([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]).expand(1, 2, 3, 3),
        lidar_T_cam=torch.stack([lidar_T_cam, turn @ lidar_T_cam])[None],
        image_aug=torch.tensor([[0.5, 0, -10], [0, 0.5, 0], [0, 0, 1]]).expand(1, 2, 3, 3),
    )
    (meta,) = camera_metas(cameras)
    # A point 10 m ahead, 1 m right, at the camera's height: u = 50 + 10 = 60 and v = 40, which become 20 and 20.
    for view, point in enumerate(([1.0, 10, 1, 1], [-10.0, 1, 1, 1])):
        u, v, depth, _ = meta["lidar2img"][view] @ np.array(point)
        assert (u / depth, v / depth, depth) == pytest.approx((20, 20, 10), abs=1e-4)
        np.testing.assert_allclose(
            meta["cam2img"][view] @ meta["lidar2cam"][view], meta["lidar2img"][view], atol=1e-4
        )
        np.testing.assert_allclose(meta["cam2lidar"][view] @ meta["lidar2cam"][view], np.eye(4), atol=1e-5)
    assert meta["img_shape"] == [(20, 30, 3)] * 2
