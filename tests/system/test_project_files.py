"""Files that tools and code hosts read: metadata, citation, changelog, templates, workflow."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_citation_names_the_authors_of_the_paper_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert names == ["Yuan Wang", "Naisong Luo", "Tianzhu Zhang"]
    assert citation["version"] == PROJECT["version"]
    readme = (ROOT / "README.md").read_text()
    assert paper["title"] in readme and "Wang, Yuan and Luo, Naisong and Zhang, Tianzhu" in readme


def test_changelog_has_the_version_of_the_project() -> None:
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_workflow_runs_the_commands_of_the_readme_on_the_versions_that_it_names() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert commands == {"make lint", "make test", "make docs"}
    versions = jobs["test"]["strategy"]["matrix"]["python"]
    readme = (ROOT / "README.md").read_text()
    assert versions == sorted(set(re.findall(r"\b3\.1\d\b", readme)))
    assert PROJECT["requires-python"] == f">={versions[0]}"


@pytest.mark.parametrize("name", ["bug", "question"])
def test_issue_form_asks_something(name: str) -> None:
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    required = [item for item in form["body"] if item.get("validations", {}).get("required")]
    assert form["name"] and form["description"] and required


def test_hooks_before_a_commit_use_the_versions_of_the_environment() -> None:
    [repo] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert all(hook["entry"].startswith(".venv/bin/") for hook in repo["hooks"])


@pytest.mark.parametrize(
    ("stub", "found"),
    [('[ "$1" = --version ] && echo Python 3.10.2 || echo False', "Python 3.10.2"), (None, "miss")],
    ids=["older Python", "no Python"],
)
def test_environment_is_refused_in_one_line_without_a_suitable_python(
    stub: str | None, found: str, tmp_path: Path
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("make", "sh"):
        path = next(p for f in os.get_exec_path() if (p := Path(f, name)).exists())
        (commands / name).symlink_to(path)
    if stub:
        (commands / "python3").write_text(f"#!/bin/sh\n{stub}\n")
        (commands / "python3").chmod(0o755)
    for name in ("Makefile", "constraints.txt", *(p.name for p in ROOT.glob("requirements*.txt"))):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        ["make", "env"], cwd=tmp_path, env={"PATH": str(commands)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert found in done.stderr and "install Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()
