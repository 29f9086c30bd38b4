"""Folds: the classes of a data set, and which of them are novel."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from model.constants import IGNORE
from util.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np

AnnotationKind = Literal["mask", "bbox", "scribble", "point"]
ANNOTATION_KINDS: tuple[str, ...] = get_args(AnnotationKind)
"""How supports may be labeled (`Data.ann_type`)."""

FOLDS = 4
"""Number of folds of PASCAL-5i and of COCO-20i."""

# Written out although mmseg has them: importing mmseg takes 5 s.
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

CLASSES: dict[str, tuple[str, ...]] = {
    "pascal": tuple(_PASCAL.split(",")),
    "coco": tuple(_COCO.split(",")),
}
"""Data set -> class names in the order of their ids, which start at 1; 0 is background.

COCO's ids skip some numbers; ours do not, and keep the order.
"""

COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""PASCAL's name of a class -> COCO's; the other fourteen names are the same in both."""


@dataclass(frozen=True)
class Fold:
    """The classes of a data set, and which of them are novel.

    Attributes:
        names: class names; class id = position + 1.
        novel: ids of the classes that are never trained on, ascending.
        trained_on: the fold of COCO that the model was trained on, if it is tested on PASCAL; None:
            the model is trained on this fold.
    """

    names: tuple[str, ...]
    novel: tuple[int, ...]
    trained_on: "Fold | None" = None

    @property
    def learned(self) -> "Fold":
        """The fold that the model is trained on; the base learner knows its base classes."""
        return self.trained_on or self

    @property
    def base(self) -> tuple[int, ...]:
        """Ids of the classes that are not novel, ascending."""
        return tuple(c for c in range(1, len(self.names) + 1) if c not in self.novel)

    def classes(self, subset: str) -> tuple[int, ...]:
        """Return the ids of the classes that episodes segment: base in 'train', novel in 'val'."""
        return self.base if subset == "train" else self.novel

    def base_table(self) -> "np.ndarray":
        """Return the table that turns labels into labels of the base learner (uint8 [256]).

        `base_table()[label]` numbers base classes 1, 2, ... in ascending order, keeps 255, and is 0
        elsewhere. It replaces the `base_annotation/` folders of the published code. If the model
        was trained on another data set, the numbers are those of that set's base classes.
        """
        import numpy as np  # not for `--help`: it takes a quarter of a second

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
    """Return fold 0 to 3 of PASCAL-5i ('pascal') or COCO-20i ('coco'), as published.

    The novel classes of fold i are 5i+1 to 5i+5 in PASCAL-5i and i+1, i+5, i+9, ... in COCO-20i;
    without `use_split_coco` 20i+1 to 20i+20. Raises `UserError` if the data set or the fold is
    unknown.
    """
    if data_set not in CLASSES:
        raise UserError(f"Data.data_set is {data_set!r}: use one of {', '.join(CLASSES)}")
    if split not in range(FOLDS):
        raise UserError(f"Data.split is {split!r}: use 0, 1, 2 or 3")
    names = CLASSES[data_set]
    count = len(names)
    if data_set == "coco" and use_split_coco:
        return Fold(names, tuple(range(split + 1, count + 1, FOLDS)))
    size = count // FOLDS
    return Fold(names, tuple(range(size * split + 1, size * (split + 1) + 1)))


def coco_to_pascal(split: int, use_split_coco: bool = True) -> Fold:
    """Return the fold of PASCAL for a model that was trained on a fold of COCO-20i.

    Its novel classes are those that are novel in the fold of COCO: six, four, six and four of the
    twenty in folds 0 to 3. The protocol is from Boudiaf et al., "Few-Shot Segmentation Without
    Meta-Learning: A Good Transductive Inference Is All You Need?", CVPR 2021 (RePRI).
    """
    learned = published_fold("coco", split, use_split_coco)
    novel_in_coco = {learned.names[c - 1] for c in learned.novel}
    names = CLASSES["pascal"]
    novel = (c for c, n in enumerate(names, 1) if COCO_NAMES.get(n, n) in novel_in_coco)
    return Fold(names, tuple(novel), learned)


class _FoldKeys(Protocol):
    """The keys of a config's `Data` section that name a fold."""

    @property
    def data_set(self) -> str: ...
    @property
    def data_root(self) -> str: ...
    @property
    def split(self) -> int: ...
    @property
    def use_split_coco(self) -> bool: ...
    @property
    def trained_on(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def novel(self) -> tuple[str, ...]: ...


def fold_of(data: _FoldKeys) -> Fold:
    """Return the fold of a config's `Data` section.

    For a custom data set without `classes`, the names are read from its `classes.txt`. Raises
    `UserError` if the data set, the fold or a class is unknown, no class is left to train on, or
    `classes.txt` cannot be used.
    """
    if data.trained_on:
        return coco_to_pascal(data.split, data.use_split_coco)
    if data.data_set != "custom":
        return published_fold(data.data_set, data.split, data.use_split_coco)
    names = data.classes or read_classes(data.data_root)
    for name in data.novel:
        if name not in names:
            raise UserError(f"Data.novel: no class is named {name!r}; there is {', '.join(names)}")
    if not set(names) - set(data.novel):
        raise UserError("Data.novel leaves no class to train on; remove a name")
    return Fold(names, tuple(sorted(names.index(name) + 1 for name in data.novel)))


def read_classes(data_root: str | Path) -> tuple[str, ...]:
    """Read the class names of a custom data set: one per line, in the order of their ids.

    Raises `UserError` if `classes.txt` is missing, unreadable, empty, too long, or names a class
    twice.
    """
    path = Path(data_root) / "classes.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        remedy = "write the class names there, one a line, or set Data.data_root"
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); save it again") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not 1 < len(names) < IGNORE:
        raise UserError(f"{path}: names {len(names)} classes; write 2 to 254")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: names {twice!r} twice; merge the two or rename one")
    return names
