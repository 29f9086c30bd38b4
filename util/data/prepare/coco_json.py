"""COCO's instances files: read and check them, and draw masks from them."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from util.class_names import clean_name
from util.data.layers import draw_layers, layers_png
from util.data.prepare.photos import Photos
from util.data.prepare.pictures import warn_left_out
from util.data.prepare.shapes import (
    Annotation,
    Shape,
    decode_run_lengths,
    draw_classes,
    rasterize,
    read_polygon,
    whole,
)
from util.folds import IGNORED, MAX_CLASSES, around_255, is_wide
from util.runtime.errors import UserError, refuse
from util.runtime.files import open_file
from util.runtime.log import log
from util.runtime.progress import bar
from util.runtime.texts import require_unpacked, undecodable

_MAX_SIDE = 1 << 15  # pixels
_ZERO_FIRST = re.compile(r"\s*-?0[0-9]")

Id = int | str


class InstanceImage(NamedTuple):
    """An image of an instances file; `height` and `width` are in pixels."""

    id: Id
    file_name: str
    height: int
    width: int


class Instances(NamedTuple):
    """A checked instances file.

    `images` are those with an annotation, and `annotations` those of each image, by its id, in the
    order of the file and with polygons as float64 [N,2]. `class_of`: category id -> class id, 1..
    in ascending order of the category ids (texts come last), which is the order of `names` too. No
    class has the id 255; `folds.IGNORED` is in its place. `bare` names the images without an
    annotation, of which nothing else is checked.
    """

    images: list[InstanceImage]
    annotations: dict[Id, list[Annotation]]
    class_of: dict[Id, int]
    names: tuple[str, ...]
    bare: list[str]


def load_instances(path: str | Path, photos: Photos | None = None) -> Instances:
    """Read an instances file in COCO's format, as a labeling tool exports it.

    With `photos`, an annotated image must have the size of its photograph, which also serves where
    the file gives none. Numbers may be whole floats or texts, and annotations may share an id.
    Annotations without a shape and polygons of fewer than three points are left out, with a
    warning. Raises `UserError` naming the file, and each entry with what is wrong with it.
    """
    try:
        with open_file(Path(path)) as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return parse_instances(content, str(path), "export the labels again", photos)


def parse_instances(
    content: bytes, path: str, again: str, photos: Photos | None = None
) -> Instances:
    """Read an instances file's content as `load_instances` does; `path` names it in messages.

    `again` says how the user gets a good file.
    """
    checker = _Checker(photos)
    require_unpacked(content, path)
    try:
        loaded = json.loads(content, object_pairs_hook=checker.read_object)
    except UnicodeDecodeError as error:
        raise undecodable(path, error, again) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a complete JSON file ({error}); {again}") from None
    instances = checker.read(loaded)
    refuse(path, checker.mistakes, f"{again}, or correct the file")
    assert instances is not None  # else there is a mistake
    if renamed := checker.renamed:
        text = "%s: %d names of categories do not fit into a line of text, such as %s"
        log.warning(text, path, len(renamed), renamed[0])
    warn_left_out(path, checker.without, "annotations without a segmentation")
    warn_left_out(path, checker.short, "polygons of fewer than three points")
    return instances


class _Checker:
    """Checks the entries of an instances file, and collects what is wrong with them.

    Attributes:
        mistakes: a line each.
        renamed: names of categories that a line of text does not give back, and what they become.
        without: annotations that have no segmentation.
        short: the annotation of each polygon of fewer than three points.
    """

    def __init__(self, photos: Photos | None) -> None:
        self.mistakes: list[str] = []
        self.renamed: list[str] = []
        self.without: list[str] = []
        self.short: list[str] = []
        self._photos = photos
        self._zeros_count = set[str]()  # kinds of entries, of whose ids two differ only in them

    def read_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object of the file; a key that it holds twice is a mistake."""
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            key = next(key for key in keys if keys.count(key) > 1)
            place = f" of id {found['id']}" if type(found.get("id")) in (int, str) else ""
            self.mistakes.append(f"an object{place} has the key {key!r} twice")
        return found

    def read(self, loaded: Any) -> Instances | None:
        """Return what the file holds, None if it has not even the lists."""
        found = loaded if isinstance(loaded, dict) else {}
        lists = {key: found.get(key) for key in ("images", "annotations", "categories")}
        if none := [repr(key) for key, entries in lists.items() if not isinstance(entries, list)]:
            self.mistakes.append(f"has no list {', '.join(none)}, so it is not in COCO's format")
        for key, entries in lists.items():
            entries = entries if isinstance(entries, list) else []
            if not all(isinstance(entry, dict) for entry in entries):
                self.mistakes.append(f"its list {key!r} contains something that is not an object")
        if self.mistakes:
            return None
        names = self._names(loaded["categories"])
        images, bare = self._images(loaded["images"], loaded["annotations"])
        by_image: dict[Id, list[Annotation]] = {}
        for number, entry in enumerate(loaded["annotations"], 1):
            if found := self._try(self._annotation, entry, number, images, names):
                by_image.setdefault(found[0], []).append(found[1])
        places = enumerate(around_255(tuple(names), None), 1)
        return Instances(
            [image for image in images.values() if image],
            by_image,
            {category: place for place, category in places if category is not None},
            around_255(tuple(names.values()), IGNORED),
            bare,
        )

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a call returns; None if it finds a mistake, which is noted."""
        try:
            return call(*arguments)
        except UserError as error:
            self.mistakes.append(str(error))
            return None

    def _note_repeated(self, values: list[Any], kind: str) -> None:
        repeated = (value for value, count in Counter(values).items() if count > 1)
        self.mistakes += [f"has two {kind} {value!r}" for value in repeated]

    def _names(self, categories: list[dict[str, Any]]) -> dict[Id, str]:
        """Check the categories; return id -> name, in ascending order."""
        if not 1 <= len(categories) < MAX_CLASSES - 1:
            count = f"has {len(categories)} categories"
            self.mistakes.append(f"{count}, but a mask can hold 1 to {MAX_CLASSES - 2}")
        ids = self._ids(categories, "category")
        known = {i: entry for i, entry in zip(ids, categories, strict=True) if i is not None}
        self._note_repeated([i for i in ids if i is not None], "categories of id")
        ordered = sorted(known, key=lambda i: (isinstance(i, str), i))
        names = {i: self._try(self._name, i, known[i]) or "" for i in ordered}
        taken = [*names.values(), *([IGNORED] if is_wide(len(names)) else [])]
        kind = "classes (merge them, or rename one) of name"
        self._note_repeated(list(filter(None, taken)), kind)
        return names

    def _name(self, category_id: Id, entry: dict[str, Any]) -> str:
        given = whole(entry.get("name"))
        given = str(given) if type(given) is int else given
        if not isinstance(given, str) and given is not None:
            raise UserError(f"category {category_id} has the name {given!r}, which is no text")
        if not (name := clean_name(given or "")):
            raise UserError(f"category {category_id} has no name")
        if name != given:
            self.renamed.append(f"{given!r}, which becomes {name!r}")
        return name

    def _ids(self, entries: list[dict[str, Any]], kind: str) -> list[Id | None]:
        """Return the ids of entries, None for one that has a mistake."""
        values = [v for e in entries if type(v := e.get("id")) in (int, float, str)]
        if len({_key(v, True) for v in values}) > len({_key(v) for v in values}):
            self._zeros_count.add(kind)
        return [self._try(self._id_of, entry, kind) for entry in entries]

    def _id_of(self, entry: dict[str, Any], kind: str) -> Id:
        if (found := self._key(entry.get("id"), kind)) is None:
            raise UserError(f"has {kind} id {entry.get('id')!r}, but an id is a number or a text")
        return found

    def _key(self, value: Any, kind: str) -> Id | None:
        return _key(value, kind in self._zeros_count)

    def _images(
        self, entries: list[dict[str, Any]], annotations: list[dict[str, Any]]
    ) -> tuple[dict[Id, InstanceImage | None], list[str]]:
        """Return image id -> image, None for one that has a mistake; and names without annotation.

        Those without an annotation have no part in the first.
        """
        ids = self._ids(entries, "image")
        self._note_repeated([i for i in ids if i is not None], "images of id")
        annotated = {self._key(entry.get("image_id"), "image") for entry in annotations}
        images: dict[Id, InstanceImage | None] = {}
        bare = []
        with bar(len(entries), "looking at images") as progress:
            for image_id, entry in zip(ids, entries, strict=True):
                if image_id in annotated and image_id is not None:
                    images[image_id] = self._try(_image, image_id, entry, self._photos)
                elif image_id is not None:
                    given = entry.get("file_name")
                    bare.append(_slashes(given) if isinstance(given, str) else f"image {image_id}")
                progress.update()
        files = [image.file_name for image in images.values() if image]
        self._note_repeated(files, "images of file_name")
        stems = [PurePosixPath(name).stem for name in set(files)]
        self._note_repeated(stems, "images of the same name, apart from folder and ending,")
        return images, bare

    def _known(self, entry: dict[str, Any], kind: str, known: Container[Id], called: str) -> Id:
        """Return the id of an annotation's image or category, which must be in the file."""
        found = self._key(given := entry.get(f"{kind}_id"), kind)
        if found is None or found not in known:
            raise UserError(f"{called} has {kind}_id {given!r}, which is not in the file")
        return found

    def _annotation(
        self,
        entry: dict[str, Any],
        number: int,
        images: dict[Id, InstanceImage | None],
        names: dict[Id, str],
    ) -> tuple[Id, Annotation] | None:
        """Return an annotation's image id and its checked content; None if that is unknown.

        Polygons become arrays, run-length codes stay as they are.
        """
        own = _key(entry.get("id"))
        called = f"annotation number {number}" if own is None else f"annotation {own}"
        image_id = self._known(entry, "image", images, called)
        category = self._known(entry, "category", names, called)
        crowd = whole(entry.get("iscrowd") or 0)
        if crowd not in (0, 1):
            raise UserError(f"{called} has iscrowd {crowd!r}, not 0 or 1")
        image = images[image_id]
        if image is None:  # its mistake is noted
            return None
        shape = entry.get("segmentation") or []
        shape = [shape] if isinstance(shape, dict) else shape
        if not isinstance(shape, list):
            raise UserError(f"{called} has a segmentation that is neither polygons nor a code")
        for code in (part for part in shape if isinstance(part, dict)):
            if "counts" not in code:
                what = f"has a segmentation of objects ({', '.join(map(str, code))})"
                raise UserError(
                    f"{called} {what}, not of polygons (each [x, y, x, y, ...]) or codes"
                )
            try:
                decode_run_lengths(code, image.height, image.width)
            except UserError as error:
                raise UserError(f"{called}: {error}") from None
        shape = self._polygons(shape, called)
        return image.id, {"category_id": category, "iscrowd": int(crowd), "segmentation": shape}

    def _polygons(self, shape: list[Any], called: str) -> Shape:
        """Return the polygons of three points and more, and the run-length codes."""
        if not shape:
            self.without.append(called)
        if all(type(value) in (int, float) for value in shape):
            shape = [shape] if shape else []  # one polygon, without the list around it
        if len(shape) > 2 and all(isinstance(p, list) and len(p) == 2 for p in shape):
            raise UserError(f"{called} lists points, not polygons (each x, y, x, y, ...)")
        is_short = [isinstance(p, list) and len(p) in (0, 2, 4) for p in shape]
        self.short += [called] * sum(is_short)
        kept = (points for points, short in zip(shape, is_short, strict=True) if not short)
        return [p if isinstance(p, dict) else read_polygon(p, called) for p in kept]


