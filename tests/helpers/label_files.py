"""Small label files in COCO's format with their photographs, and the command that prepares them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from helpers.downloads import run
from util.data.image_io import read_label

HEIGHT, WIDTH = 20, 30
BOX = [2, 3, 11, 3, 11, 12, 2, 12]  # the corners of 10 x 10 pixels
OTHER = [15, 5, 24, 5, 24, 14, 15, 14]
NAMES = ("cup", "plate", "spoon")


def photo(path: Path, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)


def four_photos(folder: Path) -> Path:
    """Draw photos/p1.jpg to p4.jpg in a folder, which is returned."""
    for number in range(1, 5):
        photo(folder / f"photos/p{number}.jpg")
    return folder


def labels(images: int = 4) -> dict[str, Any]:
    """Image i (from 1) has a box of class 1 + (i - 1) % 3 and, if i is even, one more."""
    each = range(1, images + 1)
    shapes = [(i, 1 + (i - 1) % 3, BOX) for i in each] + [(i, 1, OTHER) for i in each if i % 2 == 0]
    return {
        "images": [
            {"id": i, "file_name": f"p{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in each
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "segmentation": [points], "iscrowd": 0}
            for n, (i, c, points) in enumerate(shapes, 1)
        ],
        "categories": [{"id": c, "name": name} for c, name in enumerate(NAMES, 1)],
    }


def prepare(here: Path, content: Any, out: str = "out", *more: str) -> SimpleNamespace:
    """Prepare from this content of the label file: bytes, or what JSON makes of it."""
    path = here / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    words = ["--images", here / "photos", "--labels", path, "--out", here / out]
    return run("custom", *words, *more)


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_label(path) for path in sorted((folder / "masks").iterdir())}


def prepare_trial(folder: Path, labels: str, out: str = "out", *more: str) -> SimpleNamespace:
    """Prepare the photographs of a trial from one of its label files."""
    words = ["--images", folder / "photos", "--labels", folder / labels, "--out", folder / out]
    return run("custom", *words, *more)
