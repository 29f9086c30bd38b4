"""`make demo` as the README describes it; slow: minutes of training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_demo_segments_novel_classes_20_points_better_than_the_prior(tmp_path: Path) -> None:
    """Final mIoU is at least 57, and at least 20 points above the prior at its best threshold.

    The limit leaves room for the machine's arithmetic, which a whole training amplifies: 59.7 was
    measured with AVX-512 on two threads. An earlier config gave 60.6 with AVX2 and 60.0 with
    AVX-512, both on two threads, and 59.9 with AVX2 on one thread.
    """
    words = [sys.executable, "-m", "util.data.demo", "--out", str(tmp_path / "data")]
    subprocess.run(words, cwd=ROOT, check=True)
    overrides = [
        f"Data.data_root={tmp_path}/data/VOCdevkit2012/VOC2012",
        f"Data.list_dir={tmp_path}/lists",
        f"Method.pre_weight={tmp_path}/base.pth",
        f"Train.save_path={tmp_path}/run",
    ]
    environment = {**os.environ, "NET": "lite0", "PYTHON": sys.executable}
    for script in ("train.sh", "test.sh"):
        words = ["sh", script, "split0", "demo", "0", *overrides]
        subprocess.run(words, cwd=ROOT, check=True, env=environment)
    summary = json.loads((tmp_path / "run" / "result.json").read_text())["summary"]
    final, prior = (summary[f"{kind} mIoU"]["mean"] for kind in ("final", "prior"))
    assert final >= 57 and final >= prior + 20
    assert (tmp_path / "run" / "episodes.png").is_file()
