"""Classes of a data set, and which of them are novel in a fold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.constants import IGNORE
from util.runtime.errors import UserError

# Written out although mmseg knows them: importing mmseg takes 5 s.
_PASCAL = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,"
    "person,pottedplant,sheep,sofa,train,tvmonitor"
)
_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)

FOLDS = 4
"""Folds of PASCAL-5i and COCO-20i."""

CLASSES: dict[str, tuple[str, ...]] = {
    "pascal": tuple(_PASCAL.split(",")),
    "coco": tuple(_COCO.split(",")),
}
"""Class names; class id = position + 1 (COCO: ascending category id). 0 is background."""

COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""What COCO calls a class of PASCAL; the other fourteen have one name in both."""


@dataclass(frozen=True)
class Fold:
    """The classes of a data set, and which of them are held out.

    Attributes:
        names: class names; class id = position + 1.
        novel: ids of the classes held out, ascending.
        trained_on: the fold of COCO that the model was trained on, where it is tested on PASCAL;
            None: it is this one.
    """

    names: tuple[str, ...]
    novel: tuple[int, ...]
    trained_on: "Fold | None" = None

    @property
    def learned(self) -> "Fold":
        """The fold whose base classes the base learner knows."""
        return self.trained_on or self

    @property
    def base(self) -> tuple[int, ...]:
        """Ids of the classes that are trained on, ascending: all that are not novel."""
        return tuple(c for c in range(1, len(self.names) + 1) if c not in self.novel)

    def classes(self, subset: str) -> tuple[int, ...]:
        """Ids of the classes that episodes ask for: base in 'train', novel in 'val'."""
        return self.base if subset == "train" else self.novel

    def base_table(self) -> np.ndarray:
        """Returns the look-up from a label to the base learner's label (uint8 [256]).

        Base classes are numbered 1.. in ascending order, 255 stays, everything else is 0. It
        replaces the `base_annotation/` folders of the published code: `base_table()[label]`. Where
        the model was trained on another data set, the numbers are those of its base classes.
        """
        table = np.zeros(256, np.uint8)
        if self.trained_on is None:
            table[list(self.base)] = np.arange(1, len(self.base) + 1)
        else:
            numbers, learned = self.trained_on.base_table(), self.trained_on.names
            for c in self.base:
                name = self.names[c - 1]
                table[c] = numbers[learned.index(COCO_NAMES.get(name, name)) + 1]
        table[IGNORE] = IGNORE
        return table


def published_fold(data_set: str, split: int, use_split_coco: bool = True) -> Fold:
    """Returns a fold of PASCAL-5i or COCO-20i.

    PASCAL-5i fold i holds out 5i+1..5i+5; COCO-20i fold i holds out i+1, i+5, i+9, ...

    Args:
        data_set: 'pascal' or 'coco'.
        split: the fold, 0 to 3.
        use_split_coco: False takes 20i+1..20i+20 on COCO instead; PASCAL ignores it.

    Raises:
        UserError: for an unknown data set or fold.
    """
    if data_set not in CLASSES:
        raise UserError(f"Data.data_set is {data_set!r}: use one of {', '.join(CLASSES)}")
    if split not in range(FOLDS):
        raise UserError(f"Data.split is {split!r}: the folds are 0, 1, 2, 3")
    names = CLASSES[data_set]
    count = len(names)
    if data_set == "coco" and use_split_coco:
        return Fold(names, tuple(range(split + 1, count + 1, FOLDS)))
    size = count // FOLDS
    return Fold(names, tuple(range(size * split + 1, size * (split + 1) + 1)))


def coco_to_pascal(split: int, use_split_coco: bool = True) -> Fold:
    """Returns the classes of PASCAL that a model trained on a fold of COCO-20i never saw.

    They are those whose COCO counterpart the fold holds out: six, four, six and four of the twenty
    in folds 0 to 3. The protocol is that of Boudiaf et al., "Few-Shot Segmentation Without
    Meta-Learning: A Good Transductive Inference Is All You Need?", CVPR 2021 (RePRI).
    """
    learned = published_fold("coco", split, use_split_coco)
    held_out = {learned.names[c - 1] for c in learned.novel}
    names = CLASSES["pascal"]
    novel = (c for c, n in enumerate(names, 1) if COCO_NAMES.get(n, n) in held_out)
    return Fold(names, tuple(novel), learned)


def fold_of(data: Any) -> Fold:
    """Returns the fold of a config's `Data` section.

    Args:
        data: `.data_set`, `.split`, `.use_split_coco` and `.trained_on`; for 'custom' `.classes`
            and `.novel`.

    Raises:
        UserError: for an unknown data set, fold or class.
    """
    if data.trained_on:
        return coco_to_pascal(data.split, data.use_split_coco)
    if data.data_set != "custom":
        return published_fold(data.data_set, data.split, data.use_split_coco)
    for name in data.novel:
        if name not in data.classes:
            known = ", ".join(data.classes)
            raise UserError(f"Data.novel names {name!r}, which is no class; there is {known}")
    return Fold(data.classes, tuple(sorted(data.classes.index(name) + 1 for name in data.novel)))


def read_classes(data_root: str | Path) -> tuple[str, ...]:
    """Reads the class names of one's own data set: a line each, in the order of their ids.

    Raises:
        UserError: when `classes.txt` is missing, empty, too long, or names a class twice.
    """
    path = Path(data_root) / "classes.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; write the class names there, a line each, or set Data.data_root"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); save it again") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not 1 < len(names) < IGNORE:
        raise UserError(f"{path}: names {len(names)} classes; a mask has room for 2 to 254")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: names {twice!r} twice; merge the two or rename one")
    return names


ANNOTATION_KINDS = ("mask", "bbox", "scribble", "point")
