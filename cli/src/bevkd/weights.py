"""`bevkd weights`: list and import published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bevkd.display import print_table

if TYPE_CHECKING:
    from bevkd_common.config.model import Config

RELEASED_ON = "nuscenes"
"""Data set of published checkpoints; without --recipe, a detector has its classes."""

app = typer.Typer(help="List and import published checkpoints.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def list_published() -> None:
    """List published checkpoints, and the kind of detector for the import of each."""
    from bevkd_common.config.published import PUBLISHED

    rows = [
        (it.name, it.detector, it.kind or "-", it.convention, _percent(it.mean_ap), _percent(it.nds), it.where)
        for it in PUBLISHED
    ]
    print_table(("name", "detector", "--as", "convention", "mAP", "NDS", "where"), rows)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth, .ckpt or .safetensors file; runs no code.")],
    kind: Annotated[str, typer.Option("--as", help="Kind of detector, or `teacher` or `student` of --recipe.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write, for `teacher_checkpoint`.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe with the settings of the detector; by default those of the published detector."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="a.b=c sets a value of the recipe, or of the detector without --recipe."),
    ] = None,
    convention: Annotated[
        Literal["old", "new"] | None,
        typer.Option(help="Convention of its boxes, if it cannot be read from the file."),
    ] = None,
    rename: Annotated[list[str] | None, typer.Option(help="THEIRS=OURS replaces the beginning of keys.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Beginning of keys that are not imported.")] = None,
) -> None:
    """Import a checkpoint of another code base; exit code 2 and no file unless every tensor fits."""
    from bevkd_common.errors import UserError
    from bevkd_common.experiment.imported import Adjustments, translate, write

    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: the name of the file must end in .safetensors")
    config, classes = _detector(kind, recipe, overrides or [])
    adjustments = Adjustments(convention, tuple(map(_renamed, rename or ())), tuple(ignore or ()))
    found = translate(file, config, classes, adjustments)
    if found.misfits:
        rows = [
            (one.fault, one.key, str(one.found or ""), str(one.wanted or ""), one.nearest) for one in found.misfits
        ]
        print_table(("fault", "key", "found", "wanted", "nearest"), rows)
        raise UserError(
            f"{file} does not fit as {found.about['form']}: {len(found.misfits)} keys, listed above; nothing was"
            " written. Check --as, the settings (--recipe, --set), or name keys with --rename and --ignore"
        )
    write(found, out)
    typer.echo(f"{found.about['form']}, convention {found.about['convention']}")
    typer.echo(f"{len(found.weights)} tensors, {found.ignored} left out: {out}")


def _detector(kind: str, recipe: str | None, overrides: list[str]) -> tuple[Config, tuple[str, ...]]:
    """The detector's configuration, and the classes of its data."""
    from bevkd_common.config.plugins import DatasetSpec, DetectorSpec, installed
    from bevkd_common.config.reading.loading import load_detector
    from bevkd_common.config.recipes import load_named
    from bevkd_common.errors import UserError

    if recipe is None:
        if kind in ("teacher", "student"):
            raise UserError(f"--as {kind}: name the recipe of this {kind} with --recipe")
        data = installed(DatasetSpec).find(RELEASED_ON)
        return load_detector(kind, overrides), data.classes_of(data.config())
    loaded = load_named(recipe, overrides)
    sections = {"teacher": loaded.teacher, "student": loaded.student}
    detectors = installed(DetectorSpec)
    named = [config for name, config in sections.items() if kind in (name, detectors.of(config).kind)]
    if len(named) != 1:
        kinds = ", ".join(f"{name} {detectors.of(config).kind}" for name, config in sections.items())
        raise UserError(
            f"--as {kind} names {len(named)} detectors of the recipe ({kinds}): choose teacher or student"
        )
    return named[0], installed(DatasetSpec).of(loaded.dataset).classes_of(loaded.dataset)


def _renamed(text: str) -> tuple[str, str]:
    from bevkd_common.errors import UserError

    theirs, equals, ours = text.partition("=")
    if not equals or not theirs:
        raise UserError(f"--rename {text}: must read THEIRS=OURS")
    return theirs, ours


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
