"""Prepare a data set from your own images and their labels in COCO's format."""

from functools import partial
from pathlib import Path, PurePosixPath

from util.data.prepare.coco_json import InstanceImage, load_instances, mask_png
from util.data.prepare.jobs import Job, build
from util.runtime.errors import UserError
from util.runtime.log import log


def prepare_custom(
    images: Path,
    labels: Path,
    out: Path,
    copy: bool,
    workers: int,
    overwrite: bool = False,
    overlap: bool = False,
) -> None:
    """Write `out`/images, `out`/masks and `out`/classes.txt; changed labels are drawn again.

    The classes are the categories, in ascending order of their ids. Images without an annotation
    are left out. `labels` is a JSON file in COCO's instances format, as labeling tools export it;
    its file names are relative to the folder `images`. `copy` copies the images instead of linking
    to them, `overwrite` replaces files that something else made. With `overlap`, each class keeps
    all its pixels where others cover it. Raises `UserError` if something is wrong with the images,
    the labels or `out`.
    """
    instances = load_instances(labels)
    labeled: dict[str, InstanceImage] = {}
    for image in instances.images:
        if image.id not in instances.annotations:
            continue
        if (other := labeled.setdefault(PurePosixPath(image.file_name).stem, image)) is not image:
            names = f"{other.file_name} and {image.file_name}"
            raise UserError(f"{labels}: {names} would get the same name; rename one")
    if not labeled:
        raise UserError(f"{labels}: no image has an annotation; export the labels again")
    jobs, masks = [], []
    for image_id, image in labeled.items():
        path = images / image.file_name
        if not path.is_file():
            remedy = "give the folder that the labels' file names start from"
            raise UserError(f"{path}: no such image; {remedy}")
        content, size = partial(Path.read_bytes, path), path.stat().st_size
        target, mask = out / "images" / path.name, mask_png(instances, image, overlap)
        jobs.append(Job(target, content, size, True) if copy else Job(target, path.resolve()))
        masks.append(Job(out / "masks" / f"{image_id}.png", mask, len(mask)))
    classes = "".join(f"{name}\n" for name in instances.names).encode()
    jobs.append(Job(out / "classes.txt", classes, len(classes)))
    if skipped := len(instances.images) - len(labeled):
        log.warning("%s: %d images have no annotation and are left out", labels, skipped)
    what = f"{out}: {len(masks)} images of {len(instances.class_of)} classes"
    build(out, [jobs, masks], workers, what, overwrite)
