"""The excerpts of docs/plugins.md are in the files that they name."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXCERPT = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_excerpts_are_current():
    text = (ROOT / "docs" / "plugins.md").read_text()
    found = EXCERPT.findall(text)
    assert len(found) == text.count("```") // 2 == 10
    for file, excerpt in found:
        assert excerpt in (ROOT / "tests" / "e2e" / "toy" / "src" / "bevkd_toy" / file).read_text(), excerpt


def test_files_of_the_workspace_exist():
    common = ROOT / "packages" / "common" / "src" / "bevkd_common"
    for place in ("config/detectors", "models/detectors", "models/weights", "config/datasets", "recipes"):
        assert (common / place).is_dir(), place
    for file in ("models/specs.py", "data/specs.py"):
        assert (common / file).is_file(), file
