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
    """Where messages and progress go."""

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
    """At most one line every `PLAIN_INTERVAL_S` seconds, and one at the end; none where nothing was done."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._started = self._printed = time.monotonic()
        self._last: tuple[int, str] | None = None

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        self._last = (done, note)
        self._total = total or self._total
        if time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._print()

    def finish(self) -> None:
        self._print()

    def _print(self) -> None:
        if self._last is None:
            return
        self._printed = time.monotonic()
        done, note = self._last
        self._console.print(
            f"{self._title}: {done}/{self._total} in {self._printed - self._started:.0f} s {note}".rstrip(),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


class ConsoleReporter:
    """Reports to a rich console; `live` follows whether the console is a terminal.

    Bars may be open at the same time: on a terminal they share one display, a line each.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._open = 0

    def say(self, message: str) -> None:
        """Print one line."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A progress bar on a terminal, plain lines elsewhere."""
        if not self.console.is_terminal:
            plain = _PlainBar(self.console, title, total)
            yield plain
            plain.finish()
            return
        progress = self._display()
        self._open += 1
        task = progress.add_task(title, total=total, note="")
        try:
            yield _LiveBar(progress, task)
        finally:
            self._open -= 1
            if self._open == 0:
                progress.stop()
                self._progress = None
            else:
                self._replace_by_line(progress, task)

    def _replace_by_line(self, progress: Progress, task: TaskID) -> None:
        """Keep the display as short as the number of open bars."""
        ended = next(one for one in progress.tasks if one.id == task)
        progress.remove_task(task)
        took = f"{ended.description}: {ended.completed:.0f}/{ended.total:.0f} in {ended.elapsed or 0:.0f} s"
        self.say(f"{took} {ended.fields['note']}".rstrip())

    def _display(self) -> Progress:
        if self._progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._progress = Progress(*columns, console=self.console)
            self._progress.start()
        return self._progress


class SilentReporter:
    """Prints nothing; for use from Python and in tests."""

    def say(self, message: str) -> None:
        """Drop the line."""

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A bar that is not shown."""
        yield _SilentBar()


class _SilentBar:
    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        pass
