"""Prepare a data set from your own images and their labels in COCO's format."""

from functools import partial
from pathlib import Path, PurePosixPath

from util.data.prepare.coco_json import InstanceImage, load_instances, mask_png
from util.data.prepare.jobs import Job, build
from util.runtime.errors import UserError
from util.runtime.log import log


def prepare_custom(images: Path, labels: Path, out: Path, copy: bool, workers: int) -> None:
    """Write `out`/images, `out`/masks and `out`/classes.txt; changed labels are drawn again.

    The classes are the categories, in ascending order of their ids. Images without an annotation
    are left out.

    Args:
        images: the folder that the file names in `labels` are relative to.
        labels: a JSON file in COCO's instances format, as labeling tools export it.
        out: the data set's folder.
        copy: copy the images instead of linking to them.
        workers: processes.

    Raises:
        UserError: something is wrong with the images, the labels or `out`.
    """
    instances = load_instances(labels)
    labeled: dict[str, InstanceImage] = {}
    for image in instances.images:
        if image.id not in instances.annotations:
            continue
        other = labeled.setdefault(PurePosixPath(image.file_name).stem, image)
        if other is not image:
            names = f"{other.file_name} and {image.file_name}"
            raise UserError(f"{labels}: {names} would get the same name; rename one")
    if not labeled:
        raise UserError(f"{labels}: no image has an annotation; export the labels again")
    jobs = [_image_job(images, image, out / "images", copy) for image in labeled.values()]
    masks = [
        Job(out / "masks" / f"{image_id}.png", mask := mask_png(instances, image), len(mask))
        for image_id, image in labeled.items()
    ]
    classes = "".join(f"{name}\n" for name in instances.names).encode()
    jobs.append(Job(out / "classes.txt", classes, len(classes)))
    if skipped := len(instances.images) - len(labeled):
        log.warning("%s: %d images have no annotation and are left out", labels, skipped)
    what = f"{out}: {len(masks)} images of {len(instances.names)} classes"
    build(out, [jobs, masks], workers, what)


def _image_job(folder: Path, image: InstanceImage, target: Path, copy: bool) -> Job:
    path = folder / image.file_name
    if not path.is_file():
        remedy = "give the folder that the labels' file names start from"
        raise UserError(f"{path}: no such image; {remedy}")
    target = target / path.name
    if not copy:
        return Job(target, path.resolve())
    return Job(target, partial(Path.read_bytes, path), path.stat().st_size, is_copy=True)
