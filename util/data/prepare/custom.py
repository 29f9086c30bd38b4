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
    labeled = _by_id([i for i in instances.images if i.id in instances.annotations], labels)
    jobs = [_image_job(images, image, out / "images", copy) for image in labeled.values()]
    masks = [
        Job(out / "masks" / f"{image_id}.png", mask := mask_png(instances, image), len(mask))
        for image_id, image in labeled.items()
    ]
    names = "".join(f"{name}\n" for name in instances.names).encode()
    jobs.append(Job(out / "classes.txt", names, len(names)))
    if skipped := len(instances.images) - len(labeled):
        log.warning("%s: %d images have no annotation and are left out", labels, skipped)
    what = f"{out}: {len(masks)} images of {len(instances.names)} classes"
    build(out, [jobs, masks], workers, what)


def _by_id(images: list[InstanceImage], labels: Path) -> dict[str, InstanceImage]:
    by_id: dict[str, InstanceImage] = {}
    for image in images:
        image_id = PurePosixPath(image.file_name).stem
        if image_id in by_id:
            raise UserError(
                f"{labels}: {by_id[image_id].file_name} and {image.file_name} would get the same"
                " name; rename one"
            )
        by_id[image_id] = image
    if not by_id:
        raise UserError(f"{labels}: no image has an annotation; export the labels again")
    return by_id


def _image_job(folder: Path, image: InstanceImage, target: Path, copy: bool) -> Job:
    path = folder / image.file_name
    if not path.is_file():
        raise UserError(
            f"{path}: no such image; give the folder that the labels' file names start from"
        )
    target = target / path.name
    if not copy:
        return Job(target, path.resolve())
    return Job(target, partial(Path.read_bytes, path), path.stat().st_size, is_copy=True)
