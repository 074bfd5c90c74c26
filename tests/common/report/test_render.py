import json
import re
from dataclasses import replace

import pytest
from bevkd_common.config.published_rows import PaperRow
from bevkd_common.errors import UserError
from bevkd_common.report.render import write_report


def test_the_page_holds_its_pictures_and_markdown_points_at_them(make_report, tmp_path):
    page = write_report(make_report(), tmp_path / "report")
    assert page == tmp_path / "report" / "index.html"
    names = {path.stem for path in (tmp_path / "report" / "pictures").iterdir()}
    expected = {"curves", "scene-0-above", "scene-0-baseline", "scene-0-distilled"}
    expected |= {f"panel-{index}" for index in range(4)}
    assert names == expected
    html = page.read_text()
    assert html.count("data:image/png;base64,") == len(expected)
    assert 'src="pictures' not in html
    linked = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "report" / "report.md").read_text())
    assert len(linked) == len(expected)
    assert all((tmp_path / "report" / link).is_file() for link in linked)


def test_the_numbers_are_there_for_programs(make_report, tmp_path):
    write_report(make_report(seeds=(0, 1)), tmp_path)
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert set(numbers["arms"]) == {"teacher", "baseline", "distilled"}
    assert numbers["answer"].startswith("Distillation changes score by")
    text = json.dumps(numbers)
    assert '"bootstrap_over_groups"' in text
    assert (numbers["primary"], numbers["groups"]) == ("score", "scenes")
    assert numbers["units"] == {"score": "fraction", "error": "m"}
    assert '"t_interval_over_seeds"' in text


def test_without_a_baseline_or_pictures_there_is_still_a_page(make_report, scene, tmp_path):
    bare = replace(scene, images=None, img_T_lidar=None)
    page = write_report(make_report(baseline=False, scenes=[bare], panels=[]), tmp_path)
    assert "no baseline: gain unknown" in page.read_text()
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == {"curves", "scene-0-above"}


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_data_are_called_so_and_real_ones_not(make_report, tmp_path, synthetic):
    page = write_report(make_report(synthetic=synthetic, scenes=[], panels=[]), tmp_path)
    assert ("SYNTHETIC DATA" in page.read_text()) is synthetic
    assert ("SYNTHETIC DATA" in (tmp_path / "report.md").read_text()) is synthetic
    assert json.loads((tmp_path / "report.json").read_text())["synthetic"] is synthetic


def test_text_from_outside_is_escaped(make_report, tmp_path):
    nasty = "<script>alert(1)</script>"
    report = make_report(
        run=nasty,
        warnings=[nasty],
        departures=[nasty],
        recipe=nasty,
        environment={nasty: nasty},
        scenes=[],
        panels=[],
    )
    html = write_report(report, tmp_path).read_text()
    assert nasty not in html
    assert html.count("&lt;script&gt;") >= 6


def test_warnings_and_departures_are_shown(make_report, tmp_path):
    report = make_report(warnings=["Beware."], departures=["Half the epochs."], scenes=[], panels=[])
    html = write_report(report, tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text()
    for text in ("Beware.", "Half the epochs.", "arms     two", "3.11"):
        assert text in html
        assert text in markdown


def test_a_folder_that_cannot_be_written_is_one_sentence(make_report, tmp_path):
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written to"):
        write_report(make_report(scenes=[], panels=[]), tmp_path / "report")


def test_published_rows_stand_apart_on_the_page(make_report, tmp_path):
    row = PaperRow("student alone", "nuScenes val", {"NDS": 38.9}, "Somebody 2023, table 1")
    page = write_report(make_report(published=[row], scenes=[], panels=[]), tmp_path)
    html, text = page.read_text(), (tmp_path / "report.md").read_text()
    assert html.count('<div class="published">') == 1
    for part in ("Published numbers", "nuScenes val", "38.9", "Somebody 2023, table 1"):
        assert part in html
        assert part in text
    assert json.loads((tmp_path / "report.json").read_text())["published"][0]["metrics"] == {"NDS": 38.9}
    assert "Published" not in write_report(make_report(scenes=[], panels=[]), tmp_path).read_text()


def test_a_metric_that_is_not_observable_is_null_for_programs(make_report, tmp_path):
    page = write_report(make_report(unseen=True, scenes=[], panels=[]), tmp_path)
    arms = json.loads((tmp_path / "report.json").read_text())["arms"]
    assert arms["baseline"]["headline"]["error"] is None
    assert arms["teacher"]["headline"]["error"] == {"0": pytest.approx(0.2)}
    assert "not observable: one sweep, one key frame" in page.read_text()
