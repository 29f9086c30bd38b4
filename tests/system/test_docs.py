"""The documentation: links resolve, commands run as written, docs/config.md is up to date.

Every block of commands in docs/ runs, page by page, in a copy of the repository. The exception is a
block whose first line says why it is not run, or when and where it was measured. Code below a line
that ends with a file name, `like/this.py`:, is written to that file first; a diff is applied.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from helpers import ROOT
from nbclient import NotebookClient

from model import build_model
from util.config import load_config, to_dict
from util.config.kinds import key
from util.config.schema import KEYS, SECTIONS
from util.config.write_docs import PAGE, key_reference
from util.data.demo.make import make_demo

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
NOT_RUN = re.compile(r"# (not run by the tests: |measured \d{4}-\d\d-\d\d, ).{10,}")


def blocks(page: Path, kind: str) -> list[str]:
    """Return the contents of a page's code blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.M | re.S)


def run_blocks(page: Path) -> list[str]:
    """Return the blocks of commands that this file runs."""
    return [b for b in blocks(page, "sh") if not NOT_RUN.match(b)]


def name_of(page: Path) -> str:
    return page.name


# --- links ---------------------------------------------------------------------------------------


def test_every_link_of_the_documentation_resolves(tmp_path: Path) -> None:
    """Pages and anchors, checked by mkdocs; `make docs` builds the same site."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_links_to_existing_files() -> None:
    links = re.findall(r"\]\(([^)\s#]+)", (ROOT / "README.md").read_text())
    missing = [link for link in links if ":" not in link and not (ROOT / link).exists()]
    assert len(links) > 10 and not missing


def test_index_lists_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in DOCS:
        assert page.name == "README.md" or f"]({page.name})" in index


def test_sections_of_the_method_that_docstrings_cite_exist() -> None:
    there = re.findall(r"^## (\d)\. ", (ROOT / "docs/method.md").read_text(), re.M)
    files = [*ROOT.glob("*.py"), *(ROOT / "model").rglob("*.py"), *(ROOT / "util").rglob("*.py")]
    cited = [n for path in files for n in re.findall(r"\b[Mm]ethod (\d)\b", path.read_text())]
    assert len(cited) > 10 and set(cited) <= set(there)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_speaks_only_of_what_a_reader_has(page: Path) -> None:
    for word in ("../shared", "the card", "promised"):
        assert word not in page.read_text()


# --- the page of the keys ------------------------------------------------------------------------


def test_page_of_config_keys_is_up_to_date() -> None:
    assert PAGE.read_text() == key_reference(), "run: python -m util.config.write_docs"


def test_every_config_key_has_a_description() -> None:
    assert all(section.__doc__ for section in SECTIONS.values())
    for name, field in KEYS.items():
        assert len((field.description or "").split()) >= 2, f"{name} has no description"
    with pytest.raises(TypeError):
        key(1)


# --- commands, without running them --------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """Return every command of a page, as words."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_pages_name_existing_files_and_keys(page: Path) -> None:
    for block in blocks(page, "sh"):
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)
    for words in commands(page):
        given = dict(w.split("=", 1) for w in words if re.match(r"[A-Z]+=", w))
        words = words[len(given) :]
        if words[:1] == ["sh"] and words[2:3] != ["--help"]:
            exp, data_set = words[2:4]
            net = given.get("NET", "resnet50")
            path = ROOT / f"config/{data_set}/{data_set}_{exp}_{net}.yaml"
            assert (ROOT / words[1]).is_file() and (path.is_file() or path.stem in page.read_text())
            keys = [w for w in words[5:] if re.match(r"[A-Z]\w+\.", w)]
            if path.is_file() and "mining_heads" not in str(keys):  # a key that the page makes
                load_config(path, keys)
        elif words[:1] and words[0].endswith("python"):
            file = words[2].replace(".", "/") if words[1] == "-m" else words[1].removesuffix(".py")
            there = [ROOT / f"{file}.py", ROOT / file / "__main__.py"]
            library = file in ("pytest", "coverage")
            assert library or any(path.is_file() for path in there), words


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_block_that_is_not_run_gives_the_reason(page: Path) -> None:
    for block in blocks(page, "sh"):
        first = block.partition("\n")[0]
        assert NOT_RUN.match(first) or not re.match(r"# *(not|measured)", first, re.I), first


# --- commands, run as written --------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of `make demo`: its data, and a checkpoint, here with random weights."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "data").mkdir()
    finished = ROOT / "data/demo/demo.json"
    if finished.is_file() and '"finished": true' in finished.read_text():
        (folder / "data/demo").symlink_to((ROOT / "data/demo").resolve())
    else:
        make_demo(folder / "data/demo")
    cfg = load_config(ROOT / "config/demo/demo_split0_lite0.yaml")
    (folder / cfg.Train.save_path).mkdir(parents=True)
    state = {"model": build_model(cfg).state_dict(), "iteration": 0, "config": to_dict(cfg)}
    torch.save(state, folder / cfg.Train.save_path / "best.pth")
    return folder


@pytest.fixture
def checkout(demo: Path, tmp_path: Path) -> Path:
    """A copy of the repository in which `make demo` seems to have run."""
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
    shutil.copytree(demo, folder, dirs_exist_ok=True, symlinks=True)
    return folder


