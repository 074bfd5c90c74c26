"""Checkpoints of other code bases become ours: every tensor in its place, in our convention, or nothing."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.plugins import DetectorSpec, installed, load
from bevkd_common.config.published import PUBLISHED, Published
from bevkd_common.config.reading.loading import load_detector
from bevkd_common.engine.checkpoint import load_weights
from bevkd_common.errors import UserError
from bevkd_common.experiment import imported
from bevkd_common.experiment.build import architecture_hash, build_detector
from bevkd_common.experiment.imported import Adjustments, check_settings, translate, write
from bevkd_common.models.weights.centerpoint import CENTERPOINT_PILLAR
from safetensors import safe_open

KEYS = Path(__file__).parents[2] / "data" / "keys"

GEOMETRY = (
    *(f"img_view_transformer.{name}" for name in ("dx", "bx", "nx", "frustum")),
    *(f"model.backbone.{name}" for name in ("voxel_size", "voxel_coord", "voxel_num", "frustum")),
)
FINE = ("voxel=0.075", "point_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]")
MEGVII = ("mount={}",)
PILLARS = "mmdet3d_centerpoint_pillar02"
SMALL = (
    "point_range=[-6.4, -6.4, -5.0, 6.4, 6.4, 3.0]",
    "pillar=0.4",
    "pillar_channels=4",
    "backbone_channels=[4, 4, 4]",
    "backbone_layers=[0, 0, 0]",
    "neck_channels=[4, 4, 4]",
    "head={channels: 4, score_threshold: 0.0}",
)


def official(name):
    """Weights with the keys, shapes and types of a published file; every row of a tensor is the same."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, line in enumerate((KEYS / f"{name}.tsv").read_text().splitlines()):
        key, shape, dtype = line.split("\t")
        size = ast.literal_eval(shape)
        random = torch.rand(size[-1:], generator=generator).expand(size)
        weights[key] = torch.tensor(number) if dtype == "int64" and not size else random
    return weights


def saved(tmp_path, weights, **meta):
    path = tmp_path / "official.pth"
    torch.save({"meta": {"CLASSES": CLASSES, **meta}, "state_dict": weights}, path)
    return path


def fingerprint(tensor):
    return tensor.reshape(-1, tensor.shape[-1])[0].double().sum().item() if tensor.ndim else tensor.item()


@pytest.mark.parametrize(
    ("name", "kind", "overrides", "family", "left_out"),
    [
        (PILLARS, "centerpoint", (), "new", 0),
        ("bevdet_repo_bevdet_r50", "bevdet", (), "old", 4),
        ("bevdet_repo_bevdet4d_r50", "bevdet4d", (), "old", 4),
        ("bevdet_repo_bevdepth_r50", "bevdepth", ("frames=1",), "old", 4),
        ("bevdet_repo_bevdepth4d_r50", "bevdepth", (), "old", 4),
        ("mmdet3d_centerpoint_voxel01", "centerpoint_voxel", (), "new", 0),
        ("mmdet3d_centerpoint_voxel0075", "centerpoint_voxel", FINE, "new", 0),
        (
            "mmdet3d_centerpoint_voxel0075_dcnhead",
            "centerpoint_voxel",
            (*FINE, "head={deformable: true}"),
            "new",
            0,
        ),
        ("megvii_bevdepth_r50_2key", "megvii_bevdepth", MEGVII, "new", 4),
        ("megvii_bevdepth_r50_2key_da", "megvii_bevdepth", (*MEGVII, "depth_aggregation=true"), "new", 4),
    ],
)
def test_published_files_are_translated_one_to_one(tmp_path, name, kind, overrides, family, left_out):
    weights = official(name)
    if name.endswith("_dcnhead"):
        # The list has the keys of the head alone.
        body = official(name.removesuffix("_dcnhead"))
        weights |= {key: value for key, value in body.items() if not key.startswith("pts_bbox_head.")}
    file = saved(tmp_path, weights, mmdet3d_version="1.0.0rc4" if kind == "centerpoint_voxel" else None)
    found = translate(file, load_detector(kind, overrides), CLASSES, Adjustments())
    assert found.misfits == []
    assert (len(found.weights), found.ignored) == (len(weights) - left_out, left_out)
    assert found.about["convention"].startswith(family)
    assert found.about["frame"] == ("ego" if kind == "megvii_bevdepth" else "lidar")
    # Each tensor has a row that no other has; folding turns some of them around.
    kept = (value for key, value in weights.items() if not key.endswith(GEOMETRY))
    # Sparse kernels are listed as spconv 1.x has them.
    theirs = sorted(fingerprint(value.permute(4, 0, 1, 2, 3) if value.ndim == 5 else value) for value in kept)
    ours = sorted(abs(fingerprint(value)) for value in found.weights.values())
    assert ours == theirs


