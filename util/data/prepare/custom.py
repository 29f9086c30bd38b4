"""Prepare a data set from your own images and their labels in COCO's format."""

import os
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from util.class_names import warn_of_names
from util.data.prepare.coco_json import InstanceImage, Instances, load_instances, mask_png
from util.data.prepare.earlier import CLASSES_FILE
from util.data.prepare.jobs import Job, build
from util.data.prepare.photos import Photos
from util.data.prepare.pictures import text_job, warn_left_out
from util.data.prepare.shapes import draw_in_order
from util.runtime.errors import UserError
from util.runtime.log import log
from util.runtime.parallel import on_processes
from util.runtime.progress import bar

_OWN = ("images", "masks", CLASSES_FILE, ".made_by_prepare")
"""What this command writes; the folder may be in that of the images."""


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
    of linking to them. `overwrite` replaces files that something else made, but neither `labels`
    nor files in `images`. `prune` removes what earlier runs made and these labels do not name. With
    `overlap`, each class keeps all its pixels where others cover it. Raises `UserError` if
    something is wrong with the images, the labels or `out`.
    """
    if Path(os.path.realpath(images)).is_relative_to(os.path.realpath(out / "masks")):
        what = f"--images {images}: is the folder for the masks of --out"
        raise UserError(f"{what}; name the folder of the photographs, or another --out")
    photos = Photos(images, [out / name for name in _OWN])
    instances = load_instances(labels, photos)
    if not instances.images:
        raise UserError(f"{labels}: no image has an annotation; export the labels again")
    named = {image.file_name for image in instances.images} | set(instances.bare)
    for what, names in photos.others(named, labels.name).items():
        warn_left_out(images, names, what)
    warn_left_out(labels, instances.bare, "images that have no annotation")
    used = {a["category_id"] for own in instances.annotations.values() for a in own}
    if unused := [instances.names[i - 1] for c, i in instances.class_of.items() if c not in used]:
        text = "%s: %d categories have no annotation and become classes without a pixel, such as %s"
        log.warning(text, labels, len(unused), unused[0])
    jobs, masks = [], []
    for image, mask in _drawn(instances, labels, overlap, workers):
        path = photos.path(image.file_name)
        content, size = partial(Path.read_bytes, path), path.stat().st_size
        name = PurePosixPath(image.file_name)
        target = out / "images" / name.name
        linked = Path(os.path.realpath(path))
        jobs.append(Job(target, content, size, path) if copy else Job(target, linked))
        masks.append(Job(out / "masks" / f"{name.stem}.png", mask, len(mask)))
    if not masks:
        what = "no annotation has a pixel in its image, so that no mask can be drawn"
        raise UserError(f"{labels}: {what}; export polygons or masks, not boxes or points")
    warn_of_names(str(labels), instances.names)
    if len(instances.names) == 1:
        what = "has a single category, which is too few to train on: a fold holds out at least one"
        log.warning("%s: %s; label a second one, or only test on this data", labels, what)
    jobs.append(text_job(out / CLASSES_FILE, instances.names))
    what = f"{out}: {len(masks)} images of {len(instances.class_of)} classes"
    build(out, [jobs, masks], workers, what, overwrite, prune, (labels, images))


def _drawn(
    instances: Instances, labels: Path, overlap: bool, workers: int
) -> list[tuple[InstanceImage, bytes]]:
    """Return the images with a mask that is not empty, and that mask; count what has no pixel."""
    images = instances.images
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
