"""Key maps of released checkpoints, and strict loading: every tensor has its place, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from re import fullmatch
from typing import Literal

import torch
from torch import Tensor, nn

from bevkd_common.errors import UserError
from bevkd_common.models.state_dicts import mismatches

BoxFamily = Literal["new", "old"]
"""Box convention that a head was trained in: "new" is mmdet3d from 1.0 on, "old" is mmdet3d before 1.0, the
first BEVDet code base and DistillBEV."""


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


def to_spconv2(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of sparse convolutions, all that have five dimensions, to the layout of spconv 2.x.

    spconv 1.x and mmcv store [kz, ky, kx, I, O], spconv 2.x and we [O, kz, ky, kx, I]. The shape shows which one it
    is.

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
                    f"{name} is {tuple(ours)} with spconv 1.x and with 2.x, so its layout is ambiguous; give "
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
