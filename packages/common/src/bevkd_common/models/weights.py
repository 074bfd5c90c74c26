"""Released checkpoints of other code bases, loaded strictly: every tensor finds its place, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from re import fullmatch
from typing import Literal

import torch
from torch import Tensor, nn

from bevkd_common.errors import UserError
from bevkd_common.models.foreign_files import read_content

BoxFamily = Literal["new", "old"]
"""Box convention that a head was trained in: "new" is mmdet3d from 1.0 on, "old" is mmdet3d before 1.0, the
first BEVDet code base and DistillBEV."""

LISTED = 8
"""Keys that a message lists before it counts the rest."""


@dataclass(frozen=True)
class WeightMap:
    """How a released checkpoint names the tensors of one of our detectors.

    Attributes:
        source: Code base and model, for messages.
        prefixes: Theirs and ours; of each key the first prefix that fits is replaced.
        ignored: Beginnings of their keys that hold nothing to load, such as constants stored as parameters.
        reordered: Our keys of tensors whose rows they have in another order, and for each of our rows theirs.
    """

    source: str
    prefixes: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()
    reordered: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors under our names, rows in our order; a key that no prefix fits keeps its name."""
        ours = {self._our_name(key): value for key, value in weights.items() if not key.startswith(self.ignored)}
        return ours | {key: ours[key][list(rows)] for key, rows in self.reordered if key in ours}

    def _our_name(self, key: str) -> str:
        for theirs, ours in self.prefixes:
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key


CENTERPOINT_PILLAR = WeightMap(
    source="mmdet3d CenterPoint with pillars",
    prefixes=(
        ("pts_voxel_encoder.pfn_layers.0.", "reader.pillars."),
        ("pts_backbone.", "backbone."),
        ("pts_neck.", "neck."),
        ("pts_bbox_head.", "head."),
    ),
)

_ENCODER = "pts_middle_encoder."
_STAGE = _ENCODER + "encoder_layers.encoder_layer"

CENTERPOINT_VOXEL = WeightMap(
    source="mmdet3d CenterPoint with voxels",
    prefixes=(
        (_ENCODER + "conv_input.0.", "reader.encoder.stem.conv."),
        (_ENCODER + "conv_input.1.", "reader.encoder.stem.norm."),
        *((f"{_STAGE}{i + 1}.2.0.", f"reader.encoder.stages.{i}.2.conv.") for i in range(3)),
        *((f"{_STAGE}{i + 1}.2.1.", f"reader.encoder.stages.{i}.2.norm.") for i in range(3)),
        *((f"{_STAGE}{i + 1}.", f"reader.encoder.stages.{i}.") for i in range(4)),
        (_ENCODER + "conv_out.0.", "reader.encoder.output.conv."),
        (_ENCODER + "conv_out.1.", "reader.encoder.output.norm."),
        ("pts_backbone.", "backbone."),
        ("pts_neck.", "neck."),
        ("pts_bbox_head.", "head."),
    ),
)
"""With voxels of 0.1 or 0.075 m, with a plain head or a deformable one."""

BEVDET_R50 = WeightMap(
    source="BEVDet with ResNet-50",
    prefixes=(
        ("img_backbone.", "image_backbone.network."),
        ("img_neck.lateral_convs.0.conv.", "image_neck.laterals.0."),
        ("img_neck.lateral_convs.1.conv.", "image_neck.laterals.1."),
        ("img_neck.fpn_convs.0.conv.", "image_neck.output."),
        ("img_view_transformer.depthnet.", "lift_splat.depth_net.joint."),
        ("img_bev_encoder_backbone.layers.0.0.downsample.", "bev_stages.0.0.shortcut."),
        ("img_bev_encoder_backbone.layers.1.0.downsample.", "bev_stages.1.0.shortcut."),
        ("img_bev_encoder_backbone.layers.2.0.downsample.", "bev_stages.2.0.shortcut."),
        ("img_bev_encoder_backbone.layers.", "bev_stages."),
        ("img_bev_encoder_neck.conv.", "bev_neck.fuse."),
        # DistillBEV's students; inferred, because no list of their keys could be had.
        ("img_bev_encoder_neck.up2.5.", "bev_neck.norm_act.0."),
        ("img_bev_encoder_neck.up2.", "bev_neck.refine."),
        ("pts_bbox_head.", "head."),
    ),
    # Geometry stored as parameters; ours is recomputed from the configuration.
    ignored=tuple(f"img_view_transformer.{name}" for name in ("dx", "bx", "nx", "frustum")),
)

