"""`bevkd data`: index, check and make data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd.display import progress_reporter

app = typer.Typer(help="Index, check and make data sets.", no_args_is_help=True, rich_markup_mode=None)

Root = Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the data set.")]
Version = Annotated[str | None, typer.Option(help="Version of the data set; needed only if it has several.")]


@app.command("index")
def index(
    root: Root,
    version: Version = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Build the index although files that the tables name are missing."),
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Rebuild an index that is current.")] = False,
) -> None:
    """Read the tables of a data set once, and store an index for later runs."""
    from bevkd_common.config.plugins import load, recognized
    from bevkd_common.errors import UserError

    tools, reporter = recognized(root), progress_reporter()
    if tools.index is None:
        raise UserError(f"the data in {root} have no index: they are read without one")
    make = load(tools.index)
    reporter.say(make(root, version, allow_missing=allow_missing, rebuild=rebuild, reporter=reporter))


@app.command("check")
def check(
    root: Root,
    version: Version = None,
    samples: Annotated[int, typer.Option(min=1, help="Key frames to read, spread over all scenes.")] = 60,
    draw: Annotated[Path | None, typer.Option(help="Folder for pictures of some key frames.")] = None,
) -> None:
    """Count the data, and check that boxes, points and motion agree; exit code 2 if they do not."""
    from bevkd_common.config.plugins import load, recognized
    from bevkd_common.errors import UserError
    from bevkd_common.experiment.data_check import draw_pictures

    found = load(recognized(root).check)(root, version, samples=samples, reporter=progress_reporter())
    for line in found.lines:
        typer.echo(line)
    for picture in draw_pictures(found, draw) if draw is not None else ():
        typer.echo(f"picture       {picture}")
    if found.findings:
        raise UserError("\n".join(found.findings))
    typer.echo("no problems found")


@app.command("virtual-points")
def virtual_points(
    root: Root,
    version: Version = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of instance masks: one .npz file of the same path for each image.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of torchvision's Mask R-CNN, which then predicts the masks.")
    ] = None,
    official: Annotated[
        Path | None, typer.Option(help="Folder with the files of MVP's released generator, to import.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set an error rate of the masks of a synthetic world."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; ROOT/virtual_points by default.")] = None,
    sweeps: Annotated[int, typer.Option(min=1, max=11, help="LiDAR sweeps per key frame, its own included.")] = 11,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes; the files do not depend on it.")] = 0,
) -> None:
    """Lift points from instance masks to LiDAR depths; a second run checks and repairs the files."""
    from bevkd_common.config.plugins import load, recognized
    from bevkd_common.errors import UserError

    tools, reporter = recognized(root), progress_reporter()
    if tools.virtual_points is None:
        raise UserError(f"virtual points cannot be made of the data in {root}")
    said = load(tools.virtual_points)(
        root,
        version,
        masks=masks,
        weights=weights,
        official=official,
        settings=sets or (),
        out=out,
        sweeps=sweeps,
        workers=workers,
        reporter=reporter,
    )
    for line in said:
        reporter.say(line)


@app.command("synth")
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Parent folder of the data set.")],
    seed: Annotated[int, typer.Option(min=0, help="The only source of randomness.")] = 0,
    train_scenes: Annotated[int, typer.Option(min=1, help="Scenes of the split synthetic_train.")] = 48,
    val_scenes: Annotated[int, typer.Option(min=1, help="Scenes of the split synthetic_val.")] = 20,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes; the bytes do not depend on it.")] = 1,
) -> None:
    """Generate a synthetic world as a nuScenes data set, and print its folder."""
    from bevkd_common.config.datasets.world import WorldConfig
    from bevkd_common.data.synthetic import ensure_world
    from bevkd_common.data.synthetic.nuscenes import NuScenesWriter

    world = WorldConfig(seed=seed, train_scenes=train_scenes, val_scenes=val_scenes)
    with progress_reporter().bar("scenes", train_scenes + val_scenes) as bar:
        folder = ensure_world(NuScenesWriter(world), out, workers, bar.update)
    typer.echo(str(folder))
