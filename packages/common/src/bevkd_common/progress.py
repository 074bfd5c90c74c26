"""Progress of long steps: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL_S = 10.0


class Bar(Protocol):
    """One long step."""

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report that `done` are done, and a total that is known only now."""
        ...


class Reporter(Protocol):
    """Where the engine says what it does."""

    def say(self, message: str) -> None:
        """Print one line."""
        ...

    def bar(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """Open a bar for the duration of a `with` block."""
        ...


class _LiveBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, note=note)


class _PlainBar:
    """A line at the start, then at most one every `PLAIN_INTERVAL_S` seconds, and one at the end."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._started = self._printed = time.monotonic()
        self._last = (0, "")

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        self._last = (done, note)
        self._total = total or self._total
        if time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._print()

    def finish(self) -> None:
        self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        done, note = self._last
        self._console.print(
            f"{self._title}: {done}/{self._total} in {self._printed - self._started:.0f} s {note}".rstrip(),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


class ConsoleReporter:
    """Reports to a rich console; `live` follows whether the console is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def say(self, message: str) -> None:
        """Print one line."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A progress bar on a terminal, plain lines elsewhere."""
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self.console) as progress:
                yield _LiveBar(progress, progress.add_task(title, total=total, note=""))
        else:
            plain = _PlainBar(self.console, title, total)
            yield plain
            plain.finish()


class SilentReporter:
    """Says nothing; for use from Python and in tests."""

    def say(self, message: str) -> None:
        """Drop the line."""

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A bar that nobody sees."""
        yield _SilentBar()


class _SilentBar:
    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        pass
