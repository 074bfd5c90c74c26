"""Hiding parts of images in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """With some probability, in training, hides all but horizontal and vertical bars of all images alike.

    Bars are half as wide as their period, which is drawn from two pixels to the height of the image.

    Args:
        probability: Of hiding anything.

    Source: GridMask (arXiv 2001.04086), as in BEVFormer's released code.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], zero where hidden."""
        if not self.training or torch.rand(()) >= self.probability:
            return images
        period = int(torch.randint(2, images.shape[2], ()))
        row, column = (self._in_bar(size, period) for size in images.shape[2:])
        return images * (row[:, None] | column).to(images)

    @staticmethod
    def _in_bar(size: int, period: int) -> Tensor:
        start = torch.randint(period, ())
        return (torch.arange(size) - start) % period < (period + 1) // 2
