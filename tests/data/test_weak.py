"""Weak labels of supports: boxes, scribbles and points."""

import cv2
import numpy as np
import pytest
import torch
from helpers.pictures import changed

from util.config import Config
from util.data.dataset import collate, open_episodes
from util.data.image_io import read_label
from util.data.weak import annotate
from util.folds import ANNOTATION_KINDS


def two_objects() -> np.ndarray:
    """A disc, a ring and a single pixel of class 3, another class, and label 255."""
    label = np.zeros((120, 160), np.uint8)
    cv2.circle(label, (40, 40), 25, 3, -1)
    cv2.circle(label, (110, 70), 30, 3, 9)
    label[100:115, 10:60], label[0:5] = 7, 255
    label[90, 3] = 3
    return label


def test_kind_mask_returns_the_label_itself() -> None:
    label = two_objects()
    assert annotate(label, 3, "mask", "a") is label


def test_bbox_is_the_published_box_of_every_object() -> None:
    label = two_objects()
    label[30:33, 50:60] = 255  # partly inside the box of the disc
    label[119, 159] = 3  # its box would leave the image
    drawn = annotate(label, 3, "bbox", "a")
    wanted = np.zeros_like(label, bool)
    count, parts = cv2.connectedComponents((label == 3).astype(np.uint8), connectivity=8)
    assert count - 1 == 4
    for number in range(1, count):
        ys, xs = np.nonzero(parts == number)
        wanted[ys.min() : ys.max() + 2, xs.min() : xs.max() + 2] = True  # one pixel more
    assert np.array_equal(drawn == 3, wanted & (label != 255))
    assert (wanted & (label == 255)).any() and (drawn[90:92, 3:5] == 3).all()
    other = ~wanted | (label == 255)
    assert np.array_equal(drawn[other], label[other])


@pytest.mark.parametrize("kind", ["scribble", "point"])
def test_scribbles_and_points_stay_inside_and_mark_every_object(kind: str) -> None:
    label = two_objects()
    for seed in range(30):
        drawn = annotate(label, 3, kind, f"image {seed}") == 3
        assert not (drawn & (label != 3)).any()
        assert drawn[:70, :70].any() and drawn[:, 75:].any()
        assert drawn.sum() < 0.5 * (label == 3).sum()
    count, _ = cv2.connectedComponents(
        (annotate(label, 3, "point", "a") == 3).astype(np.uint8), connectivity=8
    )
    assert count - 1 == 2  # one disc in each


def test_annotation_depends_on_mask_class_and_image_id_only() -> None:
    label = two_objects()
    first = annotate(label, 3, "scribble", "a")
    assert np.array_equal(first, annotate(label.copy(), 3, "scribble", "a"))
    others = [annotate(label, 3, "scribble", name) for name in "bcd"]
    assert not any(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("kind", ANNOTATION_KINDS)
def test_tiny_objects_and_objects_as_large_as_the_image_are_annotated(kind: str) -> None:
    label = np.zeros((50, 50), np.uint8)
    label[7, 7] = 4
    assert annotate(label, 4, kind, "a")[7, 7] == 4
    assert (annotate(np.full((50, 50), 4, np.uint8), 4, kind, "a") == 4).any()


@pytest.mark.parametrize("subset", ["train", "val"])
def test_weak_labels_change_supports_only(pictures: Config, subset: str) -> None:
    strong, _ = open_episodes(changed(pictures, augment=False), subset, 3)
    for kind in ("bbox", "scribble", "point"):
        weak, _ = open_episodes(changed(pictures, augment=False, ann_type=kind), subset, 3)
        full, part = collate([strong[i] for i in range(6)]), collate([weak[i] for i in range(6)])
        assert full.plans == part.plans and torch.equal(full.query_mask, part.query_mask)
        queries = [[e.load_pair(p.query, None)[2] for p in full.plans] for e in (strong, weak)]
        assert all(map(torch.equal, *queries))
        sums = [(b.support_mask == 1).sum((1, 2, 3)) for b in (full, part)]
        assert (sums[0] <= sums[1]).all() if kind == "bbox" else (sums[0] > sums[1]).all()
        assert (sums[1] > 0).all()
    name, class_id = strong.sampler.plan(0).supports[0], strong.sampler.plan(0).class_id
    drawn = annotate(read_label(strong.source.label_path(name)), class_id, "point", name)
    _, label, original = weak.load_pair(name, None, class_id)
    assert (label == class_id).sum() > 0 and (drawn == class_id).sum() > 0
    assert torch.equal(original, torch.from_numpy(read_label(strong.source.label_path(name))))