def own_data(coco: Path, folder: Path) -> None:
    """Lay out the COCO part like a user's own photos and labels: `photos/`, `labels.json`."""
    (folder / "photos").mkdir()
    merged = {"images": [], "annotations": []}
    for subset in ("train", "val"):
        path = coco / f"annotations/instances_{subset}2014.json"
        part = json.loads(path.read_text())
        for image in part["images"]:
            name = image["file_name"]
            (folder / "photos" / name).symlink_to(coco / f"{subset}2014" / name)
        merged["images"] += part["images"]
        merged["annotations"] += part["annotations"]
        merged["categories"] = part["categories"]
    (folder / "labels.json").write_text(json.dumps(merged))


def run_page(page: Path, checkout: Path) -> str:
    """Write a page's files, run its commands in one shell, and return their output."""
    text = page.read_text()
    for name, content in re.findall(r"`([\w./]+)`:\n\n```\w+\n(.*?)^```", text, re.M | re.S):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(content)
    for change in blocks(page, "diff"):
        subprocess.run(["git", "apply", "-"], input=change, text=True, cwd=checkout, check=True)
    activated = {**os.environ, "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", "".join(run_blocks(page))], cwd=checkout, env=activated,
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def after_getting_started(checkout: Path, said: str) -> None:
    assert "written: exp/demo/split0_lite0/result.json" in said and "usage: " in said
    assert (checkout / "exp/demo/split0_lite0/last.pth").is_file()
    assert not (checkout / "initmodel/demo/split0_lite0.pth").exists()


def after_custom_data(checkout: Path, said: str) -> None:
    assert "224 images of 80 classes" in said and "nothing is wrong" in said
    assert len(json.loads((checkout / "lists/mine/val_0.json").read_text())["images"]) == 25
    result = json.loads((checkout / "exp/mine/split0_lite0/result.json").read_text())
    classes = result["seeds"]["321"]["final"]["classes"]
    assert sorted(classes) == ["cat", "dog", "horse", "train"]
    assert (checkout / "exp/mine/split0_lite0/episodes.png").is_file()
    other = json.loads((checkout / "exp/mine/fromdemo_lite0/result.json").read_text())
    removed, tested = other["leaks"]["not_tested"], other["seeds"]["321"]["final"]["classes"]
    assert {"car", "couch", "tv"} <= set(removed) and not set(removed) & set(tested)
    assert {"airplane", "zebra"} <= set(tested)


def after_changing_the_model(checkout: Path, said: str) -> None:
    assert "2 passed" in said and "mining_heads: 4" in said
    assert "`mining_heads`" in (checkout / "docs/config.md").read_text()


def after_new_method(checkout: Path, said: str) -> None:
    assert "written: exp/demo/split0_prototype_lite0/result.json" in said
    assert "stage one trains" not in said and "prior mIoU" in said and "base mIoU" not in said
    assert "tf_efficientnet_lite0 | prototype | " in said


def after_faq(checkout: Path, said: str) -> None:
    assert "nothing is wrong" in said and "amformer: evaluation: " in said
    assert (checkout / "exp/demo/split0_lite0/episodes.png").is_file()


def after_sweeps(checkout: Path, said: str) -> None:
    assert "4 runs: 0 are finished" in said and "4 runs: 4 are finished, 0 to do" in said
    assert said.count("| no_game, meta | ours, 2 runs |") == 2 and "failed" not in said
    assert len(list((checkout / "exp/sweeps/demo").rglob("episodes.parquet"))) == 4


def after_config(checkout: Path, said: str) -> None:
    assert said.splitlines() == ["0.0002", "0.0001"]


AFTER: dict[str, Callable[[Path, str], None]] = {
    name.removeprefix("after_"): check
    for name, check in list(globals().items())
    if name.startswith("after_")
}


ELSEWHERE = {"predict.md"}  # tests/predict/test_predict.py runs it, on few pictures


QUICK = {"config.md", "custom_data.md"}  # the others take minutes each, and want `-m slow`
RUN = [
    pytest.param(page, id=page.name, marks=[] if page.name in QUICK else pytest.mark.slow)
    for page in DOCS
    if run_blocks(page) and page.name not in ELSEWHERE
]


@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run_as_written(
    page: Path, checkout: Path, request: pytest.FixtureRequest
) -> None:
    if page.stem == "custom_data":
        own_data(request.getfixturevalue("tree") / "MSCOCO2014", checkout)
    said = run_page(page, checkout)
    if page.stem in AFTER:
        AFTER[page.stem](checkout, said)


# --- tables and charts of the pages --------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "name"), [("results.md", "real_sweep.csv"), ("performance.md", "bench_cpu.csv")]
)
def test_table_of_a_page_has_the_stated_rows(page: str, name: str) -> None:
    rows = list(csv.DictReader((ROOT / "docs/data" / name).open(encoding="utf-8")))
    assert f"[{len(rows)} rows](data/{name})" in (ROOT / "docs" / page).read_text()
    assert all(None not in row and None not in row.values() for row in rows)  # equally long


def test_chart_of_a_page_is_drawn_from_its_table(tmp_path: Path) -> None:
    (tmp_path / "charts").mkdir()
    words = [sys.executable, "docs/data/real_sweep.py", str(tmp_path / "charts")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = tmp_path / "charts/real_sweep.png"
    assert drawn.read_bytes().startswith(b"\x89PNG") and drawn.stat().st_size > 20_000


# --- the notebook --------------------------------------------------------------------------------

NOTEBOOK = ROOT / "examples/quickstart.ipynb"


def test_notebook_holds_no_output() -> None:
    """Outputs would show photographs of other people, and numbers without their machine."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_notebook_runs_from_its_first_cell_to_its_last(checkout: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, resources={"metadata": {"path": str(checkout / "examples")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Images are resized to 129x129" in said and "mIoU" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
