"""Configs of a small demo data set, a plain picture, a clip, and helpers of the data tests."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from util.config import Config, config_from, to_dict
from util.data.dataset import EpisodeBatch
from util.data.lists import FoldList
from util.folds import CLASSES
from util.runtime.errors import UserError


def data_config(**keys: object) -> Config:
    """The default config at 65 px, with these keys of its `Data` section."""
    return config_from({"Data": {"size": 65, **keys}}, "a test")


def changed(cfg: Config, **keys: object) -> Config:
    """A config with other keys of its `Data` section."""
    return data_config(**to_dict(cfg)["Data"] | keys)


def refused(words: list[str], call: Callable[..., object], *arguments: object) -> None:
    """Assert that a call raises a UserError of one line that contains these words."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def a_fold(**sizes: int) -> FoldList:
    """A fold list; `c1=5, c2=3` gives five images of class 1 and three of class 2.

    Each image also contains the next class, which is too small to be a support's.
    """
    by_class = {int(c[1:]): [f"{c}_{i}" for i in range(n)] for c, n in sizes.items()}
    images = [i for ids in by_class.values() for i in ids]
    classes_of = {
        i: tuple(n for n in (c, c + 1) if n in by_class) for c, ids in by_class.items() for i in ids
    }
    return FoldList(images, by_class, classes_of, CLASSES["pascal"])


def same(a: EpisodeBatch, b: EpisodeBatch) -> bool:
    """Whether two batches are equal to the bit."""
    tensors = ("query", "query_mask", "query_base_mask", "support", "support_mask", "class_index")
    return a.plans == b.plans and all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors)


PICTURE = np.full((50, 80, 3), 90, np.uint8)
OBJECT = np.zeros((50, 80), np.uint8)
OBJECT[10:40, 20:60] = 1


def write_clip(path: Path, pictures: Sequence[np.ndarray], fps: float = 10.0) -> Path:
    """Write a clip of pictures of one size (RGB, uint8 [H,W,3] each)."""
    size = pictures[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
    return path