def test_every_detector_with_published_forms_is_tested_above():
    found = {kind for kind, spec in installed(DetectorSpec).found.items() if spec.released is not None}
    known = {"centerpoint", "centerpoint_voxel", "bevdet", "bevdet4d", "bevdepth", "megvii_bevdepth", "bevformer"}
    assert found == known
    assert all(load(installed(DetectorSpec).find(kind).released) for kind in found)


def test_an_imported_file_loads_strictly_and_says_what_it_is(tmp_path):
    config = load_detector("centerpoint")
    file, out = saved(tmp_path, official(PILLARS)), tmp_path / "ours.safetensors"
    write(translate(file, config, CLASSES, Adjustments()), out)
    detector = build_detector(config, CLASSES, seed=0)
    metadata = load_weights(out, detector, architecture=architecture_hash(config, CLASSES))
    check_settings(out, metadata, config)
    assert metadata["source"] == "official.pth"
    assert metadata["form"] == "mmdet3d CenterPoint with pillars"
    assert metadata["convention"] == "new: its pillars have 11 inputs"
    assert len(metadata["sha256"]) == 64
    theirs = official(PILLARS)["pts_backbone.blocks.0.0.weight"]
    assert torch.equal(detector.backbone.blocks[0][0].weight, theirs)


def test_equal_files_give_equal_bytes(tmp_path):
    config = load_detector("centerpoint")
    written = []
    for out in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        write(translate(saved(tmp_path, official(PILLARS)), config, CLASSES, Adjustments()), out)
        written.append(out.read_bytes())
        with safe_open(out, framework="pt") as file:
            assert len(file.metadata()) == 9
    assert written[0] == written[1]
    length = int.from_bytes(written[0][:8], "little")
    names = list(json.loads(written[0][8 : 8 + length])["__metadata__"])
    assert names == sorted(names)


def to_official(ours):
    """The inverse of the names of CenterPoint."""
    names = {}
    for key, value in ours.items():
        theirs = next(t + key.removeprefix(o) for t, o in CENTERPOINT_PILLAR.prefixes if key.startswith(o))
        names[theirs] = value
    return names


