"""Where the virtual points of a data set come from, as a user names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from bevkd_common.config.datasets.masks import MaskErrorsConfig
from bevkd_common.config.reading.overrides import parse_override
from bevkd_common.config.reading.yaml_tree import Problems, plain
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.nuscenes.tables import only_version
from bevkd_common.data.synthetic.masks import SyntheticMasks
from bevkd_common.data.virtual_points.files import Maker, VirtualPointFolder, make_virtual_points
from bevkd_common.data.virtual_points.instances import MaskFolder
from bevkd_common.data.virtual_points.makers import FromMasks, FromOfficialFiles
from bevkd_common.errors import UserError
from bevkd_common.progress import Reporter


def make(
    root: Path,
    version: str | None,
    *,
    masks: Path | None,
    weights: Path | None,
    official: Path | None,
    settings: Sequence[str],
    out: Path | None,
    sweeps: int,
    workers: int,
    reporter: Reporter,
) -> list[str]:
    """Make the virtual points of a data set for the command line; returns what was done, in lines.

    Args:
        root: Folder of the data set.
        version: Version folder; None takes the only one.
        masks: As of `choose_maker`.
        weights: As of `choose_maker`.
        official: As of `choose_maker`.
        settings: Its `errors`.
        out: Folder for the files; None takes the one that the data set reads by default.
        sweeps: LiDAR sweeps a key frame, its own included.
        workers: Processes; the files do not depend on them.
        reporter: Where progress goes.

    Raises:
        UserError: If what makes them is not named or cannot be used, or a file cannot be read or written.
    """
    if weights is not None and workers:
        raise UserError("a network finds the masks of --weights in this process alone: leave out --workers")
    chosen = version or only_version(root)
    with reporter.bar(f"index of {chosen}", 1) as bar:
        index = open_index(root, chosen, bar.update)
    maker = choose_maker(index, masks=masks, weights=weights, official=official, errors=settings)
    folder = VirtualPointFolder(out or root / "virtual_points")
    with reporter.bar("virtual points", 1) as bar:
        done = make_virtual_points(maker, index, folder, columns=sweeps, workers=workers, progress=bar.update)
    outcomes = ", ".join(f"{count} sweeps {outcome}" for outcome, count in sorted(done.items()))
    return [outcomes, folder.manifest.sentence]


def choose_maker(
    index: NuScenesIndex,
    *,
    masks: Path | None = None,
    weights: Path | None = None,
    official: Path | None = None,
    errors: Sequence[str] = (),
) -> Maker:
    """What makes the virtual points of a data set.

    Args:
        index: Of the data set.
        masks: Folder of instance masks.
        weights: Of Mask R-CNN.
        official: Folder of files of the released generator.
        errors: "key=value" of the errors of a synthetic world's own masks.

    Raises:
        UserError: If none, or more than one, is named, or what is named cannot be used.
    """
    named = {"--masks": masks, "--weights": weights, "--official": official}
    given = {flag: path for flag, path in named.items() if path is not None}
    synthetic = (index.root / "world.json").is_file()
    if len(given) > 1 or (given and errors):
        raise UserError(f"{' and '.join([*given, *(['--set'] if errors else [])])} exclude each other: give one")
    for flag, path in given.items():
        if not path.exists():
            raise UserError(f"{flag} {path} does not exist; check the path")
    if official is not None:
        return FromOfficialFiles(official)
    if masks is not None:
        return FromMasks(index, MaskFolder(masks))
    if weights is not None:
        from bevkd_common.models.mask_rcnn import load_mask_rcnn

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return FromMasks(index, load_mask_rcnn(index.root, weights, device))
    if not synthetic:
        raise UserError(
            f"{index.root} has no instance masks of its own: name predictions with --masks, weights of Mask R-CNN "
            "with --weights, or files of the released generator with --official"
        )
    return FromMasks(index, SyntheticMasks(index.root, index.version, _errors(errors)))


def _errors(settings: Sequence[str]) -> MaskErrorsConfig:
    try:
        changes = [parse_override(setting) for setting in settings]
        return MaskErrorsConfig.model_validate({change.key: plain(change.value) for change in changes})
    except Problems as found:
        raise UserError("; ".join(map(str, found.problems))) from None
    except ValidationError as error:
        keys = ", ".join(MaskErrorsConfig.model_fields)
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"--set {key}: {first['msg']}; the error rates are {keys}") from None
