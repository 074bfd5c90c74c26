"""How camera images are brought to the size that a camera detector sees."""

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
        raise ValueError(f"colours turn by half a turn at most, not by {bounds[0]:g} to {bounds[1]:g}")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""A closed interval to draw from; two equal bounds fix the value."""

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
ShareBounds = Annotated[tuple[Share, Share], AfterValidator(_ordered)]


Factors = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_ordered)]
"""Bounds of a factor; one leaves things as they are."""


class ColorDistortionConfig(Config):
    """Changes of the colours of each training image, drawn for every image on its own, each or not.

    The defaults are BEVFormer's, which are SSD's: 32 of 255 levels of brightness, 18 degrees of hue.

    Source: SSD (arXiv 1512.02325); BEVFormer's released configurations. Brightness is a factor, as torchvision has
    it, not a summand.
    """

    probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Of each of the five changes."""
    brightness: Factors = (0.875, 1.125)
    contrast: Factors = (0.5, 1.5)
    """Before or after the changes of saturation and hue, one as likely as the other."""
    saturation: Factors = (0.5, 1.5)
    hue: Annotated[Bounds, AfterValidator(_within_half_a_turn)] = (-0.05, 0.05)
    """Turns of the colour circle."""
    swap_channels: bool = True
    """Whether red, green and blue may change places."""


class ImageInputConfig(Config):
    """Resize, crop, flip and rotation of each camera image, drawn for every camera on its own in training.

    An image is scaled by `width / source width` plus an offset, cropped to `height` x `width`, mirrored and
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
    """Training: the share of the resized height that is cut off at the bottom; evaluation takes the middle."""
    flip: bool = True
    """Training: mirror left and right with probability one half."""
    rotate_degrees: Bounds = (-5.4, 5.4)
    """Training: rotation about the centre, counter-clockwise on the screen."""
    colors: ColorDistortionConfig | None = None
    """Training: distortion of the colours, after all this; None leaves them."""
