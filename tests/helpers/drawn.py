"""Small data sets of plain rectangles, and the demo as one's own data set."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from util.data.demo.make import make_demo

HEIGHT, WIDTH = 60, 80


def write_pair(images: Path, masks: Path, name: str, label: np.ndarray) -> None:
    """Write an image and its mask."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(images / f"{name}.jpg"), np.repeat(label[..., None], 3, 2) * 3)
    Image.fromarray(label).save(masks / f"{name}.png")


def random_label(classes: int, rng: np.random.Generator) -> np.ndarray:
    """Draw three rectangles of random classes, and a frame of 255 around one of them."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(3):
        top, left = rng.integers(HEIGHT - 22), rng.integers(WIDTH - 22)
        height, width = rng.integers(4, 22, 2)
        label[top : top + height, left : left + width] = rng.integers(1, classes + 1)
    label[top : top + height, left] = 255
    return label


def write_rectangles(root: Path, data_set: str, classes: int, seed: int = 0) -> None:
    """Write a data set 'custom' or 'coco' with 60 images for training and 40 for validation.

    The images of a custom data set are in `train.txt` and `val.txt`.
    """
    rng = np.random.default_rng(seed)
    for subset, count in (("train", 60), ("val", 40)):
        names = [f"{subset}{i:03d}" for i in range(count)]
        of_coco = data_set == "coco"
        images = root / (f"{subset}2014" if of_coco else "images")
        masks = root / (f"masks/{subset}2014" if of_coco else "masks")
        for name in names:
            write_pair(images, masks, name, random_label(classes, rng))
        if not of_coco:
            (root / f"{subset}.txt").write_text("\n".join(names) + "\n")
    if data_set == "custom":
        (root / "classes.txt").write_text("".join(f"kind {c}\n" for c in range(1, classes + 1)))


def demo_as_own_data(root: Path, names: Sequence[str], images: int, seed: int) -> Path:
    """Draw the demo, and lay its training images out as one's own data set with these names."""
    make_demo(root / "drawn", images=images, seed=seed)
    voc = root / "drawn/VOCdevkit2012/VOC2012"
    listed = (voc / "ImageSets/Segmentation/train.txt").read_text().split()
    own = root / "own"
    for name in listed:
        for source, target in (("JPEGImages", "images"), ("SegmentationClassAug", "masks")):
            (own / target).mkdir(parents=True, exist_ok=True)
            suffix = "jpg" if target == "images" else "png"
            (own / target / f"{name}.{suffix}").symlink_to(voc / source / f"{name}.{suffix}")
    (own / "classes.txt").write_text("\n".join(names) + "\n")
    return own
