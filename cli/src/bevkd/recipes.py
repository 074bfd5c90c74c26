"""`bevkd recipes`: look at the recipes that come with the installed methods, and take one home."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd.display import print_table, warn

app = typer.Typer(help="List, show and copy recipes.", no_args_is_help=True, rich_markup_mode=None)

RecipeName = Annotated[str, typer.Argument(metavar="NAME", help="As `bevkd recipes ls` prints it.")]


@app.command("ls")
def list_recipes() -> None:
    """List the recipes of all installed methods."""
    from bevkd_common.config.plugins import MethodSpec, installed, load
    from bevkd_common.config.recipes import catalogue

    shelf = catalogue()
    rows = []
    for file in shelf.files:
        chosen, spec = file.recipe.selects, installed(MethodSpec).find(file.method)
        paper = load(spec.published)(chosen.teacher, chosen.student) if spec.published else ""
        rows.append((file.name, chosen.teacher, chosen.student, chosen.dataset, file.recipe.summary, paper))
    print_table(("recipe", "--teacher", "--student", "--dataset", "summary", "paper"), rows)
    for name, reason in shelf.broken.items():
        warn(f"{name} cannot be used: {reason}")


@app.command("show")
def show(name: RecipeName) -> None:
    """Print a recipe's comment and all its settings, defaults written out."""
    from bevkd_common.config.reading.loading import dump, read_text
    from bevkd_common.config.recipes import catalogue, header

    file = catalogue().named(name)
    typer.echo(f"{header(read_text(file.path))}\n\n{dump(file.recipe)}", nl=False)


@app.command("copy")
def copy(
    name: RecipeName,
    destination: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="File or folder; the current folder where not given.")
    ] = None,
) -> None:
    """Copy a recipe's file, to change it and run it with `--recipe`."""
    from bevkd_common.config.recipes import catalogue
    from bevkd_common.errors import UserError

    source = catalogue().named(name).path
    target = destination or Path()
    target = target / source.name if target.is_dir() else target
    try:
        with target.open("xb") as file:
            file.write(source.read_bytes())
    except FileExistsError:
        raise UserError(f"{target} exists already; name another file") from None
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    typer.echo(str(target))
