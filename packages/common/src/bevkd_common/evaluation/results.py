"""Scores of one model on one split: one typed shape for every data set, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from bevkd_common.config.model import Config
from bevkd_common.errors import UserError

FORMAT: Literal[2] = 2
"""Version of the JSON. Results of another version are computed again, never converted."""

FRACTION = "fraction"
"""Unit of a number between 0 and 1 that is printed in percent."""
PERCENT = "%"
"""Unit of a number that is already in percent."""
COUNT = "count"
"""Unit of a number of things."""


class Metric(Config):
    """One number of the headline."""

    value: float | None
    """None where the detector cannot observe what is measured, see `why`."""
    unit: str
    """`FRACTION`, `PERCENT`, `COUNT`, or the unit in which the number is printed, such as "m" or "rad"."""
    higher_is_better: bool
    why: str = ""
    """Why there is no value, such as "not observable: one sweep, one key frame"; empty where there is one."""

    @model_validator(mode="after")
    def _explained(self) -> Metric:
        if (self.value is None) != bool(self.why):
            raise ValueError("`why` must be given if, and only if, `value` is None")
        return self


class Table(Config):
    """Numbers by row and column; None where the number is not defined."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    units: tuple[str, ...]
    """Unit of each column, as `Metric.unit`."""
    values: tuple[tuple[float | None, ...], ...]
    compared: str | None = None
    """Column that a report compares across models; None prints the whole table for each model."""
    note: str = ""
    """One or two sentences below the table."""

    @model_validator(mode="after")
    def _consistent(self) -> Table:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"values must have {len(self.rows)} rows of {len(self.columns)} columns")
        if len(self.units) != len(self.columns):
            raise ValueError(f"units must have {len(self.columns)} entries, one a column")
        if self.compared is not None and self.compared not in self.columns:
            raise ValueError(f"compared must be one of the columns: {', '.join(self.columns)}")
        return self

    def at(self, row: str, column: str) -> float | None:
        """Return one value by the names of its row and column."""
        return self.values[self.rows.index(row)][self.columns.index(column)]

    def unit(self, column: str) -> str:
        """Return the unit of a column."""
        return self.units[self.columns.index(column)]


class Counts(Config):
    """How much was scored, after the metric's own filters."""

    samples: int
    predictions: int
    ground_truths: int


class Results(Config):
    """The scores of one model on one split."""

    format: Literal[2] = FORMAT
    """Version of the format."""
    protocol: str
    """One sentence that names the metric and its settings."""
    primary: str
    """Name of the headline metric by which models are compared; it always has a value."""
    headline: dict[str, Metric]
    """By name, in the order in which they are shown."""
    tables: tuple[Table, ...] = ()
    """Details by class, distance or difficulty, in the order in which they are shown."""
    counts: Counts
    groups: str | None
    """What a bootstrap over this split resamples, in the plural: "scenes", or "samples" where samples are
    independent. None where the headline cannot be computed from resampled groups; then there is no `Evidence`."""

    @model_validator(mode="after")
    def _consistent(self) -> Results:
        if self.primary not in self.headline:
            raise ValueError(f"primary must be one of the headline: {', '.join(self.headline)}")
        if self.headline[self.primary].value is None:
            raise ValueError(f"the primary metric {self.primary} must have a value")
        titles = [table.title for table in self.tables]
        if len(set(titles)) != len(titles):
            raise ValueError("two tables have the same title")
        return self

    @property
    def score(self) -> float:
        """Value of the primary metric."""
        value = self.headline[self.primary].value
        assert value is not None
        return value

    def table(self, title: str) -> Table:
        """Return a table by its title."""
        return next(table for table in self.tables if table.title == title)

    def to_json(self) -> str:
        """Return JSON text from which `from_json` restores an equal object."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def of_this_version(cls, content: Mapping[str, Any]) -> Results | None:
        """Read dumped results, or return None if another version of the format wrote them.

        Raises:
            ValidationError: The content is damaged.
        """
        return cls.model_validate(content) if content.get("format") == FORMAT else None

    @classmethod
    def from_json(cls, text: str, source: str) -> Results:
        """Parse the text of `to_json`.

        Args:
            text: JSON.
            source: Names the text in the error, such as a path.

        Raises:
            UserError: The text is not a complete result of this version.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the text"
            raise UserError(
                f"{source}: {place}: {first['msg']}; evaluate the checkpoint again to rewrite it."
            ) from error


def show(value: float | None, unit: str, *, signed: bool = False) -> str:
    """Format a number as its unit asks: percent with one decimal, counts as integers, other units with three.

    Args:
        value: None gives "-".
        unit: As `Metric.unit`. A `FRACTION` is multiplied by 100.
        signed: Whether a positive number has a plus sign.
    """
    if value is None:
        return "-"
    sign = "+z" if signed else "z"  # z: a number that rounds to zero has no minus
    if unit == FRACTION:
        return f"{100 * value:{sign}.1f}"
    if unit == PERCENT:
        return f"{value:{sign}.1f}"
    if unit == COUNT:
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.3f}"


def heading(name: str, unit: str) -> str:
    """Name of a metric or column, with its unit where that is neither percent nor a count."""
    return name if unit in (FRACTION, PERCENT, COUNT) else f"{name} ({unit})"
