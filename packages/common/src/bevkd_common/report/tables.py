"""The numbers of a report as tables of text, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bevkd_common.evaluation.results import Metric, Table
from bevkd_common.report.inputs import Arm, ReportInput
from bevkd_common.report.statistics import Gain, Spread, arm_of, gains, headline, metrics


@dataclass(frozen=True)
class TextTable:
    """Rows of text under a heading.

    Attributes:
        title: Above the table.
        note: One or two sentences below it.
        columns: Heading of each column.
        rows: Cells; the first column is the name of the row.
        strong: Rows to set off.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()


def number(value: float | None, metric: Metric | None = None, *, signed: bool = False) -> str:
    """A score as the field writes it: fractions in points of a hundred, other units as they are."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if metric is None or not metric.unit:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.3f}"


def interval(bounds: tuple[float, float] | None, metric: Metric) -> str:
    """Both ends of an interval, signed."""
    if bounds is None:
        return "-"
    return f"[{number(bounds[0], metric, signed=True)}, {number(bounds[1], metric, signed=True)}]"


def _with_deviation(values: Spread, metric: Metric) -> str:
    shown = number(values.mean, metric)
    return shown if values.deviation is None else f"{shown} ± {number(values.deviation, metric)}"


def answer(report: ReportInput) -> str:
    """The reader's question in one sentence: what did distillation buy, and can I trust the number?"""
    baseline, distilled, teacher = (arm_of(report, role) for role in ("baseline", "distilled", "teacher"))
    assert distilled is not None
    assert teacher is not None
    name, metric = next(iter(metrics(report).items()))
    taught = number(headline(teacher, name).mean, metric)
    reached = number(headline(distilled, name).mean, metric)
    if baseline is None:
        return (
            f"The distilled student reaches {reached} {name}, distilling from {taught};"
            " without a baseline nobody knows what that bought."
        )
    gain = gains(report, distilled, baseline)[name]
    alone = number(headline(baseline, name).mean, metric)
    bounds = gain.interval
    verdict = "" if bounds is None else f", 95 % interval {interval(bounds, metric)}"
    seeds = len(distilled.runs)
    over = f"over {seeds} seeds" if seeds > 1 else "over the scenes of one seed; run several before quoting it"
    doubt = ""
    if bounds is None:
        doubt = " Without an interval nobody knows whether that is chance."
    elif bounds[0] <= 0 <= bounds[1]:
        doubt = " The interval contains zero: this run does not show a gain."
    return (
        f"Distillation bought {number(gain.spread.mean, metric, signed=True)} {name}: {alone} alone,"
        f" {reached} distilled, from a teacher of {taught}{verdict} {over}.{doubt}"
    )


def comparison(report: ReportInput) -> TextTable:
    """Every arm with its headline metrics, and the gain over the student alone."""
    scored = metrics(report)
    main = next(iter(scored))
    baseline = arm_of(report, "baseline")
    rows, strong = [], set()
    for index, arm in enumerate(report.arms):
        against = ("-", "-")
        if baseline is not None and arm.role in ("distilled", "control"):
            gain = gains(report, arm, baseline)[main]
            against = (number(gain.spread.mean, scored[main], signed=True), interval(gain.interval, scored[main]))
        if arm.role == "distilled":
            strong.add(index)
        runs = list(arm.runs.values())
        steps = {run.steps for run in runs}
        cells = [
            arm.title,
            *(_with_deviation(headline(arm, name), metric) for name, metric in scored.items()),
            *against,
            f"{arm.parameters / 1e6:.2f}",
            str(min(steps)) if len(steps) == 1 else f"{min(steps)}-{max(steps)}",
            f"{sum(run.seconds for run in runs) / len(runs):.0f}",
        ]
        rows.append(tuple(cells))
    seeds = len(report.arms[0].runs)
    spread_note = f"Mean ± standard deviation over {seeds} seeds. " if seeds > 1 else "One seed. "
    kind = "t-interval over seeds" if seeds > 1 else "paired bootstrap over scenes"
    return TextTable(
        "Comparison",
        f"{spread_note}Δ is against the student alone, seed by seed; 95 % {kind}. One code scores all arms.",
        ("arm", *scored, f"Δ {main}", "95 %", "M param.", "steps", "seconds"),
        tuple(rows),
        frozenset(strong),
    )


