"""One's own images and their labels in COCO's format, in the layout that `custom` data has."""

from functools import partial
from pathlib import Path, PurePosixPath

from util.data.prepare.coco_json import InstanceImage, load_instances, mask_png
from util.data.prepare.jobs import Job, build, note
from util.runtime.errors import UserError


def prepare_custom(images: Path, labels: Path, out: Path, copy: bool, workers: int) -> None:
    """Writes `out`/images, `out`/masks and `out`/classes.txt; labels that changed are drawn anew.

    The classes are the categories in ascending order of their ids. Images without an annotation are
    left out.

    Args:
        images: the folder that the file names in `labels` start from.
        labels: a JSON file in COCO's instances format, as labelling tools export it.
        out: the data set's folder.
        copy: copies the images, which would be linked.
        workers: processes.

    Raises:
        UserError: for whatever is wrong with the images, the labels or `out`.
    """
    instances = load_instances(labels)
    labelled = _by_id([i for i in instances.images if i.id in instances.annotations], labels)
    jobs = [_image_job(images, image, out / "images", copy) for image in labelled.values()]
    masks = [
        Job(out / "masks" / f"{image_id}.png", mask := mask_png(instances, image), len(mask))
        for image_id, image in labelled.items()
    ]
    names = "".join(f"{name}\n" for name in instances.names).encode()
    jobs.append(Job(out / "classes.txt", names, len(names)))
    skipped = len(instances.images) - len(labelled)
    if skipped:
        note(f"{labels}: {skipped} images have no annotation and are left out")
    if instances.shapeless:
        note(f"{labels}: {instances.shapeless} annotations have no segmentation, nothing drawn")
    made = build(out, [jobs, masks], workers)
    what = f"{len(masks)} images of {len(instances.names)} classes"
    print(f"{out}: {what}; {f'{made} files made' if made else 'nothing to do'}")


def _by_id(images: list[InstanceImage], labels: Path) -> dict[str, InstanceImage]:
    by_id: dict[str, InstanceImage] = {}
    for image in images:
        name = PurePosixPath(image.file_name).stem
        if name in by_id:
            raise UserError(
                f"{labels}: {by_id[name].file_name} and {image.file_name} have one name; rename one"
            )
        by_id[name] = image
    if not by_id:
        raise UserError(f"{labels}: has no image with an annotation; export the labels again")
    return by_id


def _image_job(folder: Path, image: InstanceImage, target: Path, copy: bool) -> Job:
    path = folder / image.file_name
    if not path.is_file():
        raise UserError(f"{path}: no such image; give the folder that its labels start from")
    target = target / path.name
    if not copy:
        return Job(target, path.resolve())
    return Job(target, partial(Path.read_bytes, path), path.stat().st_size, is_copy=True)
