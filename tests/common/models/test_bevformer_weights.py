"""The names of the released checkpoints, as their configurations make them."""

import math

import pytest
import torch
from bevkd_common.config.detectors.bevformer import BevFormerConfig
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detectors.bevformer import BevFormer, build
from bevkd_common.models.heads.detr_code import encode
from bevkd_common.models.weights.bevformer import BEVFORMER
from bevkd_common.models.weights.maps import fold_old_family, load_official
from torch import Tensor, nn

CLASSES = tuple(f"class{number}" for number in range(10))
CODE_WEIGHTS = 10
"""Stored as a parameter there."""


def cells(count: int) -> dict[str, float]:
    return {"x0": -51.2, "y0": -51.2, "cell": 102.4 / count, "nx": count, "ny": count}


R50 = {"kind": "timm", "strides": [32], "frozen_stages": 1, "frozen_norms": True}
SIZES = {
    "tiny": {
        "image_size": [450, 800], "image_backbone": R50, "image_levels": 1, "frames": 3, "grid": cells(50),
        "encoder_layers": 3,
    },
    "small": {
        "image_size": [720, 1280], "image_backbone": {"kind": "caffe_resnet", "strides": [32]}, "image_levels": 1,
        "frames": 3, "grid": cells(150), "encoder_layers": 3, "normalization": "caffe_bgr",
    },
    "base": {"image_backbone": {"kind": "caffe_resnet"}, "normalization": "caffe_bgr"},
}  # fmt: skip


def released(size: str) -> BevFormer:
    with torch.device("meta"):
        return build(BevFormerConfig.model_validate(SIZES[size]), CLASSES)


def layer(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (256,), f"{name}.bias": (256,)}


