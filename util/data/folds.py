"""Classes of PASCAL-5i and COCO-20i, and which of them are novel in each fold."""

import numpy as np

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

IGNORE = 255
"""The label of pixels that count for nothing."""

FOLDS = 4
"""Folds of each data set."""

CLASSES: dict[str, tuple[str, ...]] = {
    "pascal": tuple(_PASCAL.split(",")),
    "coco": tuple(_COCO.split(",")),
}
"""Class names; class id = position + 1 (COCO: ascending category id). 0 is background."""


def class_name(data_set: str, class_id: int) -> str:
    """Returns the name of a class id (from 1)."""
    return CLASSES[data_set][class_id - 1]


def novel_classes(data_set: str, split: int, use_split_coco: bool = True) -> tuple[int, ...]:
    """Returns the class ids held out in a fold, ascending.

    PASCAL-5i fold i: 5i+1..5i+5. COCO-20i fold i: i+1, i+5, i+9, ... as published.

    Args:
        data_set: 'pascal' or 'coco'.
        split: the fold, 0 to 3.
        use_split_coco: False takes 20i+1..20i+20 on COCO instead; PASCAL ignores it.

    Raises:
        ValueError: for an unknown data set or fold.
    """
    if data_set not in CLASSES:
        raise ValueError(f"Data.data_set is {data_set!r}: use one of {', '.join(CLASSES)}")
    if split not in range(FOLDS):
        raise ValueError(f"Data.split is {split!r}: the folds are 0, 1, 2, 3")
    count = len(CLASSES[data_set])
    if data_set == "coco" and use_split_coco:
        return tuple(range(split + 1, count + 1, FOLDS))
    size = count // FOLDS
    return tuple(range(size * split + 1, size * (split + 1) + 1))


def base_classes(data_set: str, split: int, use_split_coco: bool = True) -> tuple[int, ...]:
    """Returns the class ids a fold trains on, ascending: all that are not novel."""
    novel = novel_classes(data_set, split, use_split_coco)
    return tuple(c for c in range(1, len(CLASSES[data_set]) + 1) if c not in novel)


def base_table(data_set: str, split: int, use_split_coco: bool = True) -> np.ndarray:
    """Returns the look-up from a label to the base learner's label (uint8 [256]).

    Base classes are numbered 1.. in ascending order, 255 stays, everything else is 0. It replaces
    the `base_annotation/` folders of the published code: `base_table(...)[label]`.
    """
    table = np.zeros(256, np.uint8)
    base = base_classes(data_set, split, use_split_coco)
    table[list(base)] = np.arange(1, len(base) + 1)
    table[IGNORE] = IGNORE
    return table
