"""The package that serves the page to others has no known vulnerability."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_gradio_has_no_known_advisory(tmp_path: Path) -> None:
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("needs pip-audit: pip install pip-audit")
    lines = (ROOT / "requirements-app.txt").read_text().splitlines()
    [gradio] = [line.partition("#")[0] for line in lines if line.startswith("gradio==")]
    (tmp_path / "requirements.txt").write_text(gradio)
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-f", "json", "-r"]
    done = subprocess.run(
        [*command, tmp_path / "requirements.txt"], capture_output=True, text=True, timeout=300
    )
    if not done.stdout.strip():
        pytest.skip(f"the advisories cannot be asked for here: {done.stderr.splitlines()[-1]}")
    [found] = json.loads(done.stdout)["dependencies"]
    if "skip_reason" in found:
        pytest.skip(f"the advisories cannot be asked for here: {found['skip_reason']}")
    assert not found["vulns"], found["vulns"]
