"""Running a detector over a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bevkd_common.data.dataset import SampleSource
from bevkd_common.data.loader import evaluation_batches
from bevkd_common.engine.progress import Reporter
from bevkd_common.engine.tasks import HEAD
from bevkd_common.evaluation.evaluator import Evaluator, Submission

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule


@torch.no_grad()
def evaluate(
    detector: DetectorModule,
    source: SampleSource,
    evaluator: Evaluator | Submission,
    *,
    batch: int,
    device: torch.device,
    precision: torch.dtype | None,
    title: str,
    reporter: Reporter,
) -> None:
    """Feed the detections of every sample, in order, to the evaluator.

    Args:
        detector: In any mode; evaluated in eval mode and left there.
        source: The split.
        evaluator: What takes the detections.
        batch: Samples at once.
        device: Where.
        precision: Autocast to this type; None computes in float32.
        title: Shown in the progress bar.
        reporter: Where progress goes.
    """
    detector.to(device).eval()
    done = 0
    with reporter.bar(title, len(source)) as bar:
        for loaded in evaluation_batches(source, batch=batch):
            samples = loaded.to(device)
            with torch.autocast(device.type, precision, enabled=precision is not None):
                outputs = detector(samples, HEAD)
            evaluator.update(loaded, detector.decode(outputs, samples))
            done += len(loaded)
            bar.update(done)
