"""From a batch's images to the map that a camera detector starts from."""

from __future__ import annotations

from torch import Tensor, nn

from bevkd_common.data.samples import Batch, Cameras
from bevkd_common.models.image_backbones import ImageBackbone, ImageNormalizer
from bevkd_common.models.lift_splat import LiftSplat


class ImageReader(nn.Module):
    """Features of the images, lifted to the ground.

    Args:
        normalizer: From uint8 images to the backbone's input.
        image_backbone: Feature maps of the images.
        image_neck: One feature map a camera, of the backbone's.
        lift_splat: The features on the ground.
        image_size: Height and width of the images in pixels.
    """

    def __init__(
        self,
        normalizer: ImageNormalizer,
        image_backbone: ImageBackbone,
        image_neck: nn.Module,
        lift_splat: LiftSplat,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.image_backbone = image_backbone
        self.image_neck = image_neck
        self.lift_splat = lift_splat
        self.image_size = image_size

    def features(self, cameras: Cameras) -> Tensor:
        """Features [B, N, C, H, W] of the images.

        Raises:
            ValueError: If the images have another size.
        """
        (height, width), size = self.image_size, tuple(cameras.images.shape[-2:])
        if size != self.image_size:
            raise ValueError(
                f"the detector takes images of {height} x {width}, the batch has {size[0]} x {size[1]}"
            )
        images = self.normalizer(cameras.images.flatten(0, 1))
        return self.image_neck(self.image_backbone(images)).unflatten(0, cameras.images.shape[:2])

    def depths(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Depth logits [B, N, D, H, W] and context [B, N, C, H, W] of features."""
        assert batch.cameras is not None
        return self.lift_splat.depth_net(features, batch.cameras, batch.aug_T_lidar)

    def splat(self, logits: Tensor, context: Tensor, cameras: Cameras) -> Tensor:
        """The map [B, C, Y, X], float32."""
        return self.lift_splat.splat(logits, context, cameras)