_EARLIER_FRAME = (
    ("pre_process_net.layers.0.0.downsample.", "earlier.stage.0.shortcut."),
    ("pre_process_net.layers.0.", "earlier.stage."),
)

BEVDET4D_R50 = replace(
    BEVDET_R50, source="BEVDet4D with ResNet-50", prefixes=(*BEVDET_R50.prefixes, *_EARLIER_FRAME)
)

BEVDEPTH_R50 = replace(
    BEVDET4D_R50,
    source="BEVDepth of the BEVDet code base with ResNet-50",
    prefixes=(
        ("img_view_transformer.depthnet.", "lift_splat.depth_net.depth."),
        ("img_view_transformer.featnet.", "lift_splat.depth_net.context."),
        ("img_view_transformer.se.input_conv.", "lift_splat.depth_net.reduce."),
        ("img_view_transformer.se.fc.0.", "lift_splat.depth_net.camera_norm."),
        ("img_view_transformer.se.fc.1.", "lift_splat.depth_net.camera_gain."),
        ("img_view_transformer.extra_depthnet.layers.0.0.downsample.", "lift_splat.depth_net.blocks.0.shortcut."),
        ("img_view_transformer.extra_depthnet.layers.0.", "lift_splat.depth_net.blocks."),
        ("img_view_transformer.dcn.0.", "lift_splat.depth_net.deform."),
        ("img_view_transformer.dcn.1.", "lift_splat.depth_net.norm."),
        *BEVDET4D_R50.prefixes,
    ),
)
"""With one frame or with two."""

_BEVFORMER_LAYERS = tuple(
    (f"pts_bbox_head.transformer.{theirs}", ours)
    for layer in range(6)
    for theirs, ours in (
        (f"encoder.layers.{layer}.attentions.0.", f"encoder.layers.{layer}.temporal."),
        (f"encoder.layers.{layer}.attentions.1.deformable_attention.", f"encoder.layers.{layer}.spatial."),
        (f"encoder.layers.{layer}.attentions.1.", f"encoder.layers.{layer}.spatial."),
        (f"encoder.layers.{layer}.ffns.0.layers.0.0.", f"encoder.layers.{layer}.feed_forward.0."),
        (f"encoder.layers.{layer}.ffns.0.layers.1.", f"encoder.layers.{layer}.feed_forward.3."),
        (f"decoder.layers.{layer}.attentions.0.attn.", f"head.decoder.layers.{layer}.self_attention."),
        (f"decoder.layers.{layer}.attentions.1.", f"head.decoder.layers.{layer}.cross_attention."),
        (f"decoder.layers.{layer}.ffns.0.layers.0.0.", f"head.decoder.layers.{layer}.feed_forward.0."),
        (f"decoder.layers.{layer}.ffns.0.layers.1.", f"head.decoder.layers.{layer}.feed_forward.3."),
    )
)

BEVFORMER = WeightMap(
    source="BEVFormer",
    prefixes=(
        ("img_backbone.", "image_backbone.network."),
        *((f"img_neck.lateral_convs.{level}.conv.", f"image_neck.laterals.{level}.") for level in range(3)),
        *((f"img_neck.fpn_convs.{level}.conv.", f"image_neck.outputs.{level}.") for level in range(4)),
        ("pts_bbox_head.bev_embedding.weight", "encoder.queries"),
        ("pts_bbox_head.positional_encoding.row_embed.weight", "encoder.positions.rows"),
        ("pts_bbox_head.positional_encoding.col_embed.weight", "encoder.positions.columns"),
        ("pts_bbox_head.transformer.cams_embeds", "encoder.camera_embeddings"),
        ("pts_bbox_head.transformer.level_embeds", "encoder.level_embeddings"),
        ("pts_bbox_head.transformer.can_bus_mlp.norm.", "encoder.can_bus.4."),
        ("pts_bbox_head.transformer.can_bus_mlp.", "encoder.can_bus."),
        *_BEVFORMER_LAYERS,
        ("pts_bbox_head.transformer.encoder.", "encoder."),
        ("pts_bbox_head.transformer.decoder.", "head.decoder."),
        ("pts_bbox_head.transformer.reference_points.", "head.reference_points."),
        ("pts_bbox_head.query_embedding.", "head.queries."),
        ("pts_bbox_head.cls_branches.", "head.decoder.class_branches."),
        ("pts_bbox_head.reg_branches.", "head.decoder.box_branches."),
    ),
    # Weights of the loss, stored as a parameter.
    ignored=("pts_bbox_head.code_weights",),
    # Front, front right, front left, back, back left, back right there.
    reordered=(("encoder.camera_embeddings", (2, 0, 1, 4, 3, 5)),),
)
"""Tiny, small and base, of the old box family. They want `shifted: both`, `rotation_center: [100, 100]` and
`wrap_yaw: false`."""


