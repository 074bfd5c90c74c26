"""The numbers of a report as tables of text, for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bevkd_common.evaluation.results import Metric, Table, heading, show
from bevkd_common.report.inputs import ArmReport, ReportInput
from bevkd_common.report.statistics import arm_of, example, gains, has_one_group, headline, metrics, primary


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


def interval(bounds: tuple[float, float] | None, unit: str) -> str:
    """Both ends of an interval, signed."""
    if bounds is None:
        return "-"
    return f"[{show(bounds[0], unit, signed=True)}, {show(bounds[1], unit, signed=True)}]"


def _cell(arm: ArmReport, name: str, metric: Metric) -> str:
    """Mean and deviation over seeds, or the beginning of the reason why there is no number."""
    values = headline(arm, name)
    if values is None:
        return _why(arm, name).partition(":")[0]
    mean = show(values.mean, metric.unit)
    return mean if values.deviation is None else f"{mean} ± {show(values.deviation, metric.unit)}"


def _why(arm: ArmReport, name: str) -> str:
    return next(iter(arm.runs.values())).results.headline[name].why


def answer(report: ReportInput) -> str:
    """The result in one or two sentences: the gain, its interval, and whether it differs from zero."""
    baseline, distilled, teacher = (arm_of(report, role) for role in ("baseline", "distilled", "teacher"))
    assert distilled is not None
    assert teacher is not None
    name = primary(report)
    metric = metrics(report)[name]
    teachers, reached = _primary_mean(teacher, name, metric), _primary_mean(distilled, name, metric)
    if baseline is None:
        return f"The distilled student reaches {reached} {name}, its teacher {teachers}; no baseline: gain unknown."
    gain = gains(report, distilled)[name]
    difference = show(gain.spread.mean, metric.unit, signed=True)
    direction = "" if metric.higher_is_better else " (lower is better)"
    groups, seeds = example(report).groups, len(distilled.runs)
    basis, verdict = f"over {seeds} seeds" if seeds > 1 else "with one seed", ""
    if gain.interval is None:
        verdict = " There is no interval: chance is not ruled out."
    elif seeds > 1:
        basis = f"95 % interval {interval(gain.interval, metric.unit)} {basis}"
    else:
        basis = f"95 % interval {interval(gain.interval, metric.unit)} over the {groups} of one seed"
        verdict = " Run several seeds before quoting it."
    if gain.interval is not None and gain.interval[0] <= 0 <= gain.interval[1]:
        verdict = " The interval contains zero: this run does not show a gain."
    return (
        f"Distillation changes {name} by {difference}{direction}: student alone"
        f" {_primary_mean(baseline, name, metric)}, distilled {reached}, teacher {teachers}; {basis}.{verdict}"
    )


def _primary_mean(arm: ArmReport, name: str, metric: Metric) -> str:
    values = headline(arm, name)
    return show(None if values is None else values.mean, metric.unit)


def comparison(report: ReportInput) -> TextTable:
    """Every arm with its headline metrics, and its gain over the baseline."""
    scored, main = metrics(report), primary(report)
    unit = scored[main].unit
    baseline = arm_of(report, "baseline")
    rows, strong = [], set()
    for index, arm in enumerate(report.arms):
        against = ("-", "-")
        if baseline is not None and arm.role in ("distilled", "control"):
            gain = gains(report, arm)[main]
            against = (show(gain.spread.mean, unit, signed=True), interval(gain.interval, unit))
        if arm.role == "distilled":
            strong.add(index)
        runs = list(arm.runs.values())
        steps = {run.steps for run in runs}
        cells = [
            arm.title,
            *(_cell(arm, name, metric) for name, metric in scored.items()),
            *against,
            f"{arm.parameters / 1e6:.2f}",
            str(min(steps)) if len(steps) == 1 else f"{min(steps)}-{max(steps)}",
            f"{sum(run.seconds for run in runs) / len(runs):.0f}",
        ]
        rows.append(tuple(cells))
    return TextTable(
        "Comparison",
        _comparison_note(report),
        (
            "arm",
            *(heading(name, metric.unit) for name, metric in scored.items()),
            f"Δ {main}",
            "95 % interval",
            "M param.",
            "steps",
            "seconds",
        ),
        tuple(rows),
        frozenset(strong),
    )


def _comparison_note(report: ReportInput) -> str:
    results, seeds = example(report), len(report.arms[0].runs)
    notes = [f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."]
    if arm_of(report, "baseline") is not None:
        notes.append("Δ is the arm minus the student alone, seed by seed.")
        if seeds > 1:
            notes.append("95 % t-interval over seeds.")
        elif results.groups is None:
            notes.append("No interval: this metric cannot be resampled, run several seeds.")
        elif has_one_group(report):
            notes.append(f"No interval: the split has one {results.groups.removesuffix('s')} only.")
        elif report.bootstrap:
            notes.append(f"95 % paired bootstrap over {results.groups}.")
    notes.append(f"All arms: {results.protocol}; {results.counts.samples} samples.")
    for arm in report.arms:
        reasons: dict[str, list[str]] = {}
        for name in metrics(report):
            if headline(arm, name) is None:
                reasons.setdefault(_why(arm, name), []).append(name)
        notes += [f"{arm.title}: {' and '.join(names)} {why}." for why, names in reasons.items()]
    return " ".join(notes)


def published(report: ReportInput) -> TextTable | None:
    """The paper's rows on the paper's data, or None where there are none."""
    if not report.published:
        return None
    names = list(dict.fromkeys(name for row in report.published for name in row.metrics))
    rows = [
        (
            row.setting,
            row.dataset,
            *(f"{row.metrics[name]:g}" if name in row.metrics else "-" for name in names),
            row.source,
        )
        for row in report.published
    ]
    return TextTable(
        "Published numbers, on the paper's data",
        "As printed in the source. They were not measured here and must not be compared with the numbers above,"
        " whose data, schedule and initial weights may differ.",
        ("setting", "data set", *names, "source"),
        tuple(rows),
    )


def gains_by_seed(report: ReportInput) -> TextTable | None:
    """The gain of each seed with its interval over groups, or None without a baseline."""
    baseline, distilled = arm_of(report, "baseline"), arm_of(report, "distilled")
    if baseline is None or distilled is None:
        return None
    name = primary(report)
    unit, groups = metrics(report)[name].unit, example(report).groups
    gain = gains(report, distilled)[name]
    rows = []
    for seed in gain.spread.values:
        bounds = gain.group_intervals.get(seed)
        rows.append(
            (
                str(seed),
                show(baseline.runs[seed].results.score, unit),
                show(distilled.runs[seed].results.score, unit),
                show(gain.spread.values[seed], unit, signed=True),
                interval(None if bounds is None else (bounds.low, bounds.high), unit),
                baseline.runs[seed].run_id,
                distilled.runs[seed].run_id,
            )
        )
    note = "No interval for one seed: the bootstrap was left out."
    if groups is None:
        note = "No interval for one seed: this metric cannot be resampled."
    elif has_one_group(report):
        note = f"No interval for one seed: the split has one {groups.removesuffix('s')} only."
    elif report.bootstrap:
        note = f"The {groups} of a seed are resampled {report.bootstrap} times, the same {groups} for both arms."
    return TextTable(
        f"{name} by seed",
        note,
        ("seed", "alone", "distilled", "Δ", f"95 % over {groups or 'groups'}", "run (alone)", "run (distilled)"),
        tuple(rows),
    )


def details(report: ReportInput) -> list[TextTable]:
    """The tables of the results: compared ones across models, the others for each student, equal ones once."""
    shown = [arm for arm in report.arms if arm.role != "control"]
    students = [arm for arm in shown if arm.role != "teacher"]
    over_seeds = _over_seeds(shown[0])
    found = []
    for table in example(report).tables:
        if table.compared is not None:
            found.append(_by_arm(shown, table.title, table.compared))
            continue
        means = {arm.title: _mean(_tables(arm, table.title)) for arm in students}
        if len({mean.values for mean in means.values()}) == 1:
            found.append(_whole(table.title, next(iter(means.values())), over_seeds))
        else:
            found += [_whole(f"{table.title}, {title}", mean, over_seeds) for title, mean in means.items()]
    return found


def _by_arm(arms: Sequence[ArmReport], title: str, column: str) -> TextTable:
    """One column of one table for every model, in the column's unit."""
    means = {arm.role: _mean(_tables(arm, title)) for arm in arms}
    table = next(iter(means.values()))
    unit = table.unit(column)
    rows = []
    for row in table.rows:
        found = {role: mean.at(row, column) for role, mean in means.items()}
        alone, distilled = found.get("baseline"), found.get("distilled")
        gain = None if alone is None or distilled is None else distilled - alone
        rows.append((row, *(show(value, unit) for value in found.values()), show(gain, unit, signed=True)))
    note = f"Column “{heading(column, unit)}”. {_over_seeds(arms[0])}{table.note}"
    return TextTable(_sentence(title), note.strip(), ("", *(arm.title for arm in arms), "Δ"), tuple(rows))


