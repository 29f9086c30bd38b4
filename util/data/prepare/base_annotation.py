"""The base learner's labels as files, for code that reads BAM's layout."""

from functools import partial
from pathlib import Path

import cv2

from util.data.image_io import read_label
from util.data.prepare import coco as prepare_coco
from util.data.prepare import voc as prepare_voc
from util.data.prepare.jobs import Job, build
from util.data.source import SUBSETS, Source
from util.folds import published_fold
from util.runtime.errors import UserError

_ROOTS = {"pascal": prepare_voc.ROOT, "coco": prepare_coco.ROOT}


def prepare_base(data_set: str, root: Path, splits: list[int], workers: int) -> None:
    """Writes `root`/base_annotation/<data set>/<train|val>/<split>/<id>.png.

    Args:
        data_set: 'pascal' or 'coco'.
        root: the folder of data sets, which the data set was prepared in.
        splits: the folds.
        workers: processes.

    Raises:
        UserError: when the data set is not there or a mask cannot be read.
    """
    out, jobs = root / "base_annotation" / data_set, []
    data_root = root / _ROOTS[data_set]
    if not data_root.is_dir():
        raise UserError(
            f"--root {root}: holds no {_ROOTS[data_set]}; give the --out it was made in"
        )
    for subset in SUBSETS:
        source = Source(data_root, data_set, subset)
        sizes = {i: _size_of(source, i) for i in source.image_ids()}
        for split in splits:
            folder = out / subset / str(split)
            for image_id, size in sizes.items():
                make = partial(_base_label, source, image_id, split)
                jobs.append(Job(folder / f"{image_id}.png", make, size))
    made = build(out, [jobs], workers)
    print(f"{out}: {len(jobs)} labels; {f'{made} files made' if made else 'nothing to do'}")


def _size_of(source: Source, image_id: str) -> int:
    path = source.label_path(image_id)
    if not path.is_file():
        raise UserError(f"{path}: no such mask; prepare the data set again")
    return path.stat().st_size


def _base_label(source: Source, image_id: str, split: int) -> bytes:
    label = read_label(source.label_path(image_id))
    table = published_fold(source.data_set, split).base_table()
    return cv2.imencode(".png", table[label])[1].tobytes()