MEGVII_BEVDEPTH_R50 = WeightMap(
    source="Megvii's BEVDepth with ResNet-50",
    prefixes=(
        ("model.backbone.img_backbone.", "image_backbone.network."),
        ("model.backbone.img_neck.", "image_neck."),
        ("model.backbone.depth_net.", "lift_splat.depth_net."),
        ("model.backbone.depth_aggregation_net.", "lift_splat.aggregation."),
        ("model.head.trunk.conv1.", "bev_stages.0.conv1."),
        ("model.head.trunk.bn1.", "bev_stages.0.bn1."),
        ("model.head.trunk.layer1.", "bev_stages.0.blocks."),
        ("model.head.trunk.layer2.", "bev_stages.1.blocks."),
        ("model.head.trunk.layer3.", "bev_stages.2.blocks."),
        ("model.head.neck.", "bev_neck."),
        ("model.head.", "head."),
    ),
    ignored=tuple(f"model.backbone.{name}" for name in ("voxel_size", "voxel_coord", "voxel_num", "frustum")),
)
"""With and without depth aggregation; weights and their average bear the same names."""


@dataclass(frozen=True)
class ReleasedForm:
    """One way in which checkpoints of a detector are published.

    Attributes:
        weight_map: How the names correspond.
        frame: Whose axes the boxes are in: the key frame's LiDAR, or the ego vehicle.
        family: The box convention that the tensors themselves give away, and how; None where they do not.
    """

    weight_map: WeightMap
    frame: Literal["lidar", "ego"]
    family: Callable[[Mapping[str, Tensor]], tuple[BoxFamily, str] | None]