def gains_by_seed(report: ReportInput) -> TextTable | None:
    """The gain of each seed with its interval over scenes, or None without a baseline."""
    baseline, distilled = arm_of(report, "baseline"), arm_of(report, "distilled")
    if baseline is None or distilled is None:
        return None
    scored = metrics(report)
    name, metric = next(iter(scored.items()))
    gain: Gain = gains(report, distilled, baseline)[name]
    rows = []
    for seed in gain.spread.values:
        scenes = gain.scenes_intervals.get(seed)
        rows.append(
            (
                str(seed),
                number(baseline.runs[seed].results.headline[name].value, metric),
                number(distilled.runs[seed].results.headline[name].value, metric),
                number(gain.spread.values[seed], metric, signed=True),
                interval(None if scenes is None else (scenes.low, scenes.high), metric),
                baseline.runs[seed].run_id,
                distilled.runs[seed].run_id,
            )
        )
    return TextTable(
        f"{name}, seed by seed",
        f"The interval resamples the scenes of one seed {report.bootstrap} times, the same scenes for both.",
        ("seed", "alone", "distilled", "Δ", "95 % over scenes", "run (alone)", "run (distilled)"),
        tuple(rows),
    )


def details(report: ReportInput) -> list[TextTable]:
    """The main score by class and by distance for every model, then what else the results hold."""
    shown = [arm for arm in report.arms if arm.role != "control"]
    main, *others = next(iter(report.arms[0].runs.values())).results.tables
    tables = [_by_arm(shown, main, "by class"), _by_arm(shown, None, "by distance from the ego")]
    for arm in (arm for arm in shown if arm.role != "teacher"):
        tables += [_whole(arm, title) for title in others]
    return tables


def _by_arm(arms: Sequence[Arm], title: str | None, what: str) -> TextTable:
    """The first column of one table, or of the distance bands, for every model."""
    means = {arm.role: _mean(_tables(arm, title)) for arm in arms}
    example = means[arms[0].role]
    column = example.columns[0]
    rows = []
    for row in example.rows:
        found = {role: table.at(row, column) for role, table in means.items()}
        alone, distilled = found.get("baseline"), found.get("distilled")
        gain = None if alone is None or distilled is None else distilled - alone
        rows.append((row, *(number(value) for value in found.values()), number(gain, signed=True)))
    heading = f"{title.capitalize() if title else column}, {what}"
    columns = ("", *(arm.title for arm in arms), "Δ")
    return TextTable(heading, f"Column “{column}”; mean over seeds.", columns, tuple(rows))


def _whole(arm: Arm, title: str) -> TextTable:
    """One table of one model as it is."""
    table = _mean(_tables(arm, title))
    rows = [
        (row, *(_plain(value) for value in values)) for row, values in zip(table.rows, table.values, strict=True)
    ]
    return TextTable(f"{title.capitalize()}, {arm.title}", "Mean over seeds.", ("", *table.columns), tuple(rows))


def _tables(arm: Arm, title: str | None) -> list[Table]:
    results = [run.results for run in arm.runs.values()]
    return [result.bands if title is None else result.tables[title] for result in results]


def _mean(tables: Sequence[Table]) -> Table:
    """Cell by cell over the seeds in which it is defined."""
    cells = zip(*(table.values for table in tables), strict=True)
    values = tuple(tuple(_mean_known(column) for column in zip(*rows, strict=True)) for rows in cells)
    return tables[0].model_copy(update={"values": values})


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _plain(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if float(value).is_integer() and value > 1 else f"{value:.3f}"


def markdown(table: TextTable) -> str:
    """A table in Markdown."""
    lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for index, row in enumerate(table.rows):
        cells = [f"**{cell}**" if index in table.strong else cell for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", table.note, ""])
