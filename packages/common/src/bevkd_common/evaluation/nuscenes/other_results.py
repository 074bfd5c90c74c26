"""Names files of results that are no detection submission."""

from __future__ import annotations

from typing import Any

from bevkd_common.files import foreign_content

_PICKLE = b"\x80"
_ZIP, _GZIP = b"PK", b"\x1f\x8b"


def not_json(start: bytes) -> str | None:
    """What a file is that cannot be read as JSON, with the advice; None if that is not known.

    Args:
        start: Its first kilobyte.
    """
    if (known := foreign_content(start)) is not None:
        return known
    if start.startswith(_PICKLE):
        return (
            "is a pickle, such as the results or the info file of mmdetection3d, which are not read: write the"
            " official JSON file, there `results_nusc.json`"
        )
    if start.startswith((_ZIP, _GZIP)):
        return "is an archive: unpack it, and name the JSON file in it"
    return None


def other_task(content: Any) -> str | None:
    """The task that results belong to if it is not detection; None if it may be detection.

    Args:
        content: What the JSON file holds.
    """
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return _of_list(content[0])
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        return None
    for sample in results.values():
        if isinstance(sample, dict):
            return _of_sample(sample)
        if isinstance(sample, list) and sample and isinstance(sample[0], dict):
            tracked = "tracking_id" in sample[0] or "tracking_name" in sample[0]
            return "results of tracking (`tracking_id`, `tracking_name`)" if tracked else None
    return None


def _of_list(first: dict[str, Any]) -> str | None:
    if "image_id" in first and "bbox" in first:
        return "boxes in images, in the format of COCO"
    if "instance" in first and "prediction" in first:
        return "predicted trajectories"
    if "token" in first and "sample_token" in first and "instance_token" in first:
        return "a table of annotations, sample_annotation.json"
    return None


def _of_sample(sample: dict[str, Any]) -> str | None:
    lines = "vectors" in sample or "predictions" in sample or {"pts", "type"} <= sample.keys()
    return "results of map construction (vectors)" if lines else None