def _family_of_pillars(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    layer = weights.get("pts_voxel_encoder.pfn_layers.0.linear.weight")
    width = 0 if layer is None or layer.ndim != 2 else layer.shape[1]
    families: dict[int, BoxFamily] = {10: "old", 11: "new"}
    return (families[width], f"its pillars have {width} inputs") if width in families else None


def _family_of_bevdet(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    key = "img_view_transformer.frustum"
    return ("old", f"it holds `{key}`, as BEVDet's first code base alone does") if key in weights else None


def _untold(weights: Mapping[str, Tensor]) -> None:
    """Voxels have the same tensors in both families."""


def _family_of_bevformer(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    key = "pts_bbox_head.transformer.cams_embeds"
    return ("old", f"it holds `{key}`, as BEVFormer's code alone does") if key in weights else None


def _family_of_megvii(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    key = "model.backbone.voxel_num"
    return ("new", f"it holds `{key}`, as Megvii's code alone does") if key in weights else None


CENTERPOINT_FORMS = (ReleasedForm(CENTERPOINT_PILLAR, "lidar", _family_of_pillars),)
BEVDET_FORMS = (ReleasedForm(BEVDET_R50, "lidar", _family_of_bevdet),)
BEVDET4D_FORMS = (ReleasedForm(BEVDET4D_R50, "lidar", _family_of_bevdet),)
BEVDEPTH_FORMS = (ReleasedForm(BEVDEPTH_R50, "lidar", _family_of_bevdet),)
CENTERPOINT_VOXEL_FORMS = (ReleasedForm(CENTERPOINT_VOXEL, "lidar", _untold),)
BEVFORMER_FORMS = (ReleasedForm(BEVFORMER, "lidar", _family_of_bevformer),)
MEGVII_BEVDEPTH_FORMS = (ReleasedForm(MEGVII_BEVDEPTH_R50, "ego", _family_of_megvii),)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights of a .pth or .safetensors file on the CPU; never runs code that the file may hold.

    Raises:
        UserError: If there is no such file, or it holds no weights that can be read safely.
    """
    return weights_in(read_content(path), path)


def weights_in(content: object, path: Path) -> dict[str, Tensor]:
    """The weights in what `read_content` returned.

    Raises:
        UserError: If there are none; `path` is where it came from.
    """
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        weights = {"": None}
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise UserError(
            f"the checkpoint {path} holds no weights: expected tensors by name, or a `state_dict` of them"
        )
    return dict(weights)


def load_official(
    model: nn.Module, weights: Mapping[str, Tensor], weight_map: WeightMap, family: BoxFamily = "new"
) -> None:
    """Load a released checkpoint into one of our detectors; on any mismatch nothing is loaded.

    Args:
        model: Our detector, at the size of the checkpoint.
        weights: Their tensors by their names.
        weight_map: How the names correspond.
        family: Box convention of the checkpoint; "old" ones are folded into ours, see `fold_old_family`.

    Raises:
        UserError: If a key is missing, unexpected or has another shape.
    """
    wanted = model.state_dict()
    renamed = to_spconv2(weight_map.rename(weights), wanted)
    if family == "old":
        renamed = fold_old_family(renamed)
    if problems := mismatches(wanted, renamed):
        raise UserError(
            f"the checkpoint does not fit as {weight_map.source}; check the model's sizes and the checkpoint's "
            "origin:\n  " + "\n  ".join(problems)
        )
    model.load_state_dict(renamed)


@dataclass(frozen=True)
class Difference:
    """A key by which weights do not fit a model.

    Attributes:
        key: Under our name.
        found: Shape in the weights; None where the key is missing.
        wanted: Shape in the model; None where the key is unexpected.
        nearest: The key of the other side that it may be, or nothing.
    """

    key: str
    found: tuple[int, ...] | None
    wanted: tuple[int, ...] | None
    nearest: str = ""

    @property
    def fault(self) -> Literal["missing", "unexpected", "shape"]:
        """What is wrong with it."""
        return "missing" if self.found is None else "unexpected" if self.wanted is None else "shape"

    def __str__(self) -> str:
        if self.fault == "shape":
            return f"{self.key} is {self.found}, wanted {self.wanted}"
        near = f", nearest is {self.nearest}" if self.nearest else ""
        return f"{self.fault} {self.key} {self.found or self.wanted or ()}{near}"


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[Difference]:
    """Keys that are missing, then those that are unexpected, then those of another shape."""
    missing, unexpected = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    return [
        *(Difference(key, None, tuple(wanted[key].shape), _nearest(key, unexpected)) for key in sorted(missing)),
        *(Difference(key, tuple(found[key].shape), None, _nearest(key, missing)) for key in sorted(unexpected)),
        *(
            Difference(key, tuple(found[key].shape), tuple(wanted[key].shape))
            for key in sorted(wanted.keys() & found.keys())
            if wanted[key].shape != found[key].shape
        ),
    ]


def mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One line a key that is missing, unexpected or of another shape: the first few, and how many more."""
    lines = [str(difference) for difference in differences(wanted, found)]
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"and {len(lines) - LISTED} more"]


def to_spconv2(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of sparse convolutions, all that have five dimensions, to the layout of spconv 2.x.

    spconv 1.x and mmcv store [kz, ky, kx, I, O], spconv 2.x and we [O, kz, ky, kx, I]. The shape tells which it is.

    Args:
        weights: A checkpoint's tensors by our names.
        wanted: Our tensors.

    Raises:
        UserError: If a shape is the same in both layouts.
    """
    converted = dict(weights)
    for name, value in weights.items():
        if value.ndim != 5 or name not in wanted:
            continue
        ours = wanted[name].shape
        if value.shape == (*ours[1:], ours[0]):
            if value.shape == ours:
                raise UserError(
                    f"{name} is {tuple(ours)} with spconv 1.x and with 2.x, so its layout cannot be told; give "
                    "the convolution other numbers of channels"
                )
            converted[name] = value.permute(4, 0, 1, 2, 3).contiguous()
    return converted


def fold_old_family(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rewrite weights of the old box convention so that their predictions are in ours; exact.

    The old head predicts sizes as w, l, h and the yaw r = -ψ - π/2, whose sine is -cos ψ and whose cosine is
    -sin ψ: rows of the last layers are exchanged, and negated for the yaw. A query head predicts w, l, h in both
    families. The old pillar layer has no input for the offset from the pillar centre's z: its last column becomes
    zero.
    """
    folded = dict(weights)
    for name, value in weights.items():
        if name.endswith((".dim.1.weight", ".dim.1.bias")):
            folded[name] = value[[1, 0, 2]]
        elif name.endswith((".rot.1.weight", ".rot.1.bias")):
            folded[name] = -value[[1, 0]]
        elif fullmatch(r"head\.decoder\.box_branches\.\d+\.4\.(weight|bias)", name):
            folded[name] = torch.cat([value[:6], -value[[7, 6]], value[8:]])
        elif name.endswith("pillars.linear.weight"):
            folded[name] = torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)
    return folded


def _nearest(name: str, names: set[str]) -> str:
    return next(iter(get_close_matches(name, names, n=1)), "")
