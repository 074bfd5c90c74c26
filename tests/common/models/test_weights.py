import ast
import math
from pathlib import Path

import pytest
import torch
from bevkd_common.config.centerpoint import CenterPointConfig
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import from_mmdet3d_old, to_mmdet3d_old
from bevkd_common.models.detectors.centerpoint import CenterPoint, build
from bevkd_common.models.weights import (
    CENTERPOINT_PILLAR,
    WeightMap,
    fold_old_family,
    load_official,
    mismatches,
    read_checkpoint,
)
from safetensors.torch import save_file

MANIFEST = Path(__file__).parents[2] / "data" / "keys" / "mmdet3d_centerpoint_pillar02.tsv"
CLASSES = tuple(name for task in CenterPointConfig().head.tasks for name in task)


def manifest() -> dict[str, torch.Tensor]:
    """A checkpoint with the keys, shapes and types of the released one, every tensor another."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, line in enumerate(MANIFEST.read_text().splitlines()):
        key, shape, dtype = line.split("\t")
        value = torch.rand(ast.literal_eval(shape), generator=generator)
        weights[key] = torch.tensor(number) if dtype == "int64" else value
    return weights


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return manifest()


@pytest.fixture
def paper() -> CenterPoint:
    return build(CenterPointConfig(), CLASSES)


def test_the_released_keys_and_ours_are_one_to_one_with_equal_shapes(official, paper):
    ours = {key: tuple(value.shape) for key, value in paper.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in CENTERPOINT_PILLAR.rename(official).items()}
    assert len(official) == len(theirs) == len(ours) == 414
    assert theirs == ours


def test_loading_puts_every_tensor_in_its_place(official, paper):
    load_official(paper, official, CENTERPOINT_PILLAR)
    pairs = [
        ("pts_voxel_encoder.pfn_layers.0.linear.weight", paper.pillars.linear.weight),
        ("pts_voxel_encoder.pfn_layers.0.norm.running_var", paper.pillars.norm.running_var),
        ("pts_backbone.blocks.2.15.weight", paper.backbone.blocks[2][15].weight),
        ("pts_backbone.blocks.1.4.running_mean", paper.backbone.blocks[1][4].running_mean),
        ("pts_neck.deblocks.2.0.weight", paper.neck.deblocks[2][0].weight),
        ("pts_bbox_head.shared_conv.bn.bias", paper.head.shared_conv.bn.bias),
        ("pts_bbox_head.task_heads.4.vel.0.conv.weight", paper.head.task_heads[4]["vel"][0].conv.weight),
        ("pts_bbox_head.task_heads.5.heatmap.1.bias", paper.head.task_heads[5]["heatmap"][1].bias),
    ]
    for key, value in pairs:
        assert torch.equal(official[key], value), key
    sums = sum(value.double().sum() for value in official.values())
    assert sum(value.double().sum() for value in paper.state_dict().values()) == sums


def test_a_mismatch_names_the_keys_and_loads_nothing(official, paper):
    broken = dict(official)
    broken["pts_backbone.blocks.0.0.weights"] = broken.pop("pts_backbone.blocks.0.0.weight")
    broken["pts_bbox_head.task_heads.0.reg.1.bias"] = torch.zeros(3)
    before = {key: value.clone() for key, value in paper.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_official(paper, broken, CENTERPOINT_PILLAR)
    lines = str(caught.value).splitlines()
    assert "mmdet3d CenterPoint with pillars" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "missing backbone.blocks.0.0.weight (64, 64, 3, 3), nearest is backbone.blocks.0.0.weights",
        "unexpected backbone.blocks.0.0.weights (64, 64, 3, 3), nearest is backbone.blocks.0.0.weight",
        "head.task_heads.0.reg.1.bias is (3,), wanted (2,)",
    ]
    assert all(torch.equal(value, before[key]) for key, value in paper.state_dict().items())


def test_old_weights_do_not_pass_as_new_ones(official, paper):
    old = dict(official)
    key = "pts_voxel_encoder.pfn_layers.0.linear.weight"
    old[key] = old[key][:, :10]
    with pytest.raises(UserError, match=r"pillars.linear.weight is \(64, 10\), wanted \(64, 11\)"):
        load_official(paper, old, CENTERPOINT_PILLAR)
    load_official(paper, old, CENTERPOINT_PILLAR, family="old")
    assert torch.equal(paper.pillars.linear.weight[:, :10], old[key])
    assert not paper.pillars.linear.weight[:, 10].any()


def test_long_lists_of_problems_are_cut():
    lines = mismatches({f"layer{i}.weight": torch.zeros(1) for i in range(30)}, {})
    assert len(lines) == 9
    assert lines[0] == "missing layer0.weight (1,)"
    assert lines[-1] == "and 22 more"


def test_constants_stored_as_parameters_are_ignored():
    weight_map = WeightMap("a model", (("img.", "image."),), ignored=("img.frustum", "dx"))
    renamed = weight_map.rename({key: torch.zeros(1) for key in ("img.frustum", "dx", "img.conv.weight", "other")})
    assert list(renamed) == ["image.conv.weight", "other"]


def test_the_first_prefix_that_fits_is_replaced_once():
    weight_map = WeightMap("a model", (("a.b.", "c."), ("a.", "a.a.")))
    assert list(weight_map.rename({"a.b.x": torch.zeros(1), "a.x": torch.zeros(1)})) == ["c.x", "a.a.x"]


def test_folded_heads_predict_the_same_boxes_in_our_convention():
    boxes = Boxes(
        torch.tensor(
            [[1.0, 2, 0.5, 4.6, 1.9, 1.7, yaw, 3, -4] for yaw in (0.0, 0.5, 1.6, 3.0, -0.3, -2.0)],
            dtype=torch.float64,
        )
    )
    old = to_mmdet3d_old(boxes)
    # One output channel a number, predicted by a layer whose input is constant 1.
    weights = {}
    for row, (size, yaw) in enumerate(zip(old[:, 3:6], old[:, 6], strict=True)):
        rot = torch.stack([yaw.sin(), yaw.cos()])
        weights |= {
            f"head.task_heads.{row}.dim.1.weight": size.log()[:, None],
            f"head.task_heads.{row}.dim.1.bias": size.log() * 2,
            f"head.task_heads.{row}.rot.1.weight": rot[:, None],
            f"head.task_heads.{row}.rot.1.bias": rot * 3,
            f"head.task_heads.{row}.rot.0.conv.weight": rot,
        }
    folded = fold_old_family(weights)
    for row in range(len(boxes)):
        prefix = f"head.task_heads.{row}"
        size = boxes.size[row].log()
        heading = torch.stack([boxes.yaw[row].sin(), boxes.yaw[row].cos()])
        torch.testing.assert_close(folded[f"{prefix}.dim.1.weight"][:, 0], size)
        torch.testing.assert_close(folded[f"{prefix}.dim.1.bias"], size * 2)
        torch.testing.assert_close(folded[f"{prefix}.rot.1.weight"][:, 0], heading)
        torch.testing.assert_close(folded[f"{prefix}.rot.1.bias"], heading * 3)
        assert folded[f"{prefix}.rot.0.conv.weight"] is weights[f"{prefix}.rot.0.conv.weight"]
    torch.testing.assert_close(from_mmdet3d_old(old).tensor, boxes.tensor)


def test_a_folded_model_decodes_the_boxes_of_the_old_model():
    config = CenterPointConfig(
        point_range=(-6.4, -6.4, -5.0, 6.4, 6.4, 3.0),
        pillar=0.4,
        pillar_channels=4,
        backbone_channels=(4, 4, 4),
        backbone_layers=(0, 0, 0),
        neck_channels=(4, 4, 4),
        head={"channels": 4, "score_threshold": 0.0},
    )
    torch.manual_seed(3)
    old_model, model = build(config, CLASSES).double().eval(), build(config, CLASSES).double()
    old = {key: value.clone() for key, value in old_model.state_dict().items()}
    old_model.pillars.linear.weight.data[:, 10] = 0
    old["pillars.linear.weight"] = old["pillars.linear.weight"][:, :10]
    load_official(model, old, WeightMap("our own names", ()), family="old")
    model.eval()

    x = torch.rand(1, 12, 8, 8, dtype=torch.float64)
    for theirs, ours in zip(old_model.head(x), model.head(x), strict=True):
        # Sizes w, l, h and r = -yaw - pi / 2, as the old coder reads them.
        yaw = -torch.atan2(theirs["rot"][:, 0], theirs["rot"][:, 1]) - math.pi / 2
        torch.testing.assert_close(ours["dim"], theirs["dim"][:, [1, 0, 2]])
        turn = torch.atan2(ours["rot"][:, 0], ours["rot"][:, 1]) - yaw
        assert (turn / (2 * math.pi) - (turn / (2 * math.pi)).round()).abs().max() < 1e-9
        for name in ("reg", "height", "vel", "heatmap"):
            assert torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize("nested", [True, False])
def test_pickled_checkpoints_are_read_with_or_without_a_wrapper(tmp_path, nested):
    weights = {"a.weight": torch.arange(3.0)}
    torch.save({"meta": {"epoch": 20}, "state_dict": weights} if nested else weights, tmp_path / "model.pth")
    read = read_checkpoint(tmp_path / "model.pth")
    assert list(read) == ["a.weight"]
    assert torch.equal(read["a.weight"], weights["a.weight"])


def test_safetensors_are_read(tmp_path):
    save_file({"a.weight": torch.arange(3.0)}, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path / "model.safetensors")["a.weight"].tolist() == [0, 1, 2]


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_files_that_run_code_are_refused(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Payload()}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="cannot be read safely"):
        read_checkpoint(tmp_path / "model.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all"])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read safely"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {"a": 1}}, [torch.zeros(1)]])
def test_files_without_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path / "model.pth")


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*model\.pth"):
        read_checkpoint(tmp_path / "model.pth")
