"""Write the base learner's labels as files, for code that reads BAM's layout."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from util.config import DataSection
from util.data.image_io import read_label
from util.data.prepare import coco, voc
from util.data.prepare.jobs import Job, build, stamp_of
from util.data.source import SUBSETS, Source
from util.folds import published_fold
from util.runtime.errors import UserError

_ROOTS = {"pascal": voc.ROOT, "coco": coco.ROOT}


def base_annotation_folder(root: Path, data_set: str, subset: str, split: int) -> Path:
    """Return the folder of a fold's labels, given the folder `root` that holds the data set."""
    return root / "base_annotation" / data_set / subset / str(split)


def find_base_annotation(data: DataSection, subset: str) -> Path | None:
    """Return the folder that belongs to a config's fold, None if there is none."""
    if data.data_set not in _ROOTS or data.trained_on:
        return None
    up = [".."] * len(Path(_ROOTS[data.data_set]).parts)
    root = Path(os.path.abspath(Path(data.data_root, *up)))
    folder = base_annotation_folder(root, data.data_set, subset, data.split)
    return folder if folder.is_dir() else None


def prepare_base_annotation(data_set: str, root: Path, splits: Iterable[int], workers: int) -> None:
    """Write `root`/base_annotation/<data set>/<train|val>/<split>/<id>.png on `workers` processes.

    `data_set` is 'pascal' or 'coco', prepared in the folder `root`; `splits` are the folds. Raises
    `UserError` if the data set is missing or a mask cannot be read.
    """
    out, name = root / "base_annotation" / data_set, _ROOTS[data_set]
    if not (root / name).is_dir():
        raise UserError(f"--root {root}: contains no {name}; give the --out it was prepared in")
    tables = {split: published_fold(data_set, split).base_table() for split in splits}
    jobs = []
    for subset in SUBSETS:
        source = Source(root / name, data_set, subset)
        for image_id in source.image_ids():
            path = source.label_path(image_id)
            if not path.is_file():
                raise UserError(f"{path}: no such mask; prepare the data set again")
            for split, table in tables.items():
                target = base_annotation_folder(root, data_set, subset, split) / f"{image_id}.png"
                label = partial(_base_label_png, path, table)
                jobs.append(Job(target, label, path.stat().st_size, stamp=stamp_of(path)))
    build(out, [jobs], workers, f"{out}: {len(jobs)} labels", overwrite=None)


def _base_label_png(path: Path, table: np.ndarray) -> bytes:
    return cv2.imencode(".png", table[read_label(path)])[1].tobytes()
