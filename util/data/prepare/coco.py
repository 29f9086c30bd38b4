"""Prepare COCO 2014 from its download: draw masks from annotations, link or unpack pictures."""

import os
from functools import partial
from pathlib import Path, PurePosixPath

from util.data.prepare.archive import Archive, damaged, join, open_archive
from util.data.prepare.coco_json import InstanceImage, Instances, mask_png, parse_instances
from util.data.prepare.jobs import Job, build, picture_jobs, stamp_of, warn_missing
from util.data.source import SUBSETS
from util.folds import CLASSES
from util.runtime.errors import UserError
from util.runtime.log import log

ROOT = "MSCOCO2014"
"""The data set's folder in the folder of data sets."""

_OPTION = "--coco"
_MASK_BYTES = 4000  # the mean of 123 real masks


def prepare_coco(coco: Path, out: Path, copy: bool, workers: int, overwrite: bool = False) -> None:
    """Prepare COCO in `out`/MSCOCO2014, in the layout that `Source` reads.

    `coco` is a folder with `{train,val}2014` and `annotations`, or with their zips; `out` is the
    folder of data sets. `copy` copies pictures from a folder instead of linking to it,
    `overwrite` replaces files that something else made. Raises `UserError` if something is
    wrong with the download or `out`.
    """
    download, root = open_archive(coco, _OPTION), out / ROOT
    year, files = _find_annotations(download)
    pictures: list[Job] = []
    masks: list[Job] = []
    for subset, (archive, name) in zip(SUBSETS, files, strict=True):
        path, part = archive.path / name, f"{subset}{year}"
        instances = parse_instances(archive.read(name), str(path), "download the file again")
        images = _images_by_name(instances, path)
        stamp = stamp_of(archive.holder(name), name)
        for picture, image in images.items():
            target = root / "masks" / part / f"{PurePosixPath(picture).stem}.png"
            draw = partial(mask_png, instances, image)
            masks.append(Job(target, draw, _MASK_BYTES, stamp=stamp))
        pictures += _find_pictures(download, images, root / part, copy)
    build(root, [pictures, masks], workers, f"{root}: {len(masks)} masks", overwrite)


def _find_annotations(download: Archive) -> tuple[str, list[tuple[Archive, str]]]:
    """Return the year, and for both subsets the archive and name of the instances file."""
    for year in ("2014", "2017"):
        names = [f"instances_{subset}{year}.json" for subset in SUBSETS]
        found = [_find_file(download, name, f"annotations_trainval{year}.zip") for name in names]
        files = [place for place in found if place]
        if len(files) < len(SUBSETS):
            continue
        if year == "2017":
            log.warning(
                "%s: prepared with the split of 2017, but the published COCO-20i lists use that of"
                " 2014; add annotations_trainval2014.zip to get it, with the pictures of 2017",
                download.path)  # fmt: skip
        return year, files
    what = f"{_OPTION} {download.path}: contains no annotations/instances_{{train,val}}2014.json"
    raise UserError(f"{what}; download annotations_trainval2014.zip from cocodataset.org into it")


def _find_file(download: Archive, name: str, zip_name: str) -> tuple[Archive, str] | None:
    """Find a file in the download, or in a zip that lies in it."""
    archive: Archive | None = download
    folder = download.find(name)
    if folder is None and (archive := _open_zip(download, zip_name)):
        folder = archive.find(name)
    return None if archive is None or folder is None else (archive, join(folder, name))


def _open_zip(download: Archive, name: str) -> Archive | None:
    holder = download.find(name)
    path = None if holder is None else download.where(join(holder, name))
    return open_archive(path, _OPTION) if path else None


def _images_by_name(instances: Instances, path: Path) -> dict[str, InstanceImage]:
    """Return the images that have an annotation: name of the picture -> image."""
    if len(instances.names) != len(CLASSES["coco"]):
        what = f"has {len(instances.names)} categories, but COCO has {len(CLASSES['coco'])}"
        raise damaged(path, what, "download annotations_trainval2014.zip again")
    objects = [each for own in instances.annotations.values() for each in own]
    counts = len(instances.bare), sum(each["iscrowd"] for each in objects)
    text = "%s: as in the published masks, without %d images that have no annotation and %d crowds"
    log.info(text, path, *counts)
    return {PurePosixPath(image.file_name).name: image for image in instances.images}


def _find_pictures(
    download: Archive, images: dict[str, InstanceImage], target: Path, copy: bool
) -> list[Job]:
    """Return the jobs for a subset's pictures, from its folder or zip, or from those of 2017."""
    if place := _find_folder_or_zip(download, target):
        return picture_jobs(*place, {name: name for name in images}, target, copy)
    targets = [target.with_name(f"{subset}2017") for subset in SUBSETS]
    places = list(filter(None, (_find_folder_or_zip(download, t) for t in targets)))
    if target.name.endswith("2017") or not places:
        zipped = f"{target.name}.zip"
        what = f"contains no pictures: neither a folder {target.name} with .jpg files nor {zipped}"
        raise damaged(f"{_OPTION} {download.path}", what, f"download {zipped} from cocodataset.org")
    jobs, wanted = [], {name: f"{image.id:0>12}.jpg" for name, image in images.items()}
    for archive, folder in places:
        available = archive.files(folder, ".jpg")
        found = {name: old for name, old in wanted.items() if old in available}
        jobs += picture_jobs(archive, folder, found, target, copy)
        wanted = {name: old for name, old in wanted.items() if name not in found}
    warn_missing(target, list(wanted), len(images))
    return jobs


def _find_folder_or_zip(download: Archive, target: Path) -> tuple[Archive, str] | None:
    """Return the archive and folder of the pictures that are named as `target` is.

    `target` itself comes last: an unfinished run may have unpacked only a part of them there.
    """
    own = None
    for folder in download.folders():
        if PurePosixPath(folder).name == target.name and download.files(folder, ".jpg"):
            place = download.where(folder)
            if not (place and target.exists() and os.path.samefile(place, target)):
                return download, folder
            own = download, folder
    if archive := _open_zip(download, f"{target.name}.zip"):
        held = next((f for f in archive.folders() if archive.files(f, ".jpg")), None)
        if held is None:
            raise damaged(archive.path, "contains no .jpg")
        return archive, held
    return own
