"""Released checkpoints of other code bases, loaded strictly: every tensor finds its place, or nothing is loaded."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bevkd_common.errors import UserError

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
    """

    source: str
    prefixes: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors under our names; a key that no prefix fits keeps its name."""
        return {self._our_name(key): value for key, value in weights.items() if not key.startswith(self.ignored)}

    def _our_name(self, key: str) -> str:
        for theirs, ours in self.prefixes:
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key


CENTERPOINT_PILLAR = WeightMap(
    source="mmdet3d CenterPoint with pillars",
    prefixes=(
        ("pts_voxel_encoder.pfn_layers.0.", "pillars."),
        ("pts_backbone.", "backbone."),
        ("pts_neck.", "neck."),
        ("pts_bbox_head.", "head."),
    ),
)

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


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights of a .pth or .safetensors file on the CPU; never runs code that the file may hold.

    Raises:
        UserError: If there is no such file, or it holds no weights that can be read safely.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; check the path")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the checkpoint {path} cannot be read safely ({reason}); download it again, or save its "
            "`state_dict` alone"
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
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
    renamed = weight_map.rename(weights)
    if family == "old":
        renamed = fold_old_family(renamed)
    if problems := mismatches(model.state_dict(), renamed):
        raise UserError(
            f"the checkpoint does not fit as {weight_map.source}; check the model's sizes and the checkpoint's "
            "origin:\n  " + "\n  ".join(problems)
        )
    model.load_state_dict(renamed)


def mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One line a key that is missing, unexpected or of another shape: the first few, and how many more."""
    missing, unexpected = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    misshapen = [key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape]
    keys = [*sorted(missing), *sorted(unexpected), *sorted(misshapen)]
    lines = []
    for key in keys[:LISTED]:
        if key in missing:
            lines.append(f"missing {key} {tuple(wanted[key].shape)}{_nearest(key, unexpected)}")
        elif key in unexpected:
            lines.append(f"unexpected {key} {tuple(found[key].shape)}{_nearest(key, missing)}")
        else:
            lines.append(f"{key} is {tuple(found[key].shape)}, wanted {tuple(wanted[key].shape)}")
    if len(keys) > LISTED:
        lines.append(f"and {len(keys) - LISTED} more")
    return lines


def fold_old_family(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rewrite weights of the old box convention so that their predictions are in ours; exact.

    The old head predicts sizes as w, l, h and the yaw r = -ψ - π/2, whose sine is -cos ψ and whose cosine is
    -sin ψ: rows of the last layers are exchanged, and negated for the yaw. The old pillar layer has no input
    for the offset from the pillar centre's z: its last column becomes zero.
    """
    folded = dict(weights)
    for name, value in weights.items():
        if name.endswith((".dim.1.weight", ".dim.1.bias")):
            folded[name] = value[[1, 0, 2]]
        elif name.endswith((".rot.1.weight", ".rot.1.bias")):
            folded[name] = -value[[1, 0]]
        elif name == "pillars.linear.weight":
            folded[name] = torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)
    return folded


def _load_pickle(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _nearest(name: str, names: set[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f", nearest is {near[0]}" if near else ""
