"""Our CenterPoint computes what mmdet3d's computed: see `record.py` for how it was recorded."""

import copy
import json
import math
import runpy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bevkd_common.config.detectors.centerpoint import CenterPointConfig
from bevkd_common.config.detectors.centerpoint_voxel import CenterPointVoxelConfig
from bevkd_common.data.samples import Batch, Cloud, Sample, collate
from bevkd_common.experiment.build import build_detector
from bevkd_common.experiment.imported import Adjustments, translate
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import from_mmdet3d
from bevkd_common.models.detector import CenterTargets, Detections
from bevkd_common.models.detectors.centerpoint import CenterPoint
from bevkd_common.models.heads.center_decode import Suppression
from bevkd_common.models.weights.centerpoint import CENTERPOINT_PILLAR
from bevkd_common.models.weights.centerpoint_voxel import CENTERPOINT_VOXEL
from bevkd_common.models.weights.maps import WeightMap
from torch import Tensor

RECORDING = runpy.run_path(str(Path(__file__).with_name("record.py")))
CLASSES = tuple(name for task in RECORDING["TASKS"] for name in task)
TASKS = range(len(RECORDING["TASKS"]))
HEAD = {"channels": 16, "max_candidates": 100}
OURS = {
    "pillar": CenterPointConfig(
        point_range=RECORDING["PILLARS"]["range"],
        max_points=RECORDING["PILLARS"]["points"],
        max_pillars=RECORDING["PILLARS"]["voxels"],
        pillar_channels=16,
        backbone_channels=(16, 24, 32),
        neck_channels=(24, 16, 8),
        head=HEAD,
    ),
    "voxel": CenterPointVoxelConfig(
        point_range=RECORDING["VOXELS"]["range"],
        max_points=RECORDING["VOXELS"]["points"],
        max_voxels=RECORDING["VOXELS"]["voxels"],
        encoder_channels=(8, 12, 16, 24),
        backbone_channels=(24, 32),
        neck_channels=(24, 16),
        head=HEAD,
    ),
}
WEIGHT_MAPS = {"pillar": CENTERPOINT_PILLAR, "voxel": CENTERPOINT_VOXEL}
EXACT = {"rtol": 1e-4, "atol": 1e-4}


@dataclass
class Case:
    """One recorded model, and ours with its weights.

    Attributes:
        golden: What was recorded.
        about: Names, shapes and versions.
        detector: Ours, in eval mode.
        batch: What both were given.
        weight_map: How the tensors correspond.
    """

    golden: dict[str, np.ndarray]
    about: dict[str, object]
    detector: CenterPoint
    batch: Batch
    weight_map: WeightMap

    def recorded(self, key: str) -> Tensor:
        return torch.from_numpy(self.golden[key])


@pytest.fixture(params=OURS, scope="module")
def case(request, tmp_path_factory) -> Case:
    name = request.param
    with np.load(RECORDING["GOLDEN"] / f"centerpoint_{name}.npz") as file:
        golden = dict(file)
    about = json.loads(str(golden.pop("about")))
    checkpoint = {"state_dict": published(about["shapes"]), "meta": {"mmdet3d_version": "1.4.0"}}
    path = tmp_path_factory.mktemp("weights") / f"{name}.pth"
    torch.save(checkpoint, path)
    translation = translate(path, OURS[name], CLASSES, Adjustments())
    assert (translation.misfits, translation.ignored) == ([], 0)
    detector = build_detector(OURS[name], CLASSES, seed=0)
    detector.load_state_dict(translation.weights)
    return Case(golden, about, detector.eval(), batch_of(name), WEIGHT_MAPS[name])


