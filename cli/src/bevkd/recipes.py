"""`bevkd recipes`: list, show and copy the installed recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd.display import print_table, warn

app = typer.Typer(help="List, show and copy recipes.", no_args_is_help=True, rich_markup_mode=None)

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="METHOD/RECIPE; METHOD may be left out if only one method has settings for the recipe."
    ),
]


@app.command("ls")
def list_recipes() -> None:
    """List the installed recipes, the methods that have settings for them, and the papers' numbers."""
    from bevkd_common.config.methods import published
    from bevkd_common.config.published_rows import in_one_line
    from bevkd_common.config.recipes import catalogue

    shelf = catalogue()
    rows = []
    for pair in shelf.pairs:
        chosen, kinds = pair.head.selects, list(pair.sections)
        papers = {kind: in_one_line(published([kind], chosen.teacher, chosen.student)) for kind in kinds}
        paper = "; ".join(f"{kind}: {line}" for kind, line in papers.items() if line)
        rows.append(
            (pair.name, chosen.teacher, chosen.student, chosen.dataset, pair.head.summary, ", ".join(kinds), paper)
        )
    print_table(("recipe", "--teacher", "--student", "--dataset", "summary", "methods", "paper"), rows)
    for name, reason in shelf.broken.items():
        warn(f"{name} cannot be used: {reason}")


@app.command("show")
def show(name: RecipeName) -> None:
    """Print the comments of a recipe and all its settings, defaults included."""
    from bevkd_common.config.reading.loading import dump
    from bevkd_common.config.recipes import choose

    choice = choose(name)
    typer.echo(f"{choice.header}\n\n{dump(choice.load())}", nl=False)


@app.command("copy")
def copy(
    name: RecipeName,
    destination: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="File or folder; the current folder by default.")
    ] = None,
) -> None:
    """Write a recipe to one complete file, to be changed and run with `--recipe`."""
    from bevkd_common.config.recipes import choose
    from bevkd_common.errors import UserError

    choice = choose(name)
    target = destination or Path()
    target = target / f"{choice.name.replace('/', '-')}.yaml" if target.is_dir() else target
    text = choice.text()
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{target} exists already; name another file") from None
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    typer.echo(str(target))
