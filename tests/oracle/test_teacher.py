"""mmdet3d's own CenterPoint as a teacher; runs where mmdet3d is installed."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from bevkd_common.config.detectors.mmdet3d import Mmdet3dConfig
from bevkd_common.distill.inherit import copy_part
from bevkd_common.engine.checkpoint import load_weights, save_weights
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.experiment.build import build_detector
from bevkd_common.experiment.imported import Adjustments, translate
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Detections

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed here: `make oracle` runs this")
pytestmark = pytest.mark.oracle

OURS = runpy.run_path(str(Path(__file__).with_name("test_centerpoint.py")))
RECORDING, CLASSES = OURS["RECORDING"], OURS["CLASSES"]
GRIDS = {
    "pillar": {"bev_in": (0.2, 96, 64), "bev_block1": (0.8, 24, 16), "bev_neck": (0.8, 24, 16)},
    "voxel": {"bev_in": (0.8, 16, 8), "bev_block1": (1.6, 8, 4), "bev_neck": (0.8, 16, 8)},
}
MODULES = {
    "bev_in": ("pts_middle_encoder", 0),
    "bev_block1": ("pts_backbone", 1),
    "bev_neck": ("pts_neck", 0),
}
CHANNELS = {
    "pillar": {"bev_in": 16, "bev_block1": 24, "bev_neck": 48},
    "voxel": {"bev_in": 48, "bev_block1": 32, "bev_neck": 40},
}


@pytest.fixture(params=["pillar", "voxel"])
def name(request):
    return request.param


@pytest.fixture
def config(name, tmp_path) -> Mmdet3dConfig:
    """A configuration file and a checkpoint as mmengine leaves them."""
    make, geometry = RECORDING["MODELS"][name]
    file = tmp_path / "model.py"
    # One class is unknown to the data set.
    names = ["ambulance" if one == "barrier" else one for one in CLASSES]
    file.write_text(f"default_scope = 'mmdet3d'\nclass_names = {names}\nmodel = {make()}\n")
    with np.load(RECORDING["GOLDEN"] / f"centerpoint_{name}.npz") as golden:
        shapes = json.loads(str(golden["about"]))["shapes"]
    checkpoint = {"state_dict": OURS["published"](shapes), "meta": {"mmdet3d_version": "1.4.0"}}
    torch.save(checkpoint, tmp_path / "model.pth")
    x0, y0 = geometry["range"][:2]
    grid = {tap: Grid(x0, y0, *cells) for tap, cells in GRIDS[name].items()}
    return Mmdet3dConfig(
        config=file,
        weights=tmp_path / "model.pth",
        taps={
            tap: {"module": module, "output": output, "channels": CHANNELS[name][tap], "grid": grid[tap]}
            for tap, (module, output) in MODULES.items()
        },
        head={"grid": grid["bev_neck"], "tasks": RECORDING["TASKS"]},
    )


@pytest.fixture
def teacher(config):
    return build_detector(config, CLASSES, seed=0)


@pytest.fixture
def ours(name, config):
    """Our detector with the same weights."""
    translation = translate(config.weights, OURS["OURS"][name], CLASSES, Adjustments())
    assert translation.misfits == []
    detector = build_detector(OURS["OURS"][name], CLASSES, seed=0)
    detector.load_state_dict(translation.weights)
    return detector.eval()


def test_taps_and_boxes_are_those_of_our_own(name, teacher, ours):
    batch = OURS["batch_of"](name)
    want = frozenset({*MODULES, "head"})
    frozen = FrozenTeacher(teacher)
    seen = frozen(batch, want)
    with torch.no_grad():
        expected = ours(batch, want)
    assert seen.taps.keys() == expected.taps.keys() == MODULES.keys()
    for tap, value in expected.taps.items():
        assert teacher.taps[tap].grid.matches(ours.taps[tap].grid)
        torch.testing.assert_close(seen.taps[tap], value, **OURS["EXACT"])
    assert teacher.taps["head"].branches == ours.taps["head"].branches
    for theirs, mine in zip(seen.head, expected.head, strict=True):
        assert list(theirs) == list(mine)
        for branch, value in mine.items():
            torch.testing.assert_close(theirs[branch], value, **OURS["EXACT"])
    barrier = CLASSES.index("barrier")
    for theirs, mine in zip(teacher.decode(seen, batch), ours.decode(expected, batch), strict=True):
        known = mine.labels != barrier
        assert known.sum() < len(known)
        of_known_classes = Detections(mine.boxes[known], mine.scores[known], mine.labels[known])
        OURS["assert_same_detections"](theirs, of_known_classes)


def test_weights_survive_a_checkpoint_of_ours(config, teacher, tmp_path):
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    path = tmp_path / "raw.safetensors"
    save_weights(path, before, kind="raw", architecture="one", step=0)
    again = build_detector(config.model_copy(update={"weights": None}), CLASSES, seed=1)
    load_weights(path, again)
    assert len(before) > 300
    assert all(torch.equal(value, before[key]) for key, value in again.state_dict().items())


def test_its_head_can_be_inherited(teacher, ours):
    source = ours.state_dict()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    copy_part(teacher, ours, "head", "test", "stop")
    found = ours.state_dict()
    copied = [key for key in source if key.startswith("head.")]
    assert len(copied) > 200
    assert all(torch.equal(found[key], source[key]) for key in copied)