def test_an_old_file_decodes_to_the_boxes_that_its_own_code_would_decode(tmp_path):
    config = load_detector("centerpoint", SMALL)
    torch.manual_seed(5)
    old = build_detector(config, CLASSES, seed=5)
    old.reader.pillars.linear.weight.data[:, 10] = 0
    state = {key: value.clone() for key, value in old.state_dict().items()}
    state["reader.pillars.linear.weight"] = state["reader.pillars.linear.weight"][:, :10]
    found = translate(saved(tmp_path, to_official(state)), config, CLASSES, Adjustments())
    assert found.misfits == []
    assert found.about["convention"] == "old: its pillars have 10 inputs"
    write(found, tmp_path / "ours.safetensors")
    new = build_detector(config, CLASSES, seed=0)
    load_weights(tmp_path / "ours.safetensors", new)
    old.eval()
    new.eval()
    features = torch.rand(5, 11)
    torch.testing.assert_close(new.reader.pillars.linear(features), old.reader.pillars.linear(features))

    x = torch.rand(1, 12, 8, 8)
    decoded = 0
    with torch.no_grad():
        for theirs, ours in zip(old.head(x), new.head(x), strict=True):
            # The decoder of that time: sizes w, l, h; the angle clockwise from -y.
            width, length, height = theirs["dim"].exp().unbind(1)
            turned = torch.atan2(theirs["rot"][:, 0], theirs["rot"][:, 1])
            corners_then = corners(length, width, -turned - math.pi / 2)
            ours_length, ours_width, ours_height = ours["dim"].exp().unbind(1)
            yaw = torch.atan2(ours["rot"][:, 0], ours["rot"][:, 1])
            torch.testing.assert_close(corners(ours_length, ours_width, yaw), corners_then, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours_height, height)
            assert all(torch.equal(ours[name], theirs[name]) for name in ("reg", "height", "vel", "heatmap"))
            decoded += yaw.numel()
    assert decoded == 6 * 64


def corners(length, width, yaw):
    """Front left corner of a box, relative to its centre; it tells every exchange and turn."""
    along, across = length / 2, width / 2
    return torch.stack([along * yaw.cos() - across * yaw.sin(), along * yaw.sin() + across * yaw.cos()])


