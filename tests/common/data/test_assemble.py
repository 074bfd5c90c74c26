"""A data set of one camera or none, without poses, times, sweeps and scenes, through the shared assembler."""

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.reading import BevAugmentationConfig, ReadingConfig
from bevkd_common.config.training import PasteConfig
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.frames import Annotations, CameraFrame, CloudLayout, Frame, FrameReader, Sweep
from bevkd_common.data.loader import training_batches
from bevkd_common.data.needs import DataNeeds
from bevkd_common.errors import UserError
from pydantic import ValidationError

CLASSES = ("car", "cyclist")
CLOUD = DataNeeds(clouds=frozenset({"lidar"}))
SMALL = ImageInputConfig(height=4, width=8, resize=(0.0, 0.0), test_resize=0.0, rotate_degrees=(0.0, 0.0))
PLAIN = ReadingConfig(bev_augmentation=None, images=SMALL)


class StreetReader(FrameReader):
    """Four key frames of three boxes; car k holds 3 + k points, as does each cyclist."""

    def __init__(self, needs, folder=None, damaged=(), columns=("x", "y", "z", "reflectance")):
        self.layouts = {"lidar": CloudLayout(columns)}
        self.needs, self.folder, self.damaged = needs, folder, damaged
        self.tokens = self.scenes = tuple(f"{number:06d}" for number in range(4))

    def annotations(self, index):
        boxes = np.zeros((4, 9))
        boxes[:, :2] = [(10 * index, 10), (10 * index, -10), (0, 40), (0, 45)]
        boxes[:, 3:6], boxes[:, 7:] = 4.0, np.nan
        hits = np.array([3 + index, 3 + index, 0, 9])
        return Annotations(boxes, np.array([0, 1, 0, -1]), hits, difficulty=np.array([index % 2, 0, 0, 0]))

    def read(self, index, draws):
        if index in self.damaged:
            raise UserError(f"{self.tokens[index]} is damaged")
        held = [np.repeat(box[None, :3], 3 + index, axis=0) for box in self.annotations(index).boxes[:2]]
        points = np.pad(np.concatenate([*held, [[-30.0, 0, 0]]]), ((0, 0), (0, 1)), constant_values=index)
        cameras = None
        if self.needs.cameras:
            cameras = CameraFrame([f"{index}.png"], np.array([[4, 8]]), np.eye(3)[None], np.eye(4)[None])
        return Frame({"lidar": [Sweep(points.astype(np.float32))]} if self.needs.clouds else {}, cameras)

    def image(self, name):
        return np.full((4, 8, 3), int(name[0]), dtype=np.uint8)

    @property
    def identity(self):
        return {"frames": list(self.tokens)}

    def made_paths(self, name):
        return [self.folder / name]


def street(needs=CLOUD, config=PLAIN, **options):
    return FrameSource(StreetReader(needs, **options), config, needs)


def test_a_sample_without_poses_times_and_sweeps():
    sample = street().load(2, seed=None)
    assert (sample.token, sample.scene, sample.timestamp, sample.global_T_lidar) == ("000002", "000002", None, None)
    # The third box holds no point, the fourth is of no class.
    assert (sample.labels.tolist(), sample.boxes.centers[:, 0].tolist()) == ([0, 1], [20, 20])
    cloud = sample.clouds["lidar"]
    assert (cloud.columns, cloud.points[:, 3].tolist()) == (("x", "y", "z", "reflectance"), [2.0] * 11)
    assert (sample.cameras, sample.history, sample.ego, sample.depth) == (None, None, None, None)


def test_one_camera():
    batch = next(training_batches(street(DataNeeds(cameras=True)), batch=4, seed=0, steps=1))
    assert batch.cameras.images.shape == (4, 1, 3, 4, 8)
    assert batch.cameras.images[:, 0, 0, 0, 0].tolist() == [int(token) for token in batch.tokens]
    assert (batch.clouds, batch.global_T_lidar) == ({}, None)
    assert batch.to("cpu").global_T_lidar is None


