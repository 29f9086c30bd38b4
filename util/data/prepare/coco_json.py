"""COCO's instances files: read and check them, and draw masks from them."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict

import cv2
import numpy as np

from util.data.layers import draw_layers, layers_png
from util.folds import IGNORED, MAX_CLASSES, around_255, is_wide
from util.runtime.errors import UserError
from util.runtime.log import log

_FARTHEST = 1e6  # pixels: OpenCV draws polygons that leave the image, within limits
_MAX_SIDE = 1 << 15  # pixels


class InstanceImage(NamedTuple):
    """An image of an instances file; `height` and `width` are in pixels."""

    id: int
    file_name: str
    height: int
    width: int


class Annotation(TypedDict):
    """What drawing needs; `segmentation`: polygons (each x, y, x, y, ...) or a run-length code."""

    category_id: int
    iscrowd: int
    segmentation: list[Any] | dict[str, Any]


class Instances(NamedTuple):
    """A checked instances file.

    `images` are all of them, and `annotations` those of each annotated image, by its id, in the
    order of the file and with polygons as float64 [N,2]. `class_of`: category id -> class id, 1..
    in ascending order of the category ids, which is the order of `names` too. No class has the id
    255; `folds.IGNORED` is in its place.
    """

    images: list[InstanceImage]
    annotations: dict[int, list[Annotation]]
    class_of: dict[int, int]
    names: tuple[str, ...]


def load_instances(path: str | Path) -> Instances:
    """Read an instances file in COCO's format.

    Raises `UserError` naming the file, the entry and what is wrong with it.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return parse_instances(content, str(path))


def parse_instances(content: bytes, path: str) -> Instances:
    """Read an instances file's content as `load_instances` does; `path` names it in messages."""
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a complete JSON file ({error}); download it again") from None
    try:
        instances = _checked(loaded)
    except UserError as error:
        raise UserError(f"{path}: {error}; download the file again, or correct it") from None
    shapes = [a["segmentation"] for own in instances.annotations.values() for a in own]
    if empty := sum(not shape for shape in shapes):
        log.warning("%s: %d annotations have no segmentation, so they are not drawn", path, empty)
    return instances


def _checked(loaded: Any) -> Instances:
    for key in ("images", "annotations", "categories"):
        if not isinstance(loaded, dict) or not isinstance(loaded.get(key), list):
            raise UserError(f"has no list {key!r}, so it is not an instances file of COCO")
        if not all(isinstance(entry, dict) for entry in loaded[key]):
            raise UserError(f"its list {key!r} contains something that is not an object")
    names, images = _names(loaded["categories"]), [_image(entry) for entry in loaded["images"]]
    _require_unique([image.id for image in images], "images of id")
    _require_unique([image.file_name for image in images], "images of file_name")
    numbered = [_id_of(entry, "annotation") for entry in loaded["annotations"] if "id" in entry]
    _require_unique(numbered, "annotations of id")
    by_id = {image.id: image for image in images}
    by_image: dict[int, list[Annotation]] = {}
    for number, entry in enumerate(loaded["annotations"], 1):
        image_id, annotation = _annotation(entry, number, by_id, names)
        by_image.setdefault(image_id, []).append(annotation)
    places = enumerate(around_255(tuple(names), None), 1)
    class_of = {category: place for place, category in places if category is not None}
    return Instances(images, by_image, class_of, around_255(tuple(names.values()), IGNORED))


def _names(categories: list[dict[str, Any]]) -> dict[int, str]:
    """Check the categories; return id -> name, in ascending order."""
    ids = [_id_of(category, "category") for category in categories]
    _require_unique(ids, "categories of id")
    if not 1 <= len(ids) < MAX_CLASSES - 1:
        raise UserError(f"has {len(ids)} categories, but a mask can hold 1 to {MAX_CLASSES - 2}")
    for category in categories:
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise UserError(f"category {category['id']} has no name")
    return {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}


def _id_of(entry: dict[str, Any], kind: str) -> int:
    if type(entry.get("id")) is not int:  # isinstance would accept true
        raise UserError(f"has {kind} id {entry.get('id')!r}, but an id is a whole number")
    return entry["id"]


def _require_unique(values: list[Any], kind: str) -> None:
    if repeated := [value for value, count in Counter(values).items() if count > 1]:
        raise UserError(f"has two {kind} {repeated[0]!r}")


def _image(entry: dict[str, Any]) -> InstanceImage:
    image_id, name = _id_of(entry, "image"), entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"image {image_id} has no file_name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.name:
        raise UserError(f"file_name {name!r} of image {image_id} points outside the image folder")
    for key in ("height", "width"):
        value = entry.get(key)
        if type(value) is not int or not 0 < value <= _MAX_SIDE:
            raise UserError(f"image {image_id} has {key} {value!r}, not 1 to {_MAX_SIDE} pixels")
    return InstanceImage(image_id, name, entry["height"], entry["width"])


