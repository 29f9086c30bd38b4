"""Draws the masks of COCO 2014 from its annotations.

    python -m util.data.prepare_coco --coco data/MSCOCO2014

reads `annotations/instances_{train,val}2014.json` and writes `masks/{train,val}2014/*.png`. Masks
that are there stay, so a run that was cut off goes on where it was.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from util.data.source import SUBSETS


def rasterize(
    annotations: list[dict[str, Any]], category_index: dict[int, int], height: int, width: int
) -> np.ndarray:
    """Draws the mask of one image by the rule the published lists follow (method.md section 7).

    Annotations in file order, later over earlier; crowds left out; each polygon filled by OpenCV
    with its points cut to int32. pycocotools draws thinner masks and gives other lists.

    Args:
        annotations: the image's entries of an instances file, in file order.
        category_index: category id -> class id.
        height: of the image, in pixels.
        width: likewise.

    Returns:
        Class ids, 0 for background; uint8 [height, width].
    """
    mask = np.zeros((height, width), np.uint8)
    for annotation in annotations:
        if annotation["iscrowd"]:
            continue
        for polygon in annotation["segmentation"]:
            points = np.array(polygon, np.float64).reshape(-1, 1, 2).astype(np.int32)
            cv2.fillPoly(mask, [points], category_index[annotation["category_id"]])
    return mask


def draw_subset(root: Path, subset: str) -> int:
    """Writes the masks of a subset, one for every image that has an annotation.

    Args:
        root: the folder of COCO 2014.
        subset: 'train' or 'val'.

    Returns:
        How many were written; those that were there are not.

    Raises:
        ValueError: when the instances file is missing or unreadable.
    """
    path = root / "annotations" / f"instances_{subset}2014.json"
    try:
        instances = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(category["id"] for category in instances["categories"])
        by_image = defaultdict(list)
        for annotation in instances["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = [image for image in instances["images"] if image["id"] in by_image]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give COCO 2014's folder as --coco") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not COCO's instances file; fetch it again") from None
    category_index = {category: index for index, category in enumerate(categories, 1)}
    folder = root / "masks" / f"{subset}2014"
    folder.mkdir(parents=True, exist_ok=True)
    there = set(os.listdir(folder))

    def draw(image: dict[str, Any]) -> bool:
        name = Path(image["file_name"]).stem + ".png"
        if name in there:
            return False
        mask = rasterize(by_image[image["id"]], category_index, image["height"], image["width"])
        part = folder / f".{name}.{os.getpid()}"
        part.write_bytes(cv2.imencode(".png", mask)[1].tobytes())
        os.replace(part, folder / name)
        return True

    # Threads: OpenCV draws and compresses outside Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(draw, images))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m util.data.prepare_coco", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--coco", type=Path, required=True, metavar="DIR", help="COCO 2014")
    root = parser.parse_args(arguments).coco
    try:
        for subset in SUBSETS:
            print(f"{root / 'masks' / f'{subset}2014'}: {draw_subset(root, subset)} masks written")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
