"""What an evaluation says: the same typed shape for every data set, and its JSON."""

from pydantic import ValidationError, model_validator

from bevkd_common.config.model import Config
from bevkd_common.errors import UserError


class Metric(Config):
    """One number of the headline."""

    value: float
    unit: str
    """Such as "m" or "rad"; empty for a fraction between 0 and 1."""
    higher_is_better: bool


class Table(Config):
    """Numbers by row and column; None where the metric is not defined."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]

    @model_validator(mode="after")
    def _rectangular(self) -> "Table":
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"values must have {len(self.rows)} rows of {len(self.columns)} columns")
        return self

    def at(self, row: str, column: str) -> float | None:
        """Return one value by the names of its row and column."""
        return self.values[self.rows.index(row)][self.columns.index(column)]


class Counts(Config):
    """How much was scored, after the metric's own filters."""

    scenes: int
    samples: int
    predictions: int
    ground_truths: int


class Results(Config):
    """The scores of one model on one split."""

    protocol: str
    """One sentence that names the metric and its settings."""
    headline: dict[str, Metric]
    """In the order in which they are shown, the most important first."""
    tables: dict[str, Table]
    """Details by class."""
    bands: Table
    """The main metric by distance from the sensor."""
    counts: Counts

    def to_json(self) -> str:
        """Return JSON text from which `from_json` restores an equal object."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "Results":
        """Parse what `to_json` wrote.

        Args:
            text: JSON.
            source: names the text in the error, such as a path.

        Raises:
            UserError: the text is not a complete result.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the text"
            raise UserError(
                f"{source}: {place}: {first['msg']}; evaluate the checkpoint again to rewrite it."
            ) from error
