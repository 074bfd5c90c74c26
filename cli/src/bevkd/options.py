"""Options that several commands share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from bevkd_common.config.recipe import Recipe

METHOD = "An installed method, such as distillbev; a+b adds the losses of several."
MethodOrNone = Annotated[str | None, typer.Argument(metavar="METHOD", help=f"{METHOD} Not needed with --from.")]
Method = Annotated[str, typer.Argument(metavar="METHOD", help=METHOD)]
Teacher = Annotated[str | None, typer.Option(help="Teacher, as `bevkd recipes ls` lists it.")]
Student = Annotated[str | None, typer.Option(help="Student, as `bevkd recipes ls` lists it.")]
DatasetName = Annotated[
    str | None,
    typer.Option(help="Data set, as `bevkd recipes ls` lists it.", show_default="data that can be generated"),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the data set; not needed for data that can be generated.")
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "--from",
        help="Name or file of a recipe, instead of the flags above; the config.yaml of a run repeats the run.",
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=c sets one value of the recipe.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; runs/<recipe> by default.")]
Seed = Annotated[int | None, typer.Option(help="One of the recipe's seeds; the first by default.")]
Seeds = Annotated[
    int | None, typer.Option(min=2, help="Number of the recipe's seeds to run; also runs the controls.")
]
Gpus = Annotated[int | None, typer.Option(min=0, help="Number of processes, one per GPU; 0 uses the CPU.")]
Nodes = Annotated[
    int | None, typer.Option(min=1, help="Number of machines; the command runs on each, see docs/slurm.sh.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Stages trained at the same time, each in its own process; 1 uses this process only.",
        show_default="one per core or GPU, at most the number of independent stages",
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Delete an earlier run of this name and its stages, including stages that other runs share.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/NAME.")]


def launch(gpus: int | None, nodes: int | None = None) -> None:
    """Start the same command in several processes with torchrun, if several are requested."""
    from bevkd_common.errors import UserError

    processes, machines = gpus or 1, nodes or 1
    if "LOCAL_RANK" in os.environ or processes * machines == 1:
        return
    launcher = ["-m", "bevkd.launcher", f"--nproc-per-node={processes}"]
    if machines == 1:
        launcher.append("--standalone")
    else:
        head = os.environ.get("MASTER_ADDR")
        if head is None:
            raise UserError(
                "--nodes: set MASTER_ADDR to the name of the first node on every node; see docs/slurm.sh"
            )
        port = os.environ.get("MASTER_PORT", "29500")
        launcher += [f"--nnodes={machines}", "--rdzv-backend=c10d", f"--rdzv-endpoint={head}:{port}"]
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "bevkd", *sys.argv[1:]])


def resolve_recipe(
    method: str | None,
    teacher: str | None,
    student: str | None,
    dataset: str | None,
    name: str | None,
    overrides: list[str] | None,
) -> tuple[str, Recipe]:
    """Name and content of the recipe that the flags select.

    `--recipe FILE` is a complete recipe; METHOD may repeat its method but not replace it.

    Raises:
        UserError: If the flags select no recipe.
    """
    from bevkd_common.config.methods import kinds_of
    from bevkd_common.config.reading.loading import load_recipe
    from bevkd_common.config.recipes import Choice, catalogue, choose, method_kinds, path_of
    from bevkd_common.errors import UserError

    path = None if name is None else path_of(name)
    if name is not None:
        flags = {"--teacher": teacher, "--student": student, "--dataset": dataset}
        if given := [flag for flag, value in flags.items() if value is not None]:
            raise UserError(f"{name} names the recipe: leave out {', '.join(given)}")
    if path is not None:
        loaded = load_recipe(path, overrides or ())
        own = "+".join(kinds_of(loaded.method))
        if method is not None and "+".join(method_kinds(method)) != own:
            raise UserError(
                f"{path} is a recipe of {own}, not of {method}: leave out METHOD, or replace the method with"
                " --set 'method={kind: ...}'"
            )
        return path.stem, loaded
    if name is not None:
        choice = choose(name, method)
    elif method is None:
        raise UserError("name a METHOD, such as distillbev, or the run to repeat: --from runs/NAME/config.yaml")
    else:
        kinds = method_kinds(method)
        choice = Choice(kinds, catalogue().find(teacher=teacher, student=student, dataset=dataset))
    return choice.name.replace("/", "-"), choice.load(overrides or ())


def default_out(recipe: str, overrides: list[str] | None) -> Path:
    """runs/<recipe>, with a suffix where the command line changes the recipe."""
    from hashlib import sha256

    changed = f"-{sha256(' '.join(overrides).encode()).hexdigest()[:6]}" if overrides else ""
    return Path("runs") / f"{recipe}{changed}"


def seeds_of(recipe: Recipe, seed: int | None, count: int | None) -> tuple[int, ...]:
    """One of the recipe's seeds, or the first few.

    Raises:
        UserError: If the recipe does not have them, or both `seed` and `count` are given.
    """
    from bevkd_common.errors import UserError

    if seed is not None and count is not None:
        raise UserError("give --seed for one seed, or --seeds for several, not both")
    if count is not None:
        if count > len(recipe.seeds):
            raise UserError(f"--seeds {count}: the recipe has {len(recipe.seeds)} seeds; add to its `seeds`")
        return recipe.seeds[:count]
    if seed is not None and seed not in recipe.seeds:
        raise UserError(f"--seed {seed} is not one of the recipe's seeds: {', '.join(map(str, recipe.seeds))}")
    return (recipe.seeds[0] if seed is None else seed,)


def accelerator_of(gpus: int | None) -> Accelerator:
    """The accelerator of this command: its device and processes."""
    import torch
    from accelerate import Accelerator

    # Without `cpu=True`, several processes on a machine without a GPU do not connect to each other.
    return Accelerator(cpu=gpus == 0 or not torch.cuda.is_available())