def _key(value: Any, zeros_count: bool = False) -> Id | None:
    """Return the id that a value stands for; None if it is none.

    With `zeros_count`, "01" is another id than 1.
    """
    if zeros_count and type(value) is str and _ZERO_FIRST.match(value):
        return value.strip()
    value = whole(value)
    return value if type(value) in (int, str) and value != "" else None


def _slashes(file_name: str) -> str:
    return str(PurePosixPath(unicodedata.normalize("NFC", file_name.replace("\\", "/"))))


def _image(image_id: Id, entry: dict[str, Any], photos: Photos | None) -> InstanceImage:
    given = entry.get("file_name")
    if not isinstance(given, str) or not given or "\0" in given:
        raise UserError(f"image {image_id} has no file_name")
    path = PurePosixPath(_slashes(given))
    is_absolute = path.is_absolute() or PureWindowsPath(given).is_absolute()
    if is_absolute or ".." in path.parts or not path.name:
        hint = photos.near(given) if photos else ""
        what = f"file_name {given!r} of image {image_id} points outside the image folder"
        raise UserError(f"{what}{hint}")
    name = str(path)
    own = dict(zip(("height", "width"), photos.size(name), strict=True)) if photos else {}
    size: dict[str, Any] = {key: whole(entry.get(key)) for key in ("height", "width")}
    size = {key: own.get(key) if side is None else side for key, side in size.items()}
    for key, value in size.items():
        if type(value) is not int or not 0 < value <= _MAX_SIDE:
            raise UserError(f"image {image_id} has {key} {value!r}, not 1 to {_MAX_SIDE} pixels")
    if own and own != size:
        what = f"{given} has {size['width']}x{size['height']} pixels in the labels"
        raise UserError(f"{what}, but its file {own['width']}x{own['height']} (turned upright)")
    return InstanceImage(image_id, name, **size)


def mask_png(
    instances: Instances, image: InstanceImage, overlap: bool = False, crowds: bool = False
) -> bytes:
    """Draw an image's mask; return a grayscale PNG of class ids, of 16 bits beyond 254 classes.

    It is that of `rasterize`, or with `overlap`, one in which each class keeps all its pixels.
    """
    own, class_of = instances.annotations[image.id], instances.class_of
    if not overlap:
        return layers_png(rasterize(own, class_of, image.height, image.width, crowds))
    drawn = (a for a in own if crowds or not a["iscrowd"])
    shapes = ((class_of[a["category_id"]], a["segmentation"]) for a in drawn)
    masks = draw_classes(shapes, image.height, image.width)
    return layers_png(draw_layers(masks, image.height, image.width, len(class_of)))
