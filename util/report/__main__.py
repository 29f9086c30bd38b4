"""Write pages, tables and comparisons of runs; see docs/report.md.

python -m util.report exp/demo/split0_lite0               # a page about one run
python -m util.report exp/a exp/b --out both.html         # a page that compares runs
python -m util.report --table exp                         # a table of all results below exp
python -m util.report --compare exp/base exp/other        # which difference is real
"""

import argparse
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.files import Outputs, unwritable
from util.runtime.log import log


def report() -> None:
    """Run the command."""
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    about = "the folder of a run"
    what.add_argument("runs", nargs="*", default=[], type=Path, metavar="RUN", help=about)
    about = "gather every result.json in DIR and below"
    what.add_argument("--table", type=Path, metavar="DIR", help=about)
    about = "compare settings on the same episodes: the folder of a run, or one above several runs"
    what.add_argument("--compare", nargs="+", type=Path, metavar="SETTING", help=about)
    about = """file of the page (default: report.html in the folder of the run, or above several
        runs), folder of table.md, table.tex and table.csv (default: DIR), or folder of compare.md,
        compare.tex, compare.csv and compare.png (default: that above the settings)"""
    parser.add_argument("--out", type=Path, metavar="PATH", help=about)
    parser.add_overwrite()
    args = parser.parse_args()
    if args.compare:
        _compare(args)
    else:
        _table(args) if args.table else _page(args)


def _compare(args: argparse.Namespace) -> None:
    if len(args.compare) < 2:
        raise UserError("--compare: names one setting; name two or more, the reference first")
    from util.report.compare import as_csv, as_latex, as_markdown, compare_settings, read_settings
    from util.report.runs import common_folder

    settings = read_settings(args.compare)
    from util.report.charts import interval_chart  # matplotlib takes a second

    episodes = len(settings[0].runs[0].table)
    log.info("%d settings, %s episodes each", len(settings), f"{episodes:,}")  # COCO: minutes
    comparison = compare_settings(settings)
    folder = args.out or common_folder(args.compare)
    texts = {"compare.md": as_markdown, "compare.tex": as_latex, "compare.csv": as_csv}
    files: dict[str, str | bytes] = {name: text(comparison) for name, text in texts.items()}
    files["compare.png"] = interval_chart(*comparison.intervals())
    _write(folder, files, [], args.overwrite)
    log.info(as_markdown(comparison))
    log.info("written: %s/compare.md, compare.tex, compare.csv, compare.png", folder)


def _table(args: argparse.Namespace) -> None:
    from util.report.table import as_csv, as_latex, as_markdown, gather

    rows = gather(args.table)
    folder = args.out or args.table
    texts = {"table.md": as_markdown, "table.tex": as_latex, "table.csv": as_csv}
    _write(folder, {name: text(rows) for name, text in texts.items()}, [], args.overwrite)
    log.info(as_markdown(rows))
    log.info("written: %s/table.md, table.tex, table.csv", folder)


def _page(args: argparse.Namespace) -> None:
    from util.report.runs import WRONG_CONTENT, held_in, read_runs

    runs = read_runs(args.runs)
    from util.report.page import render_page  # torch and matplotlib: not for a refused folder

    try:
        text = render_page(runs, datetime.now())
    except UserError:
        raise
    except WRONG_CONTENT:
        for run in runs:  # which of them is it
            with held_in(run.folder):
                render_page([run], datetime.now())
        raise
    folders = [run.resolve() for run in args.runs]
    above = Path(os.path.commonpath(folders)) if len(runs) > 1 else args.runs[0]
    path = args.out or above / "report.html"
    read = [file for run in args.runs for file in run.iterdir() if file.suffix != ".html"]
    _write(path.parent, {path.name: text}, read, args.overwrite)
    for run in runs:
        if run.result is None and not run.base_learner:
            log.info("%s: no result.json, so the page has no test scores; run test.sh", run.folder)
    log.info("written: %s, %.1f MB", path, path.stat().st_size / 1e6)


def _write(
    folder: Path, contents: Mapping[str, str | bytes], read: list[Path], overwrite: bool
) -> None:
    outputs = Outputs(folder, "report", overwrite=overwrite)
    outputs.claim(contents, read)
    for name, content in contents.items():
        content = content.encode(errors="replace") if isinstance(content, str) else content
        try:
            outputs.write(name, content)
        except OSError as error:
            raise unwritable(f"--out: {folder / name}", error, "name another path") from None


if __name__ == "__main__":
    main(report)
