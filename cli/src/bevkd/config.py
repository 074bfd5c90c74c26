"""`bevkd config`: check and compare recipes, and print their schema."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bevkd.display import print_table

app = typer.Typer(help="Check, compare and explain recipes.", no_args_is_help=True, rich_markup_mode=None)

WHAT_A_RECIPE_IS = "A file, or the name of an installed recipe (METHOD/RECIPE)."
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set the value of a dotted key; may be repeated."),
]


@app.command("check")
def check(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help=WHAT_A_RECIPE_IS)], overrides: Overrides = None
) -> None:
    """Check a recipe and print every problem."""
    from bevkd_common.config.recipes import load_named

    loaded = load_named(recipe, overrides or ())
    typer.echo(f"{recipe}: ok: {loaded.summary}")


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from bevkd_common.config.reading.loading import schema

    typer.echo(json.dumps(schema(), indent=2))


@app.command("diff")
def compare(
    before: Annotated[str, typer.Argument(metavar="A", help=WHAT_A_RECIPE_IS)],
    after: Annotated[str, typer.Argument(metavar="B", help="Like A.")],
) -> None:
    """Print every setting in which two recipes differ, defaults included."""
    from bevkd_common.config.reading.loading import diff
    from bevkd_common.config.recipes import load_named

    changes = diff(load_named(before), load_named(after))
    rows = [(change.key, json.dumps(change.before), json.dumps(change.after)) for change in changes]
    print_table(("key", before, after), rows)
