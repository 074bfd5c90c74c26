"""Tables for people at a terminal, plain lines for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from bevkd_common.progress import Reporter


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a formatted table at a terminal; elsewhere one line per row, fields separated by tabs, no heading.

    A terminal in which words would be cut off gets a block of lines per row.
    """
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(field) for field in row))
    console = Console()
    if _fits(console.width, columns, rows):
        console.print(table)
        return
    for row in rows:
        typer.echo("\n".join(f"{column}: {field}" for column, field in zip(columns, row, strict=True) if field))
        typer.echo()


def _fits(width: int, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the longest word of each column fits beside those of the others, with borders and padding."""
    words = [
        max((len(word) for text in column for word in text.split()), default=0)
        for column in zip(columns, *rows, strict=True)
    ]
    return sum(words) + 3 * len(words) + 1 <= width


def warn(message: str) -> None:
    """Print a yellow line on standard error."""
    typer.secho(f"warning: {message}", fg="yellow", err=True)


def progress_reporter() -> Reporter:
    """Progress on the terminal; of several processes only the first prints."""
    from bevkd_common.progress import ConsoleReporter, SilentReporter

    return ConsoleReporter() if os.environ.get("LOCAL_RANK", "0") == "0" else SilentReporter()
