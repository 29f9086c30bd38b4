"""Pages and tables of runs; docs/report.md.

python -m util.report exp/demo/split0_lite0               # one page of one run
python -m util.report exp/a exp/b --out both.html         # one page of several
python -m util.report --table exp                         # the paper's table of all below exp
"""

import os
from datetime import datetime
from pathlib import Path

from util.report.page import page
from util.report.runs import read_runs
from util.report.table import as_csv, as_latex, as_markdown, gather
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.files import atomic_write


def _main() -> None:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "runs", nargs="*", default=[], type=Path, metavar="RUN", help="a run's folder"
    )
    what.add_argument(
        "--table", type=Path, metavar="DIR", help="gather every result.json below DIR"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH",
        help="the page's file (report.html in the run's folder, of several runs in the one above), "
        "or the folder of table.md, table.tex and table.csv (DIR)",
    )  # fmt: skip
    args = parser.parse_args()
    if args.table:
        rows = gather(args.table)
        folder = args.out or args.table
        for suffix, form in (("md", as_markdown), ("tex", as_latex), ("csv", as_csv)):
            _write(folder / f"table.{suffix}", form(rows))
        print(as_markdown(rows))
        print(f"written: {folder}/table.md, table.tex, table.csv")
        return
    runs = read_runs(args.runs)
    folders = [run.resolve() for run in args.runs]
    above = Path(os.path.commonpath(folders)) if len(runs) > 1 else args.runs[0]
    path = args.out or above / "report.html"
    text = page(runs, datetime.now())
    _write(path, text)
    for run in runs:
        if run.result is None:
            print(f"{run.folder}: no result.json, so the page has no scores of a test; test.sh ...")
    print(f"written: {path}, {len(text.encode()) / 1e6:.1f} MB")


def _write(path: Path, text: str) -> None:
    try:
        atomic_write(path, text.encode())
    except OSError as error:
        mistake = f"--out: {path}: cannot be written ({error.strerror}); name another"
        raise UserError(mistake) from None


if __name__ == "__main__":
    main(_main)
