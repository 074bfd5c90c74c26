"""Checkpoints of other code bases as weights of our detectors: all tensors accounted for, or nothing is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import load
from bevkd_common.config.published import PUBLISHED
from bevkd_common.config.reading.loading import changes
from bevkd_common.engine.checkpoint import save_weights
from bevkd_common.errors import UserError
from bevkd_common.experiment.build import architecture_hash, build_detector, detector_spec
from bevkd_common.models.foreign_files import read_content, weights_in
from bevkd_common.models.state_dicts import Difference, differences
from bevkd_common.models.weights.maps import BoxFamily, ReleasedForm, fold_old_family, to_spconv2


@dataclass(frozen=True)
class Adjustments:
    """What the user knows about a file.

    Attributes:
        family: Its box convention, or None where the file has to tell.
        renamed: Beginnings of its keys and of ours, before those of the form.
        ignored: Beginnings of its keys that are left out.
    """

    family: BoxFamily | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Translation:
    """A file in the words of one of our detectors.

    Attributes:
        weights: Under our names, in our convention.
        misfits: The keys by which they do not fit; nothing may be written while there are some.
        ignored: How many tensors were left out.
        about: What the file of the weights will say of itself.
    """

    weights: Mapping[str, Tensor]
    misfits: Sequence[Difference]
    ignored: int
    about: Mapping[str, str]


def translate(file: Path, config: Config, classes: tuple[str, ...], adjustments: Adjustments) -> Translation:
    """Read a checkpoint of another code base as weights of a detector.

    Of several forms in which such checkpoints are published, the one with the fewest misfits counts.

    Args:
        file: The checkpoint.
        config: The detector's.
        classes: Class names in label order.
        adjustments: What the user knows.

    Raises:
        UserError: If the file cannot be read safely, its detector has no published form, its box convention is not
            known, or two of its keys have one name of ours.
    """
    spec = detector_spec(config)
    if spec.released is None:
        raise UserError(f"no published form of the detector `{spec.kind}` is known")
    content = read_content(file)
    weights = weights_in(content, file)
    digest = _sha256(file)
    with torch.device("meta"):
        wanted = build_detector(config, classes, seed=0).state_dict()
    forms: Sequence[ReleasedForm] = load(spec.released)
    fitting = [to_spconv2(_fitted(weights, form, adjustments, file), wanted) for form in forms]
    form, renamed = min(zip(forms, fitting, strict=True), key=lambda pair: len(wanted.keys() ^ pair[1].keys()))
    family, why = _family(file, weights, content, digest, form, adjustments.family)
    ours = fold_old_family(renamed) if family == "old" else renamed
    return Translation(
        weights={key: ours[key].to(value.dtype) for key, value in wanted.items() if key in ours},
        misfits=differences(wanted, ours),
        ignored=len(weights) - len(renamed),
        about={
            "source": file.name,
            "sha256": digest,
            "form": form.weight_map.source,
            "convention": f"{family}: {why}",
            "frame": form.frame,
            "detector": json.dumps(config.model_dump(mode="json"), sort_keys=True),
            "architecture": architecture_hash(config, classes),
        },
    )


def write(translation: Translation, out: Path) -> None:
    """Write weights that fit as a file which `teacher_checkpoint` takes.

    Raises:
        ValueError: If they do not fit.
        UserError: If the file cannot be written.
    """
    if translation.misfits:
        raise ValueError("weights that do not fit must not be written")
    about = dict(translation.about)
    try:
        save_weights(
            out, translation.weights, kind="raw", architecture=about.pop("architecture"), step=0, about=about
        )
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None


def check_settings(file: Path, metadata: Mapping[str, str], config: Config) -> None:
    """Whether an imported file was made for a detector with these very settings.

    Shapes alone do not tell: a detector that reads fewer sweeps or normalises images otherwise has the same.

    Args:
        file: Where the metadata come from, for messages.
        metadata: Of a file that was imported.
        config: The detector's.

    Raises:
        UserError: If a setting differs.
    """
    made_for = json.loads(metadata["detector"])
    with suppress(ValidationError):
        # A setting that came later has its default.
        made_for = type(config).model_validate(made_for).model_dump(mode="json")
    if found := changes(made_for, config.model_dump(mode="json")):
        listed = ", ".join(f"`{one.key}` {json.dumps(one.before)}, not {json.dumps(one.after)}" for one in found)
        raise UserError(f"{file} was imported with {listed}: use these settings, or import it again with --recipe")


def _fitted(
    weights: Mapping[str, Tensor], form: ReleasedForm, adjustments: Adjustments, file: Path
) -> dict[str, Tensor]:
    """Their tensors under our names.

    Raises:
        UserError: If two of them have one name.
    """
    own = form.weight_map
    weight_map = replace(
        own, prefixes=(*adjustments.renamed, *own.prefixes), ignored=(*adjustments.ignored, *own.ignored)
    )
    kept = {key: value for key, value in weights.items() if not key.startswith(weight_map.ignored)}
    renamed = weight_map.rename(kept)
    if len(renamed) < len(kept):
        raise UserError(f"{file}: {len(kept) - len(renamed)} of its keys get the name of another; correct --rename")
    return renamed


def _family(
    file: Path,
    weights: Mapping[str, Tensor],
    content: object,
    digest: str,
    form: ReleasedForm,
    stated: BoxFamily | None,
) -> tuple[BoxFamily, str]:
    """The box convention of a file and how it is known.

    Raises:
        UserError: If nothing gives it away, or two things disagree.
    """
    if stated is not None:
        return stated, "stated"
    found = [
        evidence
        for evidence in (form.family(weights), _family_of_version(content), _family_of_published(digest))
        if evidence is not None
    ]
    families = {family for family, _ in found}
    if len(families) == 1:
        return families.pop(), "; ".join(why for _, why in found)
    reasons = "; ".join(f"{family}, because {why}" for family, why in found)
    verdict = f"contradictory ({reasons})" if found else "not to be told from it"
    raise UserError(
        f"the box convention of {file} is {verdict}: state --convention new for files of mmdetection3d 1.0 or"
        " later, old for earlier ones, for BEVDet's first release and for DistillBEV"
    )


def _family_of_version(content: object) -> tuple[BoxFamily, str] | None:
    meta = content.get("meta") if isinstance(content, dict) else None
    version = meta.get("mmdet3d_version") if isinstance(meta, dict) else None
    if not isinstance(version, str) or not version[:1].isdecimal():
        return None
    return ("old" if version.startswith("0.") else "new"), f"it was saved by mmdetection3d {version}"


def _family_of_published(digest: str) -> tuple[BoxFamily, str] | None:
    for one in PUBLISHED:
        if one.digest and digest.startswith(one.digest) and one.convention != "det3d":
            return one.convention, f"it is the published {one.name}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
