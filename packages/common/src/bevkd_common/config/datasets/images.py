"""Resizing and augmentation of the input images of a camera detector."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from bevkd_common.config.model import Config


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]:g} is above the upper bound {bounds[1]:g}")
    return bounds


def _within_half_a_turn(bounds: tuple[float, float]) -> tuple[float, float]:
    if max(map(abs, bounds)) > 0.5:
        raise ValueError(f"the hue changes by at most half a turn, not by {bounds[0]:g} to {bounds[1]:g}")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""A closed interval to draw from; two equal bounds fix the value."""

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
ShareBounds = Annotated[tuple[Share, Share], AfterValidator(_ordered)]


Factors = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_ordered)]
"""Bounds of a factor; 1 changes nothing."""


class ColorDistortionConfig(Config):
    """Random changes of the colours of a training image, drawn independently for every image.

    The defaults are BEVFormer's, which are SSD's: 32 of 255 levels of brightness, 18 degrees of hue.

    Source: SSD (arXiv 1512.02325); BEVFormer's released configurations. Brightness is a factor, as in torchvision,
    not a summand.
    """

    probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Probability of each of the five changes."""
    brightness: Factors = (0.875, 1.125)
    contrast: Factors = (0.5, 1.5)
    """Applied before or after saturation and hue, with equal probability."""
    saturation: Factors = (0.5, 1.5)
    hue: Annotated[Bounds, AfterValidator(_within_half_a_turn)] = (-0.05, 0.05)
    """Fraction of a turn of the colour circle."""
    swap_channels: bool = True
    """Whether red, green and blue may be permuted."""


class ImageInputConfig(Config):
    """Resize, crop, flip and rotation of each camera image, drawn independently for every camera in training.

    An image is scaled by `width / source width` plus an offset, cropped to `height` x `width`, flipped and
    rotated about its centre. The defaults are those of BEVDet at 256 x 704.

    Source: BEVDet (arXiv 2112.11790) and its released R50 configuration.
    """

    height: PositiveInt = 256
    """Pixels, after the crop."""
    width: PositiveInt = 704
    """Pixels, after the crop."""
    resize: Bounds = (-0.06, 0.11)
    """Training: the offset drawn for the scale factor `width / source width`."""
    test_resize: float = 0.04
    """Evaluation: the fixed offset of the scale factor."""
    crop_bottom: ShareBounds = (0.0, 0.0)
    """Training: the share of the resized height that is cut off at the bottom; evaluation uses the mean bound."""
    flip: bool = True
    """Training: flip left and right with probability 0.5."""
    rotate_degrees: Bounds = (-5.4, 5.4)
    """Training: rotation about the centre, counter-clockwise on the screen."""
    colors: ColorDistortionConfig | None = None
    """Training: colour distortion, applied last; None disables it."""
