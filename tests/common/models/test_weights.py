import ast
import math
from pathlib import Path

import pytest
import torch
from bevkd_common.config.detectors.centerpoint import CenterPointConfig
from bevkd_common.config.detectors.centerpoint_voxel import CenterPointVoxelConfig
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import from_mmdet3d_old, to_mmdet3d_old
from bevkd_common.models.detectors import centerpoint_voxel
from bevkd_common.models.detectors.centerpoint import CenterPoint, build
from bevkd_common.models.foreign_files import read_checkpoint
from bevkd_common.models.state_dicts import mismatches
from bevkd_common.models.weights.centerpoint import CENTERPOINT_PILLAR
from bevkd_common.models.weights.centerpoint_voxel import CENTERPOINT_VOXEL
from bevkd_common.models.weights.maps import WeightMap, fold_old_family, load_official, to_spconv2
from safetensors.torch import save_file

KEYS = Path(__file__).parents[2] / "data" / "keys"
CLASSES = tuple(name for task in CenterPointConfig().head.tasks for name in task)


def manifest(name: str) -> dict[str, torch.Tensor]:
    """A checkpoint with the keys, shapes and types of the released one, every tensor another."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, line in enumerate((KEYS / f"mmdet3d_centerpoint_{name}.tsv").read_text().splitlines()):
        key, shape, dtype = line.split("\t")
        value = torch.rand(ast.literal_eval(shape), generator=generator)
        weights[key] = torch.tensor(number) if dtype == "int64" else value
    return weights


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return manifest("pillar02")


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
        ("pts_voxel_encoder.pfn_layers.0.linear.weight", paper.reader.pillars.linear.weight),
        ("pts_voxel_encoder.pfn_layers.0.norm.running_var", paper.reader.pillars.norm.running_var),
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


FINE = {"point_range": (-54, -54, -5, 54, 54, 3), "voxel": 0.075}


def voxel_model(**changes) -> CenterPoint:
    return centerpoint_voxel.build(CenterPointVoxelConfig(**changes), CLASSES)


@pytest.mark.parametrize(("name", "changes"), [("voxel01", {}), ("voxel0075", FINE)])
def test_the_released_voxel_models_and_ours_are_one_to_one(name, changes):
    theirs, model = manifest(name), voxel_model(**changes)
    load_official(model, theirs, CENTERPOINT_VOXEL)
    assert len(theirs) == len(model.state_dict()) == 504
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_938_262
    encoder = model.reader.encoder
    prefix = "pts_middle_encoder"
    pairs = [
        (f"{prefix}.conv_input.1.running_mean", encoder.stem.norm.running_mean),
        (f"{prefix}.encoder_layers.encoder_layer3.1.bn2.weight", encoder.stages[2][1].bn2.weight),
        (f"{prefix}.encoder_layers.encoder_layer2.2.1.running_var", encoder.stages[1][2].norm.running_var),
        (f"{prefix}.conv_out.1.bias", encoder.output.norm.bias),
        ("pts_backbone.blocks.1.15.weight", model.backbone.blocks[1][15].weight),
        ("pts_neck.deblocks.0.0.weight", model.neck.deblocks[0][0].weight),
    ]
    for key, value in pairs:
        assert torch.equal(theirs[key], value), key
    down = theirs[f"{prefix}.encoder_layers.encoder_layer1.2.0.weight"]
    assert down.shape == (3, 3, 3, 16, 32)
    assert torch.equal(encoder.stages[0][2].conv.weight[5, 0, 1, 2, 7], down[0, 1, 2, 7, 5])
    total = sum(value.double().sum() for value in theirs.values())
    assert sum(value.double().sum() for value in model.state_dict().values()) == pytest.approx(
        total.item(), rel=1e-12
    )


def test_the_released_deformable_head_and_ours_are_one_to_one():
    theirs, model = manifest("voxel0075_dcnhead"), voxel_model(**FINE, head={"deformable": True})
    load_official(model.head, theirs, WeightMap("the head of CenterPoint", (("pts_bbox_head.", ""),)))
    assert len(theirs) == len(model.head.state_dict()) == 330
    assert sum(parameter.numel() for parameter in model.head.parameters()) == 1_902_366
    renamed = CENTERPOINT_VOXEL.rename(theirs)
    assert renamed.keys() == {f"head.{key}" for key in model.head.state_dict()}
    key = "pts_bbox_head.task_heads.3.feature_adapt_reg.conv_offset.weight"
    assert torch.equal(theirs[key], model.head.task_heads[3].feature_adapt_reg.conv_offset.weight)


def test_sparse_weights_of_both_spconv_releases_load():
    old, model = manifest("voxel01"), voxel_model()
    load_official(model, old, CENTERPOINT_VOXEL)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    new = {key: value.permute(4, 0, 1, 2, 3) if value.ndim == 5 else value for key, value in old.items()}
    assert sum(value.ndim == 5 for value in old.values()) == 1 + 4 * 4 + 3 + 1
    for weights in (new, old):
        model = voxel_model()
        load_official(model, weights, CENTERPOINT_VOXEL)
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_sparse_weight_that_could_be_of_either_release_is_refused():
    ours = {"conv.weight": torch.zeros(3, 3, 3, 3, 3)}
    with pytest.raises(UserError, match=r"conv.weight is \(3, 3, 3, 3, 3\) with spconv 1.x and with 2.x"):
        to_spconv2({"conv.weight": torch.rand(3, 3, 3, 3, 3)}, ours)
    # Equal edges and channels are not yet the same in both: the kernel is no cube.
    value = torch.rand(3, 3, 1, 3, 3)
    assert torch.equal(
        to_spconv2({"w": value}, {"w": torch.zeros(3, 3, 3, 1, 3)})["w"], value.permute(4, 0, 1, 2, 3)
    )
    assert to_spconv2({"w": value}, {"w": torch.zeros(3, 3, 1, 3, 3)})["w"] is value


def test_a_sparse_weight_that_fits_neither_release_is_a_mismatch():
    theirs, model = manifest("voxel01"), voxel_model()
    theirs["pts_middle_encoder.conv_input.0.weight"] = torch.rand(3, 3, 3, 4, 16)
    with pytest.raises(UserError, match=r"stem.conv.weight is \(3, 3, 3, 4, 16\), wanted \(16, 3, 3, 3, 5\)"):
        load_official(model, theirs, CENTERPOINT_VOXEL)


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
    with pytest.raises(UserError, match=r"reader.pillars.linear.weight is \(64, 10\), wanted \(64, 11\)"):
        load_official(paper, old, CENTERPOINT_PILLAR)
    load_official(paper, old, CENTERPOINT_PILLAR, family="old")
    assert torch.equal(paper.reader.pillars.linear.weight[:, :10], old[key])
    assert not paper.reader.pillars.linear.weight[:, 10].any()


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
    old_model.reader.pillars.linear.weight.data[:, 10] = 0
    old["reader.pillars.linear.weight"] = old["reader.pillars.linear.weight"][:, :10]
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
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty: the download did not finish"), (b"not a checkpoint at all", "cannot be read safely")],
)
def test_damaged_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} {message}"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {"a": 1}}, [torch.zeros(1)]])
def test_files_without_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path / "model.pth")


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*model\.pth"):
        read_checkpoint(tmp_path / "model.pth")
