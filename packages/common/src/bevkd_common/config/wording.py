"""Phrases that error messages share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def one_of(choices: Iterable[str]) -> str:
    """The choices in backticks, in order: "`a`, `b` or `c`"."""
    quoted = [f"`{choice}`" for choice in sorted(choices)]
    if not quoted:
        return "nothing"
    *most, last = quoted
    return f"{', '.join(most)} or {last}" if most else last


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The choices that are most similar to a name, the most similar first."""
    return get_close_matches(name, list(choices), n=count, cutoff=0.0)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A question to append: "; did you mean `weight_decay`?", or nothing where no choice is near."""
    near = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


def shorten(text: str, limit: int = 60) -> str:
    """The text on one line of at most `limit` characters, unprintable characters escaped."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
