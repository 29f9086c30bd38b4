"""Makes a small data set to try everything on, in PASCAL VOC's layout.

    python -m util.data.make_demo --out data/demo

draws 1,000 training and 300 validation pictures of twenty kinds of object (shape and texture tell
them apart, colour hardly), with masks, some 30 MB in all. They stand for VOC's twenty classes, so
its folds and configs work with `Data.data_root=data/demo/VOCdevkit2012/VOC2012`. The same seed
gives the same bytes; a run that was cut off goes on where it was, a finished one is left alone.
"""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from util import logger
from util.data.demo_art import KINDS, draw
from util.data.parallel import on_all_cores
from util.data.source import SUBSETS
from util.files import atomic_write

_MARKER = "demo.json"


def voc_palette() -> list[int]:
    """Returns the colours of VOC's palette masks: 256 times R, G, B."""
    index = np.arange(256)
    bits = [[(index >> (3 * b + c) & 1) << (7 - b) for b in range(3)] for c in range(3)]
    return np.sum(bits, axis=1).T.ravel().tolist()


def make_demo(out: str | Path, images: int = 1000, seed: int = 0) -> bool:
    """Makes the demo data set.

    Args:
        out: its folder: new, empty, or that of a demo with the same arguments.
        images: training pictures; there are 3 validation pictures to every 10, and at least 20.
        seed: >= 0. It is part of the names, so lists of another seed's demo are not mistaken.

    Returns:
        False when the folder held the finished demo.

    Raises:
        ValueError: when the folder holds anything else, or a number is out of range.
    """
    if images < 1 or seed < 0:
        raise ValueError(f"--images {images} --seed {seed}: use at least 1 image and a seed >= 0")
    out, arguments = Path(out), {"images": images, "seed": seed}
    if _is_finished(out, arguments):
        return False
    root = out / "VOCdevkit2012" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    atomic_write(out / _MARKER, json.dumps({**arguments, "finished": False}).encode())
    counts = dict(zip(SUBSETS, (images, max(20, images * 3 // 10)), strict=True))
    jobs = [(subset, i) for subset in SUBSETS for i in range(counts[subset])]
    for _ in on_all_cores(partial(_make_one, root, seed), jobs, "drawing the demo"):
        pass
    for subset in SUBSETS:
        ids = [_name(seed, *job) for job in jobs if job[0] == subset]
        _write_ids(root / "ImageSets" / "Segmentation" / f"{subset}.txt", ids)
        if subset == "train":
            _write_ids(root.parent / "sbd_train_noval.txt", ids[1::2])
    atomic_write(out / _MARKER, json.dumps({**arguments, "finished": True}).encode())
    return True


def _is_finished(out: Path, arguments: dict[str, int]) -> bool:
    try:
        found = json.loads((out / _MARKER).read_text(encoding="utf-8"))
        finished = bool(found.pop("finished"))
    except FileNotFoundError:
        if out.is_dir() and not any(out.iterdir()):
            return False
        if not out.exists():
            return False
        raise ValueError(
            f"{out}: is there and is no demo; give --out a new or empty folder"
        ) from None
    except (ValueError, KeyError, AttributeError, NotADirectoryError):
        raise ValueError(f"{out}: is no demo; give --out a new or empty folder") from None
    if found != arguments:
        was = " ".join(f"--{key} {value}" for key, value in found.items())
        raise ValueError(f"{out}: holds the demo of {was}; delete it, or give another --out")
    return finished


def _name(seed: int, subset: str, index: int) -> str:
    return f"demo{seed}_{subset}_{index:05d}"


def _make_one(root: Path, seed: int, job: tuple[str, int]) -> None:
    subset, index = job
    picture = root / "JPEGImages" / f"{_name(seed, *job)}.jpg"
    mask = root / "SegmentationClassAug" / f"{_name(seed, *job)}.png"
    if picture.exists() and mask.exists():
        return
    rng = np.random.default_rng(np.random.SeedSequence((seed, SUBSETS.index(subset), index)))
    # In front stands each class in turn: a small demo, too, has every class at its full size.
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


def _write_ids(path: Path, ids: list[str]) -> None:
    atomic_write(path, "".join(f"{i}\n" for i in ids).encode())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        ValueError: for a user's mistake, in one line.
    """
    parser = logger.Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to fill")
    parser.add_argument(
        "--images", type=int, default=1000, metavar="N", help="training pictures (1000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the drawing (0)")
    args = parser.parse_args(arguments)
    try:
        made = make_demo(args.out, args.images, args.seed)
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; make room, or give another --out"
        ) from None
    print(f"{args.out}: {'made' if made else 'complete, left as it is'}")


if __name__ == "__main__":
    logger.main(main)