def _annotation(
    entry: dict[str, Any], number: int, images: dict[int, InstanceImage], names: dict[int, str]
) -> tuple[int, Annotation]:
    """Return an annotation's image id and its checked content: polygons as arrays, codes as is."""
    called = f"annotation {entry['id']}" if "id" in entry else f"annotation number {number}"
    for key, known in (("image_id", images), ("category_id", names)):
        if type(entry.get(key)) is not int or entry[key] not in known:
            raise UserError(f"{called} has {key} {entry.get(key)!r}, which is not in the file")
    crowd, image = entry.get("iscrowd", 0), images[entry["image_id"]]
    if crowd not in (0, 1):
        raise UserError(f"{called} has iscrowd {crowd!r}, not 0 or 1")
    shape = entry.get("segmentation")
    if isinstance(shape, dict):
        try:
            decode_run_lengths(shape, image.height, image.width)
        except UserError as error:
            raise UserError(f"{called}: {error}") from None
    elif shape is None or isinstance(shape, list):
        shape = [read_polygon(points, called) for points in shape or []]
    else:
        raise UserError(f"{called} has a segmentation that is neither polygons nor a code")
    return image.id, {
        "category_id": entry["category_id"], "iscrowd": int(crowd), "segmentation": shape
    }  # fmt: skip


def read_polygon(points: Any, called: str) -> np.ndarray:
    """Return a polygon (float64 [N,2]) of x, y, x, y, ...; `called` names its annotation.

    Raises `UserError` if it is none.
    """
    # Check Python's types first: NumPy would read "1" or true as numbers.
    if not isinstance(points, list) or not {type(v) for v in points} <= {int, float}:
        raise UserError(f"{called} has a polygon that is not a list of numbers")
    if len(points) % 2 or len(points) < 6:
        raise UserError(f"{called} has a polygon of {len(points)} numbers, not an even 6 or more")
    array = np.array(points, np.float64).reshape(-1, 2)
    if not (np.abs(array) <= _FARTHEST).all():  # false for NaN too
        raise UserError(f"{called} has a polygon with an impossible coordinate")
    return array


def decode_run_lengths(code: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Decode COCO's run-length code: return whether a pixel is in the mask (bool [height, width]).

    pycocotools decodes them too, but does not check them: it reads beyond the end of a code that is
    cut off, and returns random pixels for one that is too short.

    `code` holds `size` [height, width] and `counts`: the lengths in pixels of runs down the
    columns, in turn outside and inside the mask, as a list or packed into a string. Raises
    `UserError` if it is not such a code, or has another size.
    """
    if (size := code.get("size")) != [height, width]:
        raise UserError(f"its run-length code has size {size!r}, the image [{height}, {width}]")
    counts = code.get("counts")
    if isinstance(counts, str):
        counts = _unpack(counts)
    lengths = counts if isinstance(counts, list) else [-1]
    if not all(type(v) is int and v >= 0 for v in lengths) or sum(lengths) != height * width:
        raise UserError(f"its run-length code does not fill {height}x{width} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _unpack(packed: str) -> list[int]:
    """Unpack lengths: 5 bits a character, lowest first, plus 32 if more follow.

    From the fourth length on, the difference to the length before the previous one is packed.
    """
    counts: list[int] = []
    value = shift = 0
    for character in packed:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UserError(f"its run-length code has the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise UserError("its run-length code is cut off")
    return counts


def rasterize(
    annotations: list[Annotation], class_of: dict[int, int], height: int, width: int
) -> np.ndarray:
    """Draw an image's mask of class ids, 0 for background ([height, width] in pixels).

    It is uint8, or int16 for more than 254 classes.

    The rule of the published lists (method section 7): annotations in file order, later over
    earlier; crowds left out; each polygon filled by OpenCV with its points cut to int32.
    pycocotools draws polygons thinner, which gives other lists. `class_of` is that of `Instances`.
    """
    mask = np.zeros((height, width), np.int16 if is_wide(len(class_of)) else np.uint8)
    for annotation in annotations:
        if not annotation["iscrowd"]:
            draw_shape(mask, annotation["segmentation"], class_of[annotation["category_id"]])
    return mask


def draw_shape(mask: np.ndarray, shape: list[Any] | dict[str, Any], value: int) -> None:
    """Draw polygons or a run-length code into a mask [H,W] as `rasterize` does.

    Raises `UserError` if the code is none, or has another size.
    """
    if isinstance(shape, dict):
        mask[decode_run_lengths(shape, *mask.shape)] = value
        return
    for polygon in shape:
        points = np.array(polygon, np.float64).reshape(-1, 1, 2).astype(np.int32)
        cv2.fillPoly(mask, [points], value)


def draw_classes(
    shapes: Iterable[tuple[int, list[Any] | dict[str, Any]]], height: int, width: int
) -> dict[int, np.ndarray]:
    """Return where each class is (class id -> bool [height, width]), of pairs of id and shape."""
    masks: dict[int, np.ndarray] = {}
    for class_id, shape in shapes:
        draw_shape(masks.setdefault(class_id, np.zeros((height, width), np.uint8)), shape, 1)
    return {class_id: mask == 1 for class_id, mask in masks.items()}


def mask_png(instances: Instances, image: InstanceImage, overlap: bool = False) -> bytes:
    """Draw an image's mask; return a grayscale PNG of class ids, of 16 bits beyond 254 classes.

    It is that of `rasterize`, or with `overlap`, one in which each class keeps all its pixels.
    """
    own, class_of = instances.annotations[image.id], instances.class_of
    if not overlap:
        return layers_png(rasterize(own, class_of, image.height, image.width))
    shapes = ((class_of[a["category_id"]], a["segmentation"]) for a in own if not a["iscrowd"])
    masks = draw_classes(shapes, image.height, image.width)
    return layers_png(draw_layers(masks, image.height, image.width, len(class_of)))