def convolution(name: str, inputs: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.conv.weight": (256, inputs, size, size), f"{name}.conv.bias": (256,)}


def block(name: str, attentions: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    keys = {f"attentions.{key}": shape for key, shape in attentions.items()}
    keys |= layer("ffns.0.layers.0.0", 512, 256) | layer("ffns.0.layers.1", 256, 512)
    keys |= norm("norms.0") | norm("norms.1") | norm("norms.2")
    return {f"pts_bbox_head.transformer.{name}.{key}": shape for key, shape in keys.items()}


def names(size: str, backbone: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released checkpoint; the backbone's are torchvision's, as ours are."""
    config = BevFormerConfig.model_validate(SIZES[size])
    levels, count = config.image_levels, config.grid.nx
    head, transformer = "pts_bbox_head", "pts_bbox_head.transformer"
    keys = {f"img_backbone.{key}": tuple(value.shape) for key, value in backbone.state_dict().items()}
    for place, channels in enumerate((2048,) if levels == 1 else (512, 1024, 2048)):
        keys |= convolution(f"img_neck.lateral_convs.{place}", channels, 1)
    for place in range(levels):
        keys |= convolution(f"img_neck.fpn_convs.{place}", 256, 3)
    keys |= {
        f"{head}.code_weights": (10,),
        f"{head}.bev_embedding.weight": (count * count, 256),
        f"{head}.query_embedding.weight": (900, 512),
        f"{head}.positional_encoding.row_embed.weight": (count, 128),
        f"{head}.positional_encoding.col_embed.weight": (count, 128),
        f"{transformer}.level_embeds": (levels, 256),
        f"{transformer}.cams_embeds": (6, 256),
    }
    keys |= layer(f"{transformer}.reference_points", 3, 256)
    keys |= layer(f"{transformer}.can_bus_mlp.0", 128, 18) | layer(f"{transformer}.can_bus_mlp.2", 256, 128)
    keys |= norm(f"{transformer}.can_bus_mlp.norm")
    for number in range(config.encoder_layers):
        inner = "1.deformable_attention"
        attentions = layer("0.sampling_offsets", 128, 512) | layer("0.attention_weights", 64, 512)
        attentions |= layer("0.value_proj", 256, 256) | layer("0.output_proj", 256, 256)
        attentions |= layer(f"{inner}.sampling_offsets", 128 * levels, 256)
        attentions |= layer(f"{inner}.attention_weights", 64 * levels, 256) | layer(f"{inner}.value_proj", 256, 256)
        keys |= block(f"encoder.layers.{number}", attentions | layer("1.output_proj", 256, 256))
    for number in range(6):
        attentions = {"0.attn.in_proj_weight": (768, 256), "0.attn.in_proj_bias": (768,)}
        attentions |= layer("0.attn.out_proj", 256, 256)
        attentions |= layer("1.sampling_offsets", 64, 256) | layer("1.attention_weights", 32, 256)
        attentions |= layer("1.value_proj", 256, 256) | layer("1.output_proj", 256, 256)
        keys |= block(f"decoder.layers.{number}", attentions)
        branch = f"{head}.cls_branches.{number}"
        keys |= layer(f"{branch}.0", 256, 256) | norm(f"{branch}.1") | layer(f"{branch}.3", 256, 256)
        keys |= norm(f"{branch}.4") | layer(f"{branch}.6", 10, 256)
        branch = f"{head}.reg_branches.{number}"
        keys |= layer(f"{branch}.0", 256, 256) | layer(f"{branch}.2", 256, 256) | layer(f"{branch}.4", 10, 256)
    return keys


@pytest.mark.parametrize(
    ("size", "tensors", "millions", "trainable"),
    [("tiny", 643, 33.520, 33.245), ("small", 1001, 59.463, 59.135), ("base", 1089, 69.035, 68.707)],
)
def test_the_released_keys_and_ours_are_one_to_one_with_equal_shapes(size, tensors, millions, trainable):
    model = released(size)
    theirs = names(size, model.image_backbone.network)
    assert len(theirs) == tensors
    renamed = BEVFORMER.rename({key: torch.empty(shape, device="meta") for key, shape in theirs.items()})
    assert len(renamed) == tensors - 1
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in renamed.items()} == ours
    learned = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    everything = sum(parameter.numel() for parameter in model.parameters()) + CODE_WEIGHTS
    assert everything / 1e6 == pytest.approx(millions, abs=0.0005)
    assert sum(learned) / 1e6 == pytest.approx(trainable, abs=0.0005)


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = names("tiny", released("tiny").image_backbone.network)
    return {
        key: torch.rand(shape, generator=generator) if shape else torch.tensor(number)
        for number, (key, shape) in enumerate(shapes.items())
    }


def test_loading_puts_every_tensor_in_its_place(checkpoint):
    model = build(BevFormerConfig.model_validate(SIZES["tiny"]), CLASSES)
    load_official(model, checkpoint, BEVFORMER, family="old")
    ours = model.state_dict()
    encoder, decoder = "pts_bbox_head.transformer.encoder.layers", "pts_bbox_head.transformer.decoder.layers"
    pairs = {
        "img_backbone.layer4.2.bn3.running_var": "image_backbone.network.layer4.2.bn3.running_var",
        "img_neck.fpn_convs.0.conv.weight": "image_neck.outputs.0.weight",
        "pts_bbox_head.positional_encoding.row_embed.weight": "encoder.positions.rows",
        "pts_bbox_head.transformer.can_bus_mlp.norm.bias": "encoder.can_bus.4.bias",
        f"{encoder}.2.attentions.0.value_proj.weight": "encoder.layers.2.temporal.value_proj.weight",
        f"{encoder}.1.attentions.1.output_proj.weight": "encoder.layers.1.spatial.output_proj.weight",
        f"{encoder}.0.ffns.0.layers.1.weight": "encoder.layers.0.feed_forward.3.weight",
        f"{encoder}.1.norms.2.bias": "encoder.layers.1.norms.2.bias",
        f"{decoder}.5.attentions.0.attn.in_proj_bias": "head.decoder.layers.5.self_attention.in_proj_bias",
        f"{decoder}.4.attentions.1.value_proj.bias": "head.decoder.layers.4.cross_attention.value_proj.bias",
        "pts_bbox_head.cls_branches.3.6.weight": "head.decoder.class_branches.3.6.weight",
        "pts_bbox_head.reg_branches.2.0.weight": "head.decoder.box_branches.2.0.weight",
    }
    for theirs, name in pairs.items():
        assert torch.equal(checkpoint[theirs], ours[name]), name
    # Front left, front, front right, back left, back, back right.
    cameras = checkpoint["pts_bbox_head.transformer.cams_embeds"]
    assert torch.equal(model.encoder.camera_embeddings, cameras[[2, 0, 1, 4, 3, 5]])


def test_a_checkpoint_of_another_size_is_refused(checkpoint):
    with torch.device("meta"):
        model = build(BevFormerConfig.model_validate(SIZES["tiny"] | {"encoder_layers": 2}), CLASSES)
    with pytest.raises(UserError, match=r"does not fit as BEVFormer.*\n.*unexpected encoder\.layers\.2\."):
        load_official(model, checkpoint, BEVFORMER, family="old")


def test_folded_branches_predict_the_same_boxes_in_our_convention():
    yaw = torch.tensor([0.0, 0.5, 1.6, 3.0, -0.3, -2.0], dtype=torch.float64)
    boxes = Boxes(torch.stack([torch.tensor([1.0, 2, 0.5, 4.6, 1.9, 1.7, angle, 3, -4]) for angle in yaw]).double())
    ours = encode(boxes)
    old = ours.clone()
    old[:, 6], old[:, 7] = (-yaw - math.pi / 2).sin(), (-yaw - math.pi / 2).cos()
    # One number a box, from a layer whose input is constant 1.
    names = [f"head.decoder.box_branches.{place}.4.{kind}" for place in range(6) for kind in ("weight", "bias")]
    weights = {name: old[int(name.split(".")[3])] for name in names} | {
        "head.decoder.box_branches.0.2.bias": old[0]
    }
    folded = fold_old_family(weights)
    assert len(folded) == 13
    for name in names:
        torch.testing.assert_close(folded[name], ours[int(name.split(".")[3])], atol=1e-6, rtol=0)
    assert torch.equal(folded["head.decoder.box_branches.0.2.bias"], old[0])