def published(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The weights as a released file has them: sparse ones in the layout of spconv 1.x."""
    weights = {}
    for key, shape in shapes.items():
        numbers = torch.from_numpy(RECORDING["values"](key, shape))
        numbers = numbers if numbers.dtype == torch.int64 else numbers.float()
        weights[key] = numbers.permute(1, 2, 3, 4, 0) if numbers.ndim == 5 else numbers
    return weights


def batch_of(name: str) -> Batch:
    _, geometry = RECORDING["MODELS"][name]
    samples = [
        Sample(
            token=str(number),
            scene="scene",
            timestamp=0,
            boxes=Boxes(torch.from_numpy(boxes)),
            labels=torch.from_numpy(labels),
            cameras=None,
            clouds={"lidar": Cloud(torch.from_numpy(points), (len(points),), tuple("xyzit"))},
            aug_T_lidar=torch.eye(4),
            global_T_lidar=torch.eye(4, dtype=torch.float64),
        )
        for number, (points, boxes, labels) in enumerate(zip(*RECORDING["scene"](geometry), strict=True))
    ]
    return collate(samples)


def head_maps(case: Case) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        return list(case.detector(case.batch, frozenset({"head"})).head)


def test_every_recorded_number_is_compared(case):
    kinds = {key.split("/")[0] for key in case.golden}
    assert kinds == {"map", "target", "loss", "detection", "train"}
    assert len(case.golden) == 6 * 6 + 6 * 4 + 12 + 2 * 2 * 3 + 12 + 2
    assert case.about["versions"]["mmdet3d"] == "1.4.0"


def test_caps_on_points_and_voxels_are_reached(case):
    voxels = case.batch.cloud("lidar").voxels(case.detector.spec)
    assert voxels.counts.max() == case.detector.spec.max_points
    assert len(voxels.counts) == 2 * case.detector.spec.max_voxels


def test_head_maps(case):
    for task, branches in enumerate(head_maps(case)):
        assert list(branches) == list(RECORDING["BRANCHES"])
        for branch, value in branches.items():
            recorded = case.recorded(f"map/{task}/{branch}")
            assert recorded.std() > 0.05
            torch.testing.assert_close(value, recorded, **EXACT, msg=lambda m: f"{task} {branch}: {m}")  # noqa: B023


def test_targets(case):
    targets = case.detector.targets(None, case.batch)
    assert isinstance(targets, CenterTargets)
    for task in TASKS:
        recorded = {part: case.recorded(f"target/{task}/{part}") for part in ("regression", "indices", "mask")}
        torch.testing.assert_close(targets.heatmaps[task], case.recorded(f"target/{task}/heatmaps"), **EXACT)
        for sample in range(len(case.batch)):
            ours = _learned(targets.regression[task], targets.indices[task], targets.mask[task], sample)
            theirs = _learned(recorded["regression"], recorded["indices"], recorded["mask"].bool(), sample)
            torch.testing.assert_close(ours, theirs, **EXACT)


def _learned(code: Tensor, indices: Tensor, mask: Tensor, sample: int) -> Tensor:
    """Cell and code of the boxes of a task: theirs are sorted by class, ours stand as in the batch."""
    rows = torch.cat([indices[sample, :, None].double(), code[sample].double()], dim=1)[mask[sample]]
    return rows[rows.sum(dim=1).argsort()]


def test_some_boxes_are_learned_outside_the_border_and_some_not_at_all(case):
    mask = torch.stack([case.recorded(f"target/{task}/mask").bool() for task in TASKS])
    codes = torch.stack([case.recorded(f"target/{task}/regression") for task in TASKS])[mask]
    assert len(codes) < case.batch.valid.sum()
    assert (codes[:, :2] < 0).any()


def test_losses(case):
    predictions = head_maps(case)
    targets = case.detector.targets(None, case.batch)
    for task in TASKS:
        one = CenterTargets(
            targets.heatmaps[task : task + 1],
            targets.regression[task : task + 1],
            targets.indices[task : task + 1],
            targets.mask[task : task + 1],
        )
        terms = case.detector.head.losses(predictions[task : task + 1], one)
        # Theirs are weighted already.
        for term, theirs in (("heatmap", "loss_heatmap"), ("boxes", "loss_bbox")):
            ours = terms[term].value * terms[term].weight
            torch.testing.assert_close(ours, case.recorded(f"loss/task{task}.{theirs}"), **EXACT)


@pytest.mark.parametrize("nms", ["circle", "rotate"])
def test_detections(case, nms, monkeypatch):
    if nms == "rotate":
        decoding = replace(case.detector.head.decoding, suppressions=(Suppression("rotate", 0.2),) * 6)
        monkeypatch.setattr(case.detector.head, "decoding", decoding)
    for sample, found in enumerate(case.detector.head.decode(head_maps(case))):
        boxes, scores, labels = (
            case.recorded(f"detection/{nms}/{sample}/{part}") for part in ("boxes", "scores", "labels")
        )
        # Theirs have the centre of the bottom.
        assert_same_detections(found, Detections(from_mmdet3d(boxes), scores, labels.long()))


def assert_same_detections(ours: Detections, theirs: Detections) -> None:
    """Class by class: scores of two classes may be as good as equal, and mmdet3d lists task by task."""
    assert len(ours.scores) == len(theirs.scores) >= 40
    assert (ours.scores.diff() <= 0).all()
    for label in range(len(CLASSES)):
        mine, recorded = ours.labels == label, (theirs.labels == label).nonzero()[:, 0]
        recorded = recorded[theirs.scores[recorded].argsort(descending=True, stable=True)]
        torch.testing.assert_close(ours.scores[mine], theirs.scores[recorded], **EXACT)
        torch.testing.assert_close(ours.boxes[mine].tensor, theirs.boxes[recorded].tensor, **EXACT)


def test_a_training_step_has_the_same_losses_gradients_and_statistics(case):
    # In double precision, as it was recorded: see there.
    detector, batch = copy.deepcopy(case.detector).train().double(), in_double(case)
    outputs = detector(batch, frozenset({"head"}))
    terms = detector.losses(outputs, detector.targets(outputs, batch), batch).terms
    for term, theirs in (("heatmap", "loss_heatmap"), ("boxes", "loss_bbox")):
        recorded = sum(case.recorded(f"train/loss/task{task}.{theirs}") for task in TASKS)
        torch.testing.assert_close(terms[term].value * terms[term].weight, recorded, check_dtype=False, **EXACT)
    sum(term.value * term.weight for term in terms.values()).backward()
    norms = dict(zip(case.about["parameters"], case.recorded("train/gradients"), strict=True))
    gradients = {key: parameter.grad.norm() for key, parameter in detector.named_parameters()}
    _assert_equal(gradients, case.weight_map.rename(norms))
    running = [key for key in case.about["shapes"] if "running" in key]
    sizes = [math.prod(case.about["shapes"][key]) for key in running]
    statistics = dict(zip(running, case.recorded("train/statistics").split(sizes), strict=True))
    ours = {key: value for key, value in detector.state_dict().items() if "running" in key}
    _assert_equal(ours, case.weight_map.rename(statistics))


def in_double(case: Case) -> Batch:
    """The same voxels, their points as doubles."""
    spec = case.detector.spec
    cloud = case.batch.cloud("lidar")
    voxels = cloud.voxels(spec)
    double = replace(cloud)
    double.derived(spec, lambda: replace(voxels, points=voxels.points.double()))
    return replace(case.batch, clouds={"lidar": double})


def _assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert len(ours) >= 100
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], **EXACT, msg=lambda m: f"{key}: {m}")  # noqa: B023
