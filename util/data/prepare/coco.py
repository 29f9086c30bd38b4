"""COCO 2014 from its download: masks drawn from the annotations, pictures linked or unpacked."""

import os
from functools import partial
from pathlib import Path, PurePosixPath

from util.data.prepare.archive import Archive, join
from util.data.prepare.coco_json import InstanceImage, Instances, mask_png, parse_instances
from util.data.prepare.jobs import Job, build, note
from util.data.prepare.pictures import note_absent, picture_jobs
from util.data.source import SUBSETS
from util.folds import CLASSES
from util.runtime.errors import UserError

ROOT = "MSCOCO2014"
"""The data set's folder among others."""

_OPTION = "--coco"
_MASK_BYTES = 4000  # the mean of 123 real ones


def prepare_coco(coco: Path, out: Path, copy: bool, workers: int) -> None:
    """Prepares COCO in `out`/MSCOCO2014, in the layout that `Source` reads.

    Args:
        coco: the folder of the download: `{train,val}2014` and `annotations`, or their zips.
        out: the folder of data sets.
        copy: copies pictures of a folder, where they would be linked.
        workers: processes.

    Raises:
        UserError: for whatever is wrong with the download or `out`.
    """
    download, root = Archive(coco, _OPTION), out / ROOT
    year, files = _instances_files(download)
    pictures, masks = [], []
    for subset, (archive, name) in zip(SUBSETS, files, strict=True):
        path = archive.path / name
        instances = parse_instances(archive.read(name), str(path))
        images = _annotated(instances, path)
        masks += _mask_jobs(instances, images, root / "masks" / f"{subset}{year}")
        pictures += _find_pictures(download, images, root / f"{subset}{year}", copy)
        if instances.shapeless:
            note(f"{path}: {instances.shapeless} annotations have no segmentation, nothing drawn")
    made = build(root, [pictures, masks], workers)
    print(f"{root}: {len(masks)} masks; {f'{made} files made' if made else 'nothing to do'}")


def _instances_files(download: Archive) -> tuple[str, list[tuple[Archive, str]]]:
    """Finds the instances files of both subsets; returns their year and places."""
    for year in ("2014", "2017"):
        names = [f"instances_{subset}{year}.json" for subset in SUBSETS]
        found = [_instances_file(download, name, f"annotations_trainval{year}") for name in names]
        if all(found):
            if year == "2017":
                note(
                    f"{download.path}: prepared as 2017's own split; the published COCO-20i lists"
                    " belong to 2014's: annotations_trainval2014.zip there gives it, with the"
                    " pictures of 2017"
                )
            return year, found
    raise UserError(
        f"{_OPTION} {download.path}: holds no annotations/instances_{{train,val}}2014.json;"
        " fetch annotations_trainval2014.zip from cocodataset.org into it"
    )


def _instances_file(download: Archive, name: str, archive: str) -> tuple[Archive, str] | None:
    folder = download.find(name)
    if folder is None:
        folder = download.find(f"{archive}.zip")
        if folder is None or not download.where(folder):
            return None
        download = Archive(download.where(join(folder, f"{archive}.zip")), _OPTION)
        folder = download.find(name)
    return None if folder is None else (download, join(folder, name))


def _annotated(instances: Instances, path: Path) -> dict[str, InstanceImage]:
    """Returns the images that have an annotation by the name of their picture."""
    if len(instances.names) != len(CLASSES["coco"]):
        raise UserError(
            f"{path}: has {len(instances.names)} categories, COCO has {len(CLASSES['coco'])};"
            " fetch annotations_trainval2014.zip again"
        )
    images = [image for image in instances.images if image.id in instances.annotations]
    by_name = {PurePosixPath(image.file_name).name: image for image in images}
    if len({PurePosixPath(name).stem for name in by_name}) < len(images):
        raise UserError(f"{path}: two images have one name; fetch the file again, or correct it")
    return by_name


def _mask_jobs(instances: Instances, images: dict[str, InstanceImage], folder: Path) -> list[Job]:
    return [
        Job(
            folder / f"{PurePosixPath(name).stem}.png",
            partial(mask_png, instances, image),
            _MASK_BYTES,
        )
        for name, image in images.items()
    ]


def _find_pictures(
    download: Archive, images: dict[str, InstanceImage], target: Path, copy: bool
) -> list[Job]:
    """Says what to make for the pictures: from the folder of that name, or 2017's two."""
    place = _pictures_of(download, target)
    if place:
        return picture_jobs(*place, {name: name for name in images}, target, copy)
    places = [_pictures_of(download, target.with_name(f"{subset}2017")) for subset in SUBSETS]
    if target.name.endswith("2017") or not any(places):
        raise UserError(
            f"{_OPTION} {download.path}: holds no pictures: neither a folder {target.name} with"
            f" .jpg files nor {target.name}.zip; fetch {target.name}.zip from cocodataset.org"
        )
    jobs, wanted = [], {name: f"{image.id:012d}.jpg" for name, image in images.items()}
    for archive, folder in filter(None, places):
        there = archive.files(folder, ".jpg")
        here = {name: old for name, old in wanted.items() if old in there}
        jobs += picture_jobs(archive, folder, here, target, copy)
        wanted = {name: old for name, old in wanted.items() if old not in there}
    note_absent(target, list(wanted), len(images))
    return jobs


def _pictures_of(download: Archive, target: Path) -> tuple[Archive, str] | None:
    """Finds the pictures called as `target` is, in a folder or a zip.

    `target` itself comes last: it may be what an unfinished run has unpacked so far.
    """
    folders, own = list(download.folders()), None
    for folder in folders:
        if PurePosixPath(folder).name == target.name and download.files(folder, ".jpg"):
            place = download.where(folder)
            if not (place and target.exists() and os.path.samefile(place, target)):
                return download, folder
            own = download, folder
    for folder in folders:
        path = download.where(join(folder, f"{target.name}.zip"))
        if path and path.is_file():
            archive = Archive(path, _OPTION)
            held = next((f for f in archive.folders() if archive.files(f, ".jpg")), None)
            if held is None:
                raise UserError(f"{path}: holds no .jpg; fetch it again")
            return archive, held
    return own
