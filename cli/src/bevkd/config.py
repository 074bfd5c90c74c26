"""`bevkd config`: check and compare recipes, and print their schema, without running anything."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bevkd.display import print_table

app = typer.Typer(help="Check, compare and explain recipes.", no_args_is_help=True, rich_markup_mode=None)

WHAT_A_RECIPE_IS = "A file, or the name of an installed recipe."
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key; may be repeated."),
]


@app.command("check")
def check(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help=WHAT_A_RECIPE_IS)], overrides: Overrides = None
) -> None:
    """Say everything that is wrong with a recipe, or that nothing is."""
    from bevkd_common.config.reading.loading import load_recipe
    from bevkd_common.config.recipes import recipe_path

    loaded = load_recipe(recipe_path(recipe), overrides or ())
    typer.echo(f"{recipe}: ok: {loaded.summary}")


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from bevkd_common.config.reading.loading import schema

    typer.echo(json.dumps(schema(), indent=2))


@app.command("diff")
def compare(
    before: Annotated[str, typer.Argument(metavar="A", help=WHAT_A_RECIPE_IS)],
    after: Annotated[str, typer.Argument(metavar="B", help="As A.")],
) -> None:
    """Print every setting in which two recipes differ, defaults included."""
    from bevkd_common.config.reading.loading import diff, load_recipe
    from bevkd_common.config.recipes import recipe_path

    changes = diff(load_recipe(recipe_path(before)), load_recipe(recipe_path(after)))
    rows = [(change.key, json.dumps(change.before), json.dumps(change.after)) for change in changes]
    print_table(("key", before, after), rows)
