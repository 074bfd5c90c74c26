"""Pinhole cameras: projection, its inverse over a frustum, and the augmentation of images.

Camera axes are x right, y down, z forward. Pixels are (u, v) with u to the right and v down. Image
augmentation is an affine map of pixels, a 3x3 matrix `aug_T_pix`; it leaves depth alone, so it is applied
after the division by depth and undone before the multiplication.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import DepthBins
from bevkd_common.geometry.transforms import transform_points, transform_vectors


def project(
    points_lidar: Tensor, intrinsics: Tensor, cam_T_lidar: Tensor, image_aug: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Project points into images.

    Args:
        points_lidar: [..., P, 3] metres; leading dimensions broadcast with those of the matrices, so
            [B, 1, P, 3] goes with [B, N, ...] cameras.
        intrinsics: [..., 3, 3], bottom row 0 0 1.
        cam_T_lidar: [..., 4, 4].
        image_aug: `aug_T_pix` [..., 3, 3]; none for pixels of the image as recorded.

    Returns:
        Pixels [..., P, 2] and depth [..., P] in metres along the camera axis. Where depth is not positive
        the point is not in front of the camera and its pixel means nothing.
    """
    points_cam = transform_points(cam_T_lidar, points_lidar)
    depth = points_cam[..., 2]
    pixels = transform_vectors(intrinsics, points_cam / depth[..., None])
    if image_aug is not None:
        pixels = transform_vectors(image_aug, pixels)
    return pixels[..., :2], depth


def frustum(
    image_size: tuple[int, int], stride: int, depth_bins: DepthBins, device: torch.device | str | None = None
) -> Tensor:
    """The points (u, v, depth) that a feature map of an image stands for, float32 [D, H', W', 3].

    Upstream: as in BEVDet and BEVDepth, columns are spread evenly from pixel 0 to the last pixel W-1, and
    rows likewise; these are not the centres of the cells (16.35 instead of 16 pixels apart for 704 / 16).

    Args:
        image_size: height and width in pixels of the network's input.
        stride: pixels per feature cell.
        depth_bins: each bin is represented by its lower border.
        device: where the result is made.

    Raises:
        ValueError: if the image is not a whole number of cells.
    """
    height, width = image_size
    if height % stride or width % stride:
        raise ValueError(f"an image of {height} x {width} is not a whole number of cells of {stride} pixels")
    v = torch.linspace(0, height - 1, height // stride, device=device)
    u = torch.linspace(0, width - 1, width // stride, device=device)
    depth = depth_bins.start + torch.arange(depth_bins.count, device=device) * depth_bins.step
    grid_d, grid_v, grid_u = torch.meshgrid(depth, v, u, indexing="ij")
    return torch.stack([grid_u, grid_v, grid_d], dim=-1)


def lift(frustum: Tensor, intrinsics: Tensor, lidar_T_cam: Tensor, image_aug: Tensor) -> Tensor:
    """Place the frustum of each camera in the LiDAR frame.

    Args:
        frustum: (u, v, depth) [D, H', W', 3] in augmented pixels.
        intrinsics: [B, N, 3, 3].
        lidar_T_cam: [B, N, 4, 4]; with augmentation of the bird's-eye view it is a similarity or a mirror.
        image_aug: `aug_T_pix` [B, N, 3, 3].

    Returns:
        Metres [B, N, D, H', W', 3]; float32 also under autocast.

    Source: Lift, Splat, Shoot, section 3.1; BEVDet, section 3.
    """
    augmented = torch.cat([frustum[..., :2], torch.ones_like(frustum[..., 2:])], dim=-1).flatten(0, 2)
    pixels = transform_vectors(torch.linalg.inv(image_aug), augmented)
    rays = transform_vectors(torch.linalg.inv(intrinsics), pixels)
    points = transform_points(lidar_T_cam, rays * frustum[..., 2].reshape(-1, 1))
    return points.unflatten(-2, frustum.shape[:3])


def check_intrinsics(intrinsics: Tensor, what: str) -> None:
    """Refuse a matrix [..., 3, 3] that is not the intrinsics of a pinhole camera.

    Args:
        intrinsics: the matrix as loaded.
        what: what it is and where it came from, for the message.

    Raises:
        UserError: if the shape is wrong, an entry is not finite, a focal length is not positive, or an
            entry below the diagonal is not that of 0 0 1.
    """
    if intrinsics.shape[-2:] != (3, 3):
        raise UserError(f"{what} has shape {tuple(intrinsics.shape)}, expected 3x3; check the calibration file")
    if not torch.isfinite(intrinsics).all():
        raise UserError(f"{what} has entries that are not finite; check the calibration file")
    lower = intrinsics.tril()
    lower = lower - torch.diag_embed(lower.diagonal(dim1=-2, dim2=-1))
    if lower.any() or (intrinsics[..., 2, 2] != 1).any():
        raise UserError(f"{what} is not upper triangular above a row of 0 0 1, is it transposed? check the file")
    if (intrinsics[..., 0, 0] <= 0).any() or (intrinsics[..., 1, 1] <= 0).any():
        raise UserError(f"{what} has a focal length that is not positive; check the calibration file")


@dataclass(frozen=True)
class ImageAug:
    """One drawn augmentation of one image: resize, crop, mirror, rotate, in this order.

    Attributes:
        scale: factor of the resize.
        crop_left: columns of the resized image to the left of the crop.
        crop_top: rows of the resized image above the crop.
        flip: whether left and right are exchanged.
        rotation: radians counter-clockwise on the screen, about the centre of the crop.
        output_size: height and width of the crop, in pixels.
    """

    scale: float
    crop_left: int
    crop_top: int
    flip: bool
    rotation: float
    output_size: tuple[int, int]

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The map of pixels, `aug_T_pix` [3, 3].

        The exact scale is used, although the resized image has whole numbers of pixels. Pixel coordinates
        count from the image's edge: a mirror sends u to W - u.

        Upstream: as in BEVDet and BEVDepth.
        """
        height, width = self.output_size
        resize_and_crop = _pixel_map([[self.scale, 0, -self.crop_left], [0, self.scale, -self.crop_top], [0, 0, 1]])
        mirror = _pixel_map(
            [[-1, 0, width], [0, 1, 0], [0, 0, 1]] if self.flip else [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        )
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        turn = _pixel_map([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        from_center = _pixel_map([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
        to_center = _pixel_map([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
        return (to_center @ turn @ from_center @ mirror @ resize_and_crop).to(dtype)


def apply_image_aug(image: Image.Image | npt.NDArray[np.uint8], aug: ImageAug) -> Image.Image:
    """Move the pixels of an image as `aug.matrix()` says; what comes from outside the image is black.

    Args:
        image: a PIL image, or uint8 [H, W, 3].
        aug: the augmentation.

    Returns:
        An image of `aug.output_size`. Resizing is bilinear, the rotation takes the nearest pixel.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    height, width = aug.output_size
    resized_size = (int(image.width * aug.scale), int(image.height * aug.scale))
    image = image.resize(resized_size, Image.Resampling.BILINEAR)
    image = image.crop((aug.crop_left, aug.crop_top, aug.crop_left + width, aug.crop_top + height))
    if aug.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if aug.rotation:
        image = image.rotate(math.degrees(aug.rotation), Image.Resampling.NEAREST)
    return image


def _pixel_map(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
