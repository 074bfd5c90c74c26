"""Writes a report: one HTML page with its pictures inside, the same in Markdown, and the numbers as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from bevkd_common.errors import UserError
from bevkd_common.report import figures
from bevkd_common.report.inputs import ReportInput
from bevkd_common.report.statistics import arm_of, example, gains, headline, metrics, primary
from bevkd_common.report.tables import (
    TextTable,
    answer,
    comparison,
    details,
    gains_by_seed,
    markdown,
    published,
)


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        section: "curves", "scenes" or "method".
        caption: Below it.
        file: In the report's folder.
    """

    section: str
    caption: str
    file: Path

    @property
    def data(self) -> str:
        """As a data URI, so that the page is one file."""
        return "data:image/png;base64," + base64.b64encode(self.file.read_bytes()).decode()


def write_report(report: ReportInput, folder: Path) -> Path:
    """Write index.html, report.md, report.json and the pictures; returns the page.

    Raises:
        UserError: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [
            Picture(section, caption, figures.save(figure, folder / "pictures" / f"{name}.png"))
            for section, name, caption, figure in _figures(report)
        ]
        page = folder / "index.html"
        page.write_text(_html(report, pictures), encoding="utf-8")
        (folder / "report.md").write_text(_markdown(report, pictures, folder), encoding="utf-8")
        content = json.dumps(numbers(report), indent=1, ensure_ascii=False)
        (folder / "report.json").write_text(f"{content}\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder}: {error.strerror}") from None
    return page


def numbers(report: ReportInput) -> dict[str, Any]:
    """The numbers of the page as JSON-ready data."""
    distilled = arm_of(report, "distilled")
    against = {}
    if arm_of(report, "baseline") is not None and distilled is not None:
        for name, gain in gains(report, distilled).items():
            against[name] = {
                "mean": gain.spread.mean,
                "by_seed": gain.spread.values,
                "t_interval_over_seeds": gain.seeds_interval,
                "bootstrap_over_groups": {s: [i.low, i.high] for s, i in gain.group_intervals.items()},
            }
    return {
        "run": report.run,
        "synthetic": report.synthetic,
        "dataset": report.dataset,
        "answer": answer(report),
        "primary": primary(report),
        "groups": example(report).groups,
        "units": {name: metric.unit for name, metric in metrics(report).items()},
        "arms": {
            arm.name: {
                "role": arm.role,
                "parameters": arm.parameters,
                "headline": {
                    name: None if (values := headline(arm, name)) is None else values.values
                    for name in metrics(report)
                },
                "steps": {seed: run.steps for seed, run in arm.runs.items()},
                "seconds": {seed: run.seconds for seed, run in arm.runs.items()},
                "runs": {seed: run.run_id for seed, run in arm.runs.items()},
            }
            for arm in report.arms
        },
        "gain_over_baseline": against,
        "published": [asdict(row) for row in report.published],
        "departures": list(report.departures),
        "warnings": list(report.warnings),
        "environment": dict(report.environment),
    }


def _figures(report: ReportInput) -> Iterator[tuple[str, str, str, Figure]]:
    yield "curves", "curves", "Weighted loss terms, smoothed over five logged steps.", figures.curves(report.arms)
    pictured = [arm for arm in report.arms if arm.role != "control"]
    for index, scene in enumerate(report.scenes):
        caption = f"Sample {scene.token} from above, boxes scored {scene.threshold:g} or more; x axis to the right."
        yield "scenes", f"scene-{index}-above", caption, figures.birds_eye(scene, pictured)
        for arm in (arm for arm in pictured if arm.role in ("baseline", "distilled")):
            figure = figures.cameras(scene, arm)
            if figure is not None:
                yield (
                    "scenes",
                    f"scene-{index}-{arm.name}",
                    f"{arm.title}: ground-truth boxes (green) and detections.",
                    figure,
                )
    for index, panel in enumerate(report.panels):
        yield "method", f"panel-{index}", panel.caption, figures.panel(panel)


def _tables(report: ReportInput) -> list[TextTable]:
    return [comparison(report), *filter(None, [published(report)]), *_detail_tables(report)]


def _detail_tables(report: ReportInput) -> list[TextTable]:
    return [*filter(None, [gains_by_seed(report)]), *details(report)]


def _html(report: ReportInput, pictures: list[Picture]) -> str:
    environment = Environment(
        loader=PackageLoader("bevkd_common.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html").render(
        report=report,
        answer=answer(report),
        main=comparison(report),
        published=published(report),
        tables=_detail_tables(report),
        pictures=pictures,
    )


def _markdown(report: ReportInput, pictures: list[Picture], folder: Path) -> str:
    lines = [f"# {report.method}: {report.run}", ""]
    if report.synthetic:
        lines += ["> **SYNTHETIC DATA.** Generated, not recorded: the numbers do not transfer to real roads.", ""]
    lines += [answer(report), "", report.dataset, ""]
    lines += [f"- **Warning:** {warning}" for warning in report.warnings]
    lines += ["", *(markdown(table) for table in _tables(report))]
    lines += ["## Departures from the paper", "", *(f"- {line}" for line in report.departures), ""]
    lines += ["## Pictures", ""]
    lines += [f"![{picture.caption}]({picture.file.relative_to(folder)})\n" for picture in pictures]
    lines += ["## Plan", "", *(f"    {line}" for line in report.plan), ""]
    lines += ["## Environment", "", *(f"- {key}: {value}" for key, value in report.environment.items()), ""]
    return "\n".join(lines)
