"""docs/custom_data.md: its commands run as written."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def checkout(shared: Path, tmp_path: Path) -> Path:
    """A copy of the repository, with the COCO part as a stranger's photos and labels in it."""
    folder = tmp_path / "checkout"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    scripts = folder / ".venv/bin"
    scripts.mkdir(parents=True)
    (scripts / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (scripts / "python").chmod(0o755)
    (scripts / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    (folder / "photos").mkdir()
    merged = {"images": [], "annotations": []}
    for subset in ("train", "val"):
        path = shared / f"coco2014/annotations/instances_{subset}2014.json"
        part = json.loads(path.read_text())
        for image in part["images"]:
            name = image["file_name"]
            (folder / "photos" / name).symlink_to(shared / f"coco2014/{subset}2014" / name)
        merged["images"] += part["images"]
        merged["annotations"] += part["annotations"]
        merged["categories"] = part["categories"]
    (folder / "labels.json").write_text(json.dumps(merged))
    return folder


def test_the_tutorial_takes_a_stranger_from_labels_to_a_trained_fold(checkout: Path) -> None:
    page = (ROOT / "docs/custom_data.md").read_text()
    [config] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (checkout / "config/mine").mkdir()
    (checkout / "config/mine/mine_split0_lite0.yaml").write_text(config)
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    assert commands.count("\n") >= 7
    done = subprocess.run(
        ["sh", "-e", "-c", commands], cwd=checkout, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "224 images of 80 classes" in done.stdout and "nothing is wrong" in done.stdout
    assert len(json.loads((checkout / "lists/mine/val_0.json").read_text())["images"]) == 25
    result = json.loads((checkout / "exp/mine/split0_lite0/result.json").read_text())
    classes = result["seeds"]["321"]["final"]["classes"]
    assert sorted(classes) == ["cat", "dog", "horse", "train"]
    assert (checkout / "exp/mine/split0_lite0/episodes.png").is_file()
