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
    """Print a formatted table at a terminal; elsewhere one line per row, fields separated by tabs, no heading."""
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
    Console().print(table)


def warn(message: str) -> None:
    """Print a yellow line on standard error."""
    typer.secho(f"warning: {message}", fg="yellow", err=True)


def progress_reporter() -> Reporter:
    """Progress on the terminal; of several processes only the first prints."""
    from bevkd_common.progress import ConsoleReporter, SilentReporter

    return ConsoleReporter() if os.environ.get("LOCAL_RANK", "0") == "0" else SilentReporter()