def _over_seeds(arm: ArmReport) -> str:
    return f"Mean over {len(arm.runs)} seeds. " if len(arm.runs) > 1 else ""


def _whole(title: str, table: Table, over_seeds: str) -> TextTable:
    """One table of one model as it is."""
    rows = [
        (row, *(show(value, unit) for value, unit in zip(values, table.units, strict=True)))
        for row, values in zip(table.rows, table.values, strict=True)
    ]
    columns = [heading(column, unit) for column, unit in zip(table.columns, table.units, strict=True)]
    return TextTable(_sentence(title), f"{over_seeds}{table.note}".strip(), ("", *columns), tuple(rows))


def _sentence(title: str) -> str:
    return title[:1].upper() + title[1:]


def _tables(arm: ArmReport, title: str) -> list[Table]:
    return [run.results.table(title) for run in arm.runs.values()]


def _mean(tables: Sequence[Table]) -> Table:
    """Cell by cell over the seeds in which it is defined."""
    cells = zip(*(table.values for table in tables), strict=True)
    values = tuple(tuple(_mean_known(column) for column in zip(*rows, strict=True)) for rows in cells)
    return tables[0].model_copy(update={"values": values})


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def markdown(table: TextTable) -> str:
    """A table in Markdown."""
    lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for index, row in enumerate(table.rows):
        cells = [f"**{cell}**" if index in table.strong else cell for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", table.note, ""])
