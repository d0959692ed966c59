"""A wheel, away from the checkout, finds its assets."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SCRIPT = """
import lvmlab, sys
from lvmlab.utils import paths
from lvmlab.world import default
assert lvmlab.__file__.startswith(sys.argv[1]) and str(paths.assets()).startswith(sys.argv[1]), paths.assets()
print(default().count("photographs", "test"), *sorted(p.name for p in (paths.assets() / "models").iterdir() if p.is_dir()))
"""


def test_a_wheel_finds_its_assets(tmp_path):
    build = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(tmp_path),
            str(ROOT),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if build.returncode and "hatchling" in build.stderr and "No matching distribution" in build.stderr:
        pytest.skip("the build backend cannot be fetched without a network")
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    widgets = Path("lvmlab/lab/studio")
    assert {p.name for p in (ROOT / widgets).iterdir() if p.is_file()} == {
        p.name for p in (installed / widgets).iterdir()
    }, "styles and scripts too"
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(installed)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    shipped = sorted(p.name for p in (ROOT / "assets" / "models").iterdir() if p.is_dir())
    assert found.stdout.split() == ["29", *shipped]
