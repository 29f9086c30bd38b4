"""COCO's instances files: reading and checking them, and drawing masks by them."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from util.runtime.errors import UserError

_FURTHEST = 1e6  # pixels: OpenCV draws what lies outside a picture, within limits
_MAX_CLASSES = 254  # 0 is the background, 255 counts for nothing
_MAX_SIDE = 1 << 15  # pixels


@dataclass(frozen=True)
class InstanceImage:
    """An image of an instances file; `height` and `width` are in pixels."""

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Instances:
    """A checked instances file.

    Attributes:
        images: in the order of the file, those without an annotation, too.
        annotations: image id -> its annotations in the order of the file, each with `category_id`,
            `iscrowd` and `segmentation`: polygons (float64 [N,2], x and y) or a run length code.
            Images without any are not in it.
        class_of: category id -> class id, 1.. in the order of the category ids.
        names: of the classes, in that order.
        shapeless: annotations that draw nothing, as their segmentation is absent or empty.
    """

    images: list[InstanceImage]
    annotations: dict[int, list[dict[str, Any]]]
    class_of: dict[int, int]
    names: tuple[str, ...]
    shapeless: int


def load_instances(path: str | Path) -> Instances:
    """Reads an instances file in COCO's format.

    Raises:
        UserError: naming the file, the entry and what is wrong with it.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return parse_instances(content, str(path))


def parse_instances(content: bytes, path: str) -> Instances:
    """Reads the content of an instances file; `path` names it in messages.

    Raises:
        UserError: as `load_instances`.
    """
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no whole JSON file ({error}); fetch it again") from None
    try:
        return _checked(read)
    except _Wrong as error:
        raise UserError(f"{path}: {error}; fetch it again, or correct it") from None


class _Wrong(Exception):
    """What is wrong with an instances file, without its path."""


def _checked(read: Any) -> Instances:
    for key in ("images", "annotations", "categories"):
        if not isinstance(read, dict) or not isinstance(read.get(key), list):
            raise _Wrong(f"has no list {key!r}, so it is no instances file of COCO")
        if not all(isinstance(entry, dict) for entry in read[key]):
            raise _Wrong(f"its list {key!r} holds what is no object")
    names = _names(read["categories"])
    images = [_image(entry) for entry in read["images"]]
    _require_unique([image.id for image in images], "images of id")
    _require_unique([image.file_name for image in images], "images of file_name")
    numbered = [entry for entry in read["annotations"] if "id" in entry]
    _require_unique([_id_of(entry, "annotation") for entry in numbered], "annotations of id")
    by_id, by_image = {image.id: image for image in images}, {}
    for number, entry in enumerate(read["annotations"], 1):
        image, annotation = _annotation(entry, number, by_id, names)
        by_image.setdefault(image, []).append(annotation)
    return Instances(
        images,
        by_image,
        class_of={category: index for index, category in enumerate(names, 1)},
        names=tuple(names.values()),
        shapeless=sum(not a["segmentation"] for own in by_image.values() for a in own),
    )


