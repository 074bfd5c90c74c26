"""The teacher of a distillation, frozen for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bevkd_common.data.samples import Batch
from bevkd_common.engine.teacher_cache import TeacherCache
from bevkd_common.models.detector import Outputs

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule


class FrozenTeacher:
    """Owns a trained detector and only ever looks through it.

    Deliberately not an `nn.Module`: a task that holds one does not register it, so that neither `.train()`,
    `.parameters()`, `.state_dict()` nor a distributed wrapper of the task reaches the teacher.
    """

    def __init__(
        self, detector: DetectorModule, precision: torch.dtype | None = None, cache: TeacherCache | None = None
    ) -> None:
        """Take a detector over.

        Args:
            detector: Trained.
            precision: Autocast to this type, float32 computes without it; None follows the task around.
            cache: Where what it sees is kept.
        """
        self.detector = detector
        self.precision = precision
        self.cache = cache
        detector.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the weights."""
        self.detector.to(device)
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch, want: frozenset[str]) -> Outputs:
        """The taps wanted, without gradients and with batch norm at its running statistics."""
        if self.detector.training:
            self.detector.eval()
        if self.cache is None:
            return self._look(batch, want)
        return self.cache.seen(batch, want, lambda: self._look(batch, want))

    def _look(self, batch: Batch, want: frozenset[str]) -> Outputs:
        if self.precision is None:
            return self.detector(batch, want)
        with torch.autocast(batch.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.detector(batch, want)