def test_augmentation_moves_points_and_boxes_alike():
    config = ReadingConfig(bev_augmentation=BevAugmentationConfig(rotation=(0.3, 0.3), flip_x=1.0), images=SMALL)
    sample = street(config=config).load(1, seed=3)
    points = sample.clouds["lidar"].points
    assert not torch.equal(sample.aug_T_lidar, torch.eye(4))
    for center in sample.boxes.centers:
        assert int(((points[:, :3] - center).norm(dim=1) < 1e-4).sum()) == 4


def test_sweeps_have_axes_and_times_of_their_own():
    class Moving(StreetReader):
        def read(self, index, draws):
            ahead = np.eye(4)
            ahead[0, 3] = 5.0
            points = np.array([[1, 2, 0, 99], [3, 0, 0, 99]], np.float32)
            kept = np.array([False, True])
            return Frame({"lidar": [Sweep(points, seconds=0.0), Sweep(points, ahead, 0.5, kept)]})

    sample = FrameSource(Moving(CLOUD, columns=("x", "y", "z", "seconds")), PLAIN, CLOUD).load(0, seed=None)
    assert sample.clouds["lidar"].points.tolist() == [[1, 2, 0, 0], [3, 0, 0, 0], [8, 0, 0, 0.5]]


def test_a_damaged_key_frame_stops_or_is_skipped():
    with pytest.raises(UserError, match="000001 is damaged"):
        street(damaged=(1,)).load(1, seed=0)
    skipping = street(config=PLAIN.model_copy(update={"damaged": "skip"}), damaged=(1,))
    sample = skipping.load(1, seed=0)
    assert (sample.token, sample.skipped) == ("000002", ("000001 is damaged",))
    with pytest.raises(UserError, match="000001 is damaged"):
        skipping.load(1, seed=None)


@pytest.mark.parametrize(
    ("rules", "held"),
    [
        ({"min_points": 5}, [(0, 5), (1, 5), (0, 6), (1, 6)]),
        ({"min_points": {"car": 6, "cyclist": 4}}, [(1, 4), (1, 5), (0, 6), (1, 6)]),
        ({"min_points": 5, "difficulties": [1]}, [(0, 6)]),
    ],
)
def test_paste_rules(tmp_path, rules, held):
    config = PasteConfig.model_validate({"counts": {"car": 2, "cyclist": 2}, **rules})
    bank = street(folder=tmp_path).pasting(config, CLASSES).paster.bank
    assert list(zip(bank.label.tolist(), np.diff(bank.offset["lidar"]).tolist(), strict=True)) == held
    assert len(list(tmp_path.iterdir())) == 1


def test_pasted_objects_bring_their_points(tmp_path):
    pasting = street(folder=tmp_path).pasting(PasteConfig(counts={"car": 3}, min_points=6), CLASSES)
    sample = pasting.load(0, seed=1)
    assert sample.labels.tolist() == [0, 1, 0]
    assert sorted(sample.clouds["lidar"].points[:, 3].tolist()) == [0.0] * 7 + [3.0] * 6
    assert pasting.load(0, seed=None).labels.tolist() == [0, 1]
    assert (street().endless(CLOUD), pasting.endless(CLOUD)) == (None, "objects are pasted")


def test_paste_rules_that_do_not_fit(tmp_path):
    class Ungraded(StreetReader):
        def annotations(self, index):
            graded = super().annotations(index)
            return Annotations(graded.boxes, graded.labels, graded.hits)

    source = FrameSource(Ungraded(CLOUD, tmp_path), PLAIN, CLOUD)
    with pytest.raises(UserError, match="does not grade its boxes"):
        source.pasting(PasteConfig(counts={"car": 1}, difficulties={0}), CLASSES)
    with pytest.raises(UserError, match=r"`paste\.min_points` names tram"):
        source.pasting(PasteConfig(counts={"car": 1}, min_points={"car": 1, "tram": 2}), CLASSES)
    with pytest.raises(ValidationError, match="must name every class of `counts`; it lacks car"):
        PasteConfig(counts={"car": 1}, min_points={"tram": 2})