def _names(categories: list[dict[str, Any]]) -> dict[int, str]:
    """Checks the categories; returns id -> name, ascending."""
    ids = [_id_of(category, "category") for category in categories]
    _require_unique(ids, "categories of id")
    if not 1 <= len(ids) <= _MAX_CLASSES:
        raise _Wrong(f"has {len(ids)} categories, a mask holds 1 to {_MAX_CLASSES}")
    for category in categories:
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise _Wrong(f"category {category['id']} has no name")
    return {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _id_of(entry: dict[str, Any], kind: str) -> int:
    if not _is_int(entry.get("id")):
        raise _Wrong(f"has {kind} id {entry.get('id')!r}, an id is a whole number")
    return entry["id"]


def _require_unique(values: list[int] | list[str], kind: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise _Wrong(f"has two {kind} {value!r}")
        seen.add(value)


def _image(entry: dict[str, Any]) -> InstanceImage:
    number, name = _id_of(entry, "image"), entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise _Wrong(f"image {number} has no file_name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.name:
        raise _Wrong(f"file_name {name!r} of image {number} leads out of the folder of images")
    for key in ("height", "width"):
        value = entry.get(key)
        if not _is_int(value) or not 0 < value <= _MAX_SIDE:
            raise _Wrong(f"image {number} has {key} {value!r}, it is 1 to {_MAX_SIDE} pixels")
    return InstanceImage(number, name, entry["height"], entry["width"])


def _annotation(
    entry: dict[str, Any], number: int, images: dict[int, InstanceImage], names: dict[int, str]
) -> tuple[int, dict[str, Any]]:
    """Checks an annotation; returns its image's id, and what `Instances` keeps of it."""
    called = f"annotation {entry['id']}" if "id" in entry else f"annotation number {number}"
    for key, known in (("image_id", images), ("category_id", names)):
        if not _is_int(entry.get(key)) or entry[key] not in known:
            raise _Wrong(f"{called} has {key} {entry.get(key)!r}, which is not in the file")
    crowd, image = entry.get("iscrowd", 0), images[entry["image_id"]]
    if crowd not in (0, 1):
        raise _Wrong(f"{called} has iscrowd {crowd!r}, it is 0 or 1")
    shape = _shape(entry.get("segmentation"), image, called)
    kept = {"category_id": entry["category_id"], "iscrowd": int(crowd), "segmentation": shape}
    return image.id, kept


def _shape(segmentation: Any, image: InstanceImage, called: str) -> Any:
    """Checks a segmentation; returns its polygons as arrays, or its run length code as it is."""
    if isinstance(segmentation, dict):
        try:
            decode_rle(segmentation, image.height, image.width)
        except ValueError as error:
            raise _Wrong(f"{called}: {error}") from None
        return segmentation
    if segmentation is not None and not isinstance(segmentation, list):
        raise _Wrong(f"{called} has a segmentation that is neither polygons nor a run length code")
    return [_polygon(points, called) for points in segmentation or []]


def _polygon(points: Any, called: str) -> np.ndarray:
    # Python's own types first: NumPy would read "1" or true as numbers.
    if not isinstance(points, list) or not {type(v) for v in points} <= {int, float}:
        raise _Wrong(f"{called} has a polygon that is no list of numbers")
    if len(points) % 2 or len(points) < 6:
        raise _Wrong(f"{called} has a polygon of {len(points)} numbers, it takes an even 6 or more")
    array = np.array(points, np.float64).reshape(-1, 2)
    if not (np.abs(array) <= _FURTHEST).all():  # not for NaN either
        raise _Wrong(f"{called} has a polygon with a coordinate that is no pixel's")
    return array


def decode_rle(code: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Decodes COCO's run length code, of lengths or of the string that packs them.

    Args:
        code: `size` [height, width], and `counts`: lengths of runs down the columns, in turn
            outside and inside; as a list, or a string of 5 bits a character, least first, where
            from the fourth length on the difference to the last but one is packed.
        height: of the image, in pixels.
        width: likewise.

    Returns:
        Whether a pixel is inside; bool [height, width].

    Raises:
        UserError: when it is no such code, or of another size.
    """
    if code.get("size") != [height, width]:
        raise UserError(
            f"its run length code has size {code.get('size')!r}, the image [{height}, {width}]"
        )
    counts = code.get("counts")
    if isinstance(counts, str):
        counts = _unpack(counts)
    whole = isinstance(counts, list) and all(_is_int(v) and v >= 0 for v in counts)
    if not whole or sum(counts) != height * width:
        raise UserError(f"its run length code does not fill {height}x{width} pixels")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _unpack(packed: str) -> list[int]:
    counts, value, shift = [], 0, 0
    for character in packed:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UserError(f"its run length code has the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise UserError("its run length code is cut off")
    return counts


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
        shape, class_id = annotation["segmentation"], category_index[annotation["category_id"]]
        if isinstance(shape, dict):
            mask[decode_rle(shape, height, width)] = class_id
            continue
        for polygon in shape:
            points = np.array(polygon, np.float64).reshape(-1, 1, 2).astype(np.int32)
            cv2.fillPoly(mask, [points], class_id)
    return mask


def mask_png(instances: Instances, image: InstanceImage) -> bytes:
    """Draws an image's mask by `rasterize`; returns a grayscale PNG of class ids."""
    annotations = instances.annotations[image.id]
    mask = rasterize(annotations, instances.class_of, image.height, image.width)
    return cv2.imencode(".png", mask)[1].tobytes()
