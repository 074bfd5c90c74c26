import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_package(tmp_path_factory) -> Path:
    """A folder to put on the path: the toy package, built as a wheel and unpacked as an installer does."""
    out = tmp_path_factory.mktemp("toy")
    source = Path(__file__).parent / "toy"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    site = out / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site
