"""Configs of a small demo data set, and what the data tests share."""

from types import SimpleNamespace

import pytest
import torch

from util.data.dataset import EpisodeBatch
from util.data.lists import FoldList
from util.folds import CLASSES


def config(**keys: object) -> SimpleNamespace:
    data = {"data_set": "pascal", "split": 0, "use_split_coco": True, "shot": 1, "size": 65}
    data |= {"classes": (), "novel": (), "min_pixels": 2048, "ann_type": "mask"}
    data |= {"flip": False, "cache": "", "trained_on": "", "broken": "stop", "class_balance": 0.0}
    data |= {"scale": (0.9, 1.1), "rotate": 10, "augment": True, "missing": "error"}
    return SimpleNamespace(Data=SimpleNamespace(**(data | keys)))


def changed(cfg: SimpleNamespace, **keys: object) -> SimpleNamespace:
    return config(**(vars(cfg.Data) | keys))


def refused(words: list[str], call: object, *arguments: object) -> None:
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def a_fold(**sizes: int) -> FoldList:
    """A fold whose class 1, 2, ... has so many images, each with the next class in it, too."""
    by_class = {int(c[1:]): [f"{c}_{i}" for i in range(n)] for c, n in sizes.items()}
    images = [i for ids in by_class.values() for i in ids]
    classes_of = {
        i: tuple(n for n in (c, c + 1) if n in by_class) for c, ids in by_class.items() for i in ids
    }
    return FoldList(images, by_class, classes_of, CLASSES["pascal"])


def same(a: EpisodeBatch, b: EpisodeBatch) -> bool:
    tensors = ("query", "query_mask", "query_base_mask", "support", "support_mask", "class_index")
    return a.plans == b.plans and all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors)
