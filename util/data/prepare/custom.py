"""Prepare a data set from your own images and their labels in COCO's format."""

import os
import unicodedata
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from util.class_names import warn_of_background
from util.data.image_io import SUFFIXES, image_size
from util.data.prepare.coco_json import InstanceImage, Instances, load_instances, mask_png
from util.data.prepare.earlier import CLASSES_FILE
from util.data.prepare.jobs import Job, build
from util.data.prepare.pictures import text_job, warn_left_out
from util.data.prepare.shapes import draw_in_order
from util.runtime.errors import UserError
from util.runtime.log import log
from util.runtime.parallel import on_processes
from util.runtime.progress import bar


def prepare_custom(
    images: Path,
    labels: Path,
    out: Path,
    copy: bool,
    workers: int,
    overwrite: bool = False,
    overlap: bool = False,
    prune: bool = False,
) -> None:
    """Write `out`/images, `out`/masks and `out`/classes.txt; changed labels are drawn again.

    The classes are the categories, in ascending order of their ids. Crowds are drawn as other
    objects are. Images in whose mask nothing would be drawn are left out; a warning for each reason
    counts what is not used. `labels` is a JSON file in COCO's instances format, as labeling tools
    export it; its file names are relative to the folder `images`. `copy` copies the images instead
    of linking to them, `overwrite` replaces files that something else made, `prune` removes what
    earlier runs made and these labels do not name. With `overlap`, each class keeps all its pixels
    where others cover it. Raises `UserError` if something is wrong with the images, the labels or
    `out`.
    """
    pictures = _Pictures(images)
    instances = load_instances(labels, pictures.size)
    annotated = [image for image in instances.images if image.id in instances.annotations]
    if not annotated:
        raise UserError(f"{labels}: no image has an annotation; export the labels again")
    named = {image.file_name for image in instances.images}
    without = named.difference(image.file_name for image in annotated)
    warn_left_out(images, pictures.others(named), f"pictures that {labels.name} does not name")
    warn_left_out(labels, sorted(without), "images that have no annotation")
    jobs, masks = [], []
    for image, mask in _drawn(instances, annotated, labels, overlap, workers):
        path = pictures.path(image.file_name)
        content, size = partial(Path.read_bytes, path), path.stat().st_size
        name = PurePosixPath(image.file_name)
        target = out / "images" / name.name
        jobs.append(Job(target, content, size, True, path) if copy else Job(target, path.resolve()))
        masks.append(Job(out / "masks" / f"{name.stem}.png", mask, len(mask)))
    if not masks:
        what = "no annotation has a pixel in its image, so that no mask can be drawn"
        raise UserError(f"{labels}: {what}; export polygons or masks, not boxes or points")
    warn_of_background(str(labels), instances.names)
    if len(instances.names) == 1:
        what = "has a single category, which is too few to train on: a fold holds out at least one"
        log.warning("%s: %s; label a second one, or only test on this data", labels, what)
    jobs.append(text_job(out / CLASSES_FILE, instances.names))
    what = f"{out}: {len(masks)} images of {len(instances.class_of)} classes"
    build(out, [jobs, masks], workers, what, overwrite, prune)


class _Pictures:
    """The pictures in a folder and its subfolders, by the file names of the labels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[PurePosixPath, dict[str, str]] = {}

    def _names(self, below: PurePosixPath) -> dict[str, str]:
        """Return the files of a subfolder: name in the form NFC -> name on the disk."""
        if below not in self._listed:
            try:
                names = sorted(os.listdir(self.folder / below))
            except OSError:  # `path` tells it of each picture
                names = []
            self._listed[below] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._listed[below]

    def path(self, file_name: str) -> Path:
        """Return the path of a picture. Raises `UserError` if there is none that can be used."""
        name = PurePosixPath(file_name)
        if not _is_picture(name.name):
            raise UserError(f"{file_name} is no picture that can be used ({', '.join(SUFFIXES)})")
        if (held := self._names(name.parent).get(name.name)) is None:
            start = "--images must be the folder that the labels' file names start from"
            raise UserError(f"{self.folder / name}: no such image ({start})")
        return self.folder / name.parent / held

    def size(self, file_name: str) -> tuple[int, int]:
        """Return height and width of a picture. Raises `UserError` as `path`, or if it is none."""
        return image_size(self.path(file_name))

    def others(self, named: set[str]) -> list[str]:
        """Return the pictures in the folders of the `named` ones that are not among them."""
        folders = sorted({PurePosixPath(name).parent for name in named})
        found = [str(below / name) for below in folders for name in self._names(below)]
        return [name for name in found if _is_picture(Path(name).name) and name not in named]


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _drawn(
    instances: Instances, images: list[InstanceImage], labels: Path, overlap: bool, workers: int
) -> list[tuple[InstanceImage, bytes]]:
    """Return the images with a mask that is not empty, and that mask; count what has no pixel."""
    drawn, empty, outside, covered = [], [], [], []
    draw = partial(_draw, instances, overlap)
    with bar(len(images), "drawing masks") as progress:
        results = on_processes(draw, images, workers)
        for image, (mask, beyond, below) in zip(images, results, strict=True):
            if mask is None:
                empty.append(image.file_name)
            else:
                drawn.append((image, mask))
            outside += [f"one in {image.file_name}"] * beyond
            covered += [f"one in {image.file_name}"] * below
            progress.update()
    warn_left_out(labels, outside, "annotations without a pixel in their image")
    warn_left_out(labels, covered, "annotations that other classes cover (--overlap keeps them)")
    warn_left_out(labels, empty, "images of whose annotations no pixel can be drawn")
    return drawn


def _draw(
    instances: Instances, overlap: bool, image: InstanceImage
) -> tuple[bytes | None, int, int]:
    """Return an image's mask, None without a pixel; and two numbers of shapes.

    The first ones have no pixel in the image, and of the second ones, other classes leave none.
    """
    own = [a for a in instances.annotations[image.id] if a["segmentation"]]
    shapes, size = [a["segmentation"] for a in own], (image.height, image.width)
    top = draw_in_order(enumerate(shapes, 1), *size, np.uint8 if len(own) < 256 else np.int32)
    seen = set(np.unique(top).tolist()) - {0}
    if not seen:
        return None, len(own), 0
    outside = covered = 0
    for number in set(range(1, len(own) + 1)) - seen:
        alone = draw_in_order([(1, shapes[number - 1])], *size, np.uint8)
        above = {own[n - 1]["category_id"] for n in np.unique(top[alone == 1])}
        outside += not above
        covered += bool(above) and own[number - 1]["category_id"] not in above and not overlap
    return mask_png(instances, image, overlap, crowds=True), outside, covered
