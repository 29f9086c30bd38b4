"""Results as a COCO instances file, which labeling tools and `util.data.prepare custom` read.

Masks become run-length codes, exact to the pixel, or polygons, for tools that read no codes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np


def segment_mask(mask: np.ndarray, polygons: bool) -> list[dict[str, Any]]:
    """Describe a mask (bool [H,W]) in COCO's terms: `segmentation`, `area` and `bbox` of each part.

    As a code, the mask is one part; if it is empty, there is none. As polygons, each outline is a
    part: holes are filled, and outlines of less than three points are left out.
    """
    pixels = np.asfortranarray(mask, np.uint8)
    if polygons:
        outlines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        return [_polygon(points[:, 0]) for points in outlines if len(points) > 2]
    from pycocotools import mask as codes  # not needed unless asked for

    code = codes.encode(pixels)
    area = int(codes.area(code))
    described = {
        "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()},
        "area": area,
        "bbox": [int(length) for length in codes.toBbox(code)],
    }
    return [described] if area else []


def _polygon(points: np.ndarray) -> dict[str, Any]:
    """Describe an outline (int32 [N,2]) through the centers of its pixels."""
    x, y, width, height = cv2.boundingRect(points)
    filled = cv2.fillPoly(np.zeros((height, width), np.uint8), [points - (x, y)], 1)
    return {
        "segmentation": [points.ravel().tolist()],
        "area": int(filled.sum()),
        "bbox": [x, y, width, height],
    }


def coco_file(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the instances file of the lines of `predictions.jsonl` that have a `picture`.

    The file names start from the folder that all these pictures are in, `info.images`. Categories
    are the classes in the order of their first line. The larger of an image's annotations come
    first, since readers that draw them in turn let later ones cover earlier ones.
    """
    lines = [line for line in lines if "picture" in line]
    folder = os.path.commonpath([os.path.dirname(line["picture"]) for line in lines] or [""])
    names = dict.fromkeys(name for line in lines for name in line["classes"])
    ids = {name: number for number, name in enumerate(names, 1)}
    images, annotations = [], []
    for number, line in enumerate(lines, 1):
        file_name = line["picture"].removeprefix(folder).lstrip("/")
        size = {"width": line["width"], "height": line["height"]}
        images.append({"id": number, "file_name": file_name, **size})
        own = [
            {"image_id": number, "category_id": ids[name], "iscrowd": 0, "score": found["score"]}
            | segment
            for name, found in line["classes"].items()
            for segment in found["segments"]
        ]
        annotations += sorted(own, key=lambda annotation: -annotation["area"])
    content = {
        "info": {"description": "Predictions of AMFormer", "images": folder},
        "images": images,
        "annotations": [{"id": number, **a} for number, a in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name, "supercategory": ""} for name, i in ids.items()],
    }
    return json.dumps(content, allow_nan=False).encode()
