"""Create the demo data set in the layout of PASCAL VOC."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from util.data.demo.art import KINDS, draw
from util.data.image_io import voc_palette
from util.data.source import SUBSETS
from util.runtime.errors import UserError
from util.runtime.files import atomic_write
from util.runtime.parallel import on_all_cores

_MARKER = "demo.json"


def make_demo(out: str | Path, images: int = 1000, seed: int = 0) -> bool:
    """Create the demo data set; return False if the folder already held the finished demo.

    The folder `out` is new, empty, or holds a demo of the same `images` and `seed`. `images` are
    training images; 3 validation images are added for every 10, and at least 20. The seed, >= 0, is
    part of the file names, so the lists of one demo do not fit another. Raises `UserError` if the
    folder holds anything else, or a number is out of range.
    """
    if images < 1 or seed < 0:
        raise UserError(f"--images {images} --seed {seed}: use at least 1 image and a seed >= 0")
    out, arguments = Path(out), {"images": images, "seed": seed}
    if _is_finished(out, arguments):
        return False
    root = out / "VOCdevkit2012" / "VOC2012"
    atomic_write(out / _MARKER, json.dumps({**arguments, "finished": False}).encode())
    counts = zip(SUBSETS, (images, max(20, images * 3 // 10)), strict=True)
    jobs = [(s, i, f"demo{seed}_{s}_{i:05d}") for s, count in counts for i in range(count)]
    for _ in on_all_cores(partial(_make_image, root, seed), jobs, "drawing the demo"):
        pass
    for subset in SUBSETS:
        ids = [f"{name}\n" for own, _, name in jobs if own == subset]
        atomic_write(root / f"ImageSets/Segmentation/{subset}.txt", "".join(ids).encode())
        if subset == "train":
            atomic_write(root.parent / "sbd_train_noval.txt", "".join(ids[1::2]).encode())
    atomic_write(out / _MARKER, json.dumps({**arguments, "finished": True}).encode())
    return True


def _is_finished(out: Path, arguments: dict[str, int]) -> bool:
    other = UserError(f"{out}: contains something other than a demo; choose a new or empty folder")
    try:
        found = json.loads((out / _MARKER).read_text(encoding="utf-8"))
        finished = bool(found.pop("finished"))
    except FileNotFoundError:
        if out.exists() and any(out.iterdir()):
            raise other from None
        return False
    except (ValueError, KeyError, AttributeError, NotADirectoryError):
        raise other from None
    if found != arguments:
        options = " ".join(f"--{key} {value}" for key, value in found.items())
        raise UserError(f"{out}: contains the demo of {options}; delete it or choose another --out")
    return finished


def _make_image(root: Path, seed: int, job: tuple[str, int, str]) -> None:
    subset, index, name = job
    picture = root / "JPEGImages" / f"{name}.jpg"
    mask = root / "SegmentationClassAug" / f"{name}.png"
    if picture.exists() and mask.exists():
        return
    rng = np.random.default_rng(np.random.SeedSequence((seed, SUBSETS.index(subset), index)))
    # The classes take turns in the foreground: even a small demo shows each one unoccluded.
    front, others = index % len(KINDS) + 1, rng.permutation(len(KINDS)) + 1
    behind = [int(c) for c in others if c != front][: rng.choice(3, p=[0.25, 0.45, 0.3])]
    shape = (200, 240) if rng.random() < 0.75 else (240, 200)
    image, label = draw([*behind, front], shape, rng)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    atomic_write(picture, jpeg, durable=False)
    indexed = Image.fromarray(label)
    indexed.putpalette(voc_palette())
    atomic_write(mask, lambda file: indexed.save(file, "PNG"), durable=False)