def test_misfits_are_listed_and_nothing_is_written(tmp_path):
    weights = official(PILLARS)
    weights["pts_backbone.blocks.0.0.weights"] = weights.pop("pts_backbone.blocks.0.0.weight")
    weights["pts_bbox_head.task_heads.0.reg.1.bias"] = torch.zeros(3)
    found = translate(saved(tmp_path, weights), load_detector("centerpoint"), CLASSES, Adjustments())
    assert [(it.fault, it.key, it.found, it.wanted) for it in found.misfits] == [
        ("missing", "backbone.blocks.0.0.weight", None, (64, 64, 3, 3)),
        ("unexpected", "backbone.blocks.0.0.weights", (64, 64, 3, 3), None),
        ("shape", "head.task_heads.0.reg.1.bias", (3,), (2,)),
    ]
    assert found.misfits[0].nearest == "backbone.blocks.0.0.weights"
    with pytest.raises(ValueError, match="must not be written"):
        write(found, tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


def test_keys_with_other_names_are_named_by_the_user(tmp_path):
    weights = {f"model.{key}": value for key, value in official(PILLARS).items()}
    weights["model.teacher.weight"] = torch.zeros(2)
    prefixes = tuple((f"model.{theirs}", ours) for theirs, ours in CENTERPOINT_PILLAR.prefixes)
    known = Adjustments(renamed=prefixes, ignored=("model.teacher.",), family="new")
    found = translate(saved(tmp_path, weights), load_detector("centerpoint"), CLASSES, known)
    assert (found.misfits, found.ignored, len(found.weights)) == ([], 1, 414)
    assert found.about["convention"] == "new: stated"


def test_two_keys_of_one_name_are_refused(tmp_path):
    weights = official(PILLARS) | {"neck.deblocks.0.0.weight": torch.zeros(1)}
    with pytest.raises(UserError, match="1 of its keys get the name of another"):
        translate(saved(tmp_path, weights), load_detector("centerpoint"), CLASSES, Adjustments())


def test_the_students_of_distillbev_have_a_norm_more(tmp_path):
    weights = official("bevdet_repo_bevdet_r50")
    for name in ("weight", "bias", "running_mean", "running_var"):
        weights[f"img_bev_encoder_neck.up2.5.{name}"] = torch.rand(256)
    weights["img_bev_encoder_neck.up2.5.num_batches_tracked"] = torch.tensor(3)
    file = saved(tmp_path, weights)
    config = load_detector("bevdet", ["bev_neck.extra_norm_act=true"])
    found = translate(file, config, CLASSES, Adjustments())
    assert found.misfits == []
    assert torch.equal(
        found.weights["bev_neck.norm_act.0.running_var"], weights["img_bev_encoder_neck.up2.5.running_var"]
    )
    plain = translate(file, load_detector("bevdet"), CLASSES, Adjustments())
    assert {it.fault for it in plain.misfits} == {"unexpected"}
    assert len(plain.misfits) == 5


def without_marks():
    weights = official(PILLARS)
    layer = "pts_voxel_encoder.pfn_layers.0.linear.weight"
    return weights | {layer: torch.zeros(64, 16)}


@pytest.mark.parametrize(
    ("meta", "digest", "convention"),
    [
        ({"mmdet3d_version": "0.17.2"}, "", "old: it was saved by mmdetection3d 0.17.2"),
        ({"mmdet3d_version": "1.0.0rc4"}, "", "new: it was saved by mmdetection3d 1.0.0rc4"),
        ({}, "own", "new: it is the published file.pth"),
    ],
)
def test_what_gives_a_convention_away(tmp_path, monkeypatch, meta, digest, convention):
    file = saved(tmp_path, without_marks(), **meta)
    if digest:
        start = imported._sha256(file)[:8]
        known = Published("file.pth", "", "", "centerpoint", "new", None, None, start)
        monkeypatch.setattr(imported, "PUBLISHED", (*PUBLISHED, known))
    found = translate(file, load_detector("centerpoint"), CLASSES, Adjustments())
    assert found.about["convention"] == convention


@pytest.mark.parametrize(
    ("weights", "meta", "message"),
    [
        (without_marks, {}, "is not to be told from it: state --convention new for"),
        (without_marks, {"mmdet3d_version": 3}, "is not to be told from it"),
        (
            lambda: official(PILLARS),
            {"mmdet3d_version": "0.9.0"},
            r"is contradictory \(new, because its pillars have 11 inputs; old, because it was saved by .* 0.9.0\)",
        ),
    ],
)
def test_a_convention_is_not_guessed(tmp_path, weights, meta, message):
    file = saved(tmp_path, weights(), **meta)
    with pytest.raises(UserError, match=message):
        translate(file, load_detector("centerpoint"), CLASSES, Adjustments())
    for stated in ("old", "new"):
        found = translate(file, load_detector("centerpoint"), CLASSES, Adjustments(family=stated))
        assert found.about["convention"] == f"{stated}: stated"


def test_other_settings_than_those_of_the_import_are_named(tmp_path):
    config = load_detector("centerpoint", SMALL)
    metadata = {"detector": json.dumps(config.model_dump(mode="json"))}
    check_settings(tmp_path, metadata, config)
    other = load_detector("centerpoint", [*SMALL, "sweeps=5", "head.max_detections=10"])
    with pytest.raises(
        UserError, match=r"imported with `sweeps` 10, not 5, `head\.max_detections` 83, not 10: use"
    ):
        check_settings(tmp_path, metadata, other)
    older = config.model_dump(mode="json")
    del older["sweeps"]
    check_settings(tmp_path, {"detector": json.dumps(older)}, config)


def test_what_is_known_of_published_files():
    assert len(PUBLISHED) == 22
    kinds = installed(DetectorSpec).found
    assert {it.kind for it in PUBLISHED} - {""} <= {kind for kind in kinds if kinds[kind].released is not None}
    digests = [it.digest for it in PUBLISHED if it.digest]
    assert len(set(digests)) == 5
    assert all(it.name.endswith(f"-{it.digest}.pth") for it in PUBLISHED if it.digest)
    best = max((it for it in PUBLISHED if it.kind == "centerpoint"), key=lambda it: it.nds)
    assert (best.mean_ap, best.nds) == (48.70, 59.62)
    assert sum(bool(it.kind) for it in PUBLISHED) == 18


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    found = translate(saved(tmp_path, official(PILLARS)), load_detector("centerpoint"), CLASSES, Adjustments())
    with pytest.raises(UserError, match="cannot be written: "):
        write(found, tmp_path / "official.pth" / "ours.safetensors")
