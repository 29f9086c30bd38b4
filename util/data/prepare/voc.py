"""Prepare PASCAL VOC 2012 with SBD's masks from the two downloads."""

import io
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy.io import loadmat

from model.constants import IGNORE
from util.data.image_io import image_size, read_label, voc_palette
from util.data.prepare.archive import Archive, damaged, join, open_archive
from util.data.prepare.jobs import Job, build, picture_jobs, require_outside, stamp_of
from util.data.source import SUBSETS
from util.folds import CLASSES
from util.runtime.errors import UserError
from util.runtime.log import log

ROOT = "VOCdevkit2012/VOC2012"
"""The data set's folder in the folder of data sets."""

_MASKS, _TRAIN_NOVAL = 12031, 5623  # in the full downloads
_LISTS = "ImageSets/Segmentation"
_NOVAL = "train_noval.txt"


def prepare_voc(
    voc: Path, sbd: Path, out: Path, copy: bool, workers: int, overwrite: bool = False
) -> None:
    """Prepare VOC 2012 + SBD in `out`/VOCdevkit2012, in the layout that `Source` reads.

    `voc` (VOC 2012 trainval) and `sbd` (SBD's `benchmark_RELEASE`) are folders or tars, `out` is
    the folder of data sets. `copy` copies pictures from a folder instead of linking to it,
    `overwrite` replaces files that something else made. Raises `UserError` if something is
    wrong with the downloads or `out`.
    """
    root = out / ROOT
    voc_archive, sbd_archive = open_archive(voc, "--voc"), open_archive(sbd, "--sbd")
    base, cls = _find_voc(voc_archive), _find_sbd(sbd_archive)
    require_outside(voc_archive, base, root)
    require_outside(sbd_archive, cls, root)
    masks: dict[str, Job] = {}
    for archive, folder, suffix, make in (
        (voc_archive, join(base, "SegmentationClass"), ".png", _voc_mask),
        (sbd_archive, cls, ".mat", _sbd_mask),
    ):
        for name, size in archive.files(folder, suffix).items():
            image_id = PurePosixPath(name).stem
            member = join(folder, name)
            content = partial(make, archive, member, root)
            target = root / "SegmentationClassAug" / f"{image_id}.png"
            # Of an image in both, VOC's mask counts.
            stamp = stamp_of(archive.holder(member), member)
            masks.setdefault(image_id, Job(target, content, size, stamp=stamp))
    lists = {f"{s}.txt": voc_archive.read(join(base, f"{_LISTS}/{s}.txt")) for s in SUBSETS}
    texts = [Job(root / _LISTS / name, text, len(text)) for name, text in lists.items()]
    lists[_NOVAL] = _train_noval(sbd_archive, cls, lists["val.txt"], root)
    texts.append(Job(root.parent / f"sbd_{_NOVAL}", lists[_NOVAL], len(lists[_NOVAL])))
    for name, text in lists.items():
        ids = _ids(text, name)
        if missing := [i for i in ids if i not in masks]:
            what = f"lists {missing[0]}, which has no mask ({len(missing)} of {len(ids)} have none)"
            raise damaged(name, what, "unpack both downloads again")
    if (len(masks), len(ids)) != (_MASKS, _TRAIN_NOVAL):  # of the last list, which is SBD's
        log.warning(
            f"found {len(masks):,} masks and {len(ids):,} ids in SBD's {_NOVAL}; the full downloads"
            f" have {_MASKS:,} and {_TRAIN_NOVAL:,}"
        )
    names = {f"{image_id}.jpg": f"{image_id}.jpg" for image_id in masks}
    pictures = picture_jobs(voc_archive, join(base, "JPEGImages"), names, root / "JPEGImages", copy)
    if bare := voc_archive.files(join(base, "JPEGImages"), ".jpg").keys() - names:
        log.info("%s: %d pictures have no mask and are left out", root, len(bare))
    build(
        root.parent,
        [pictures, [*masks.values()], texts],
        workers,
        f"{root}: {len(masks)} masks",
        overwrite,
    )


def _find_voc(voc: Archive) -> str:
    lists = [f"{_LISTS}/{subset}.txt" for subset in SUBSETS]
    base = voc.find("JPEGImages", "SegmentationClass", *lists, prefer="VOC2012")
    if base is None:
        what = f"contains no VOC 2012 (JPEGImages, SegmentationClass, {_LISTS}/{{train,val}}.txt)"
        remedy = "give VOCtrainval_11-May-2012.tar or its unpacked folder"
        raise damaged(f"--voc {voc.path}", what, remedy)
    if not voc.files(join(base, "SegmentationClass"), ".png"):
        raise UserError(f"--voc {voc.path}: SegmentationClass contains no PNG; unpack it again")
    return base


def _find_sbd(sbd: Archive) -> str:
    above = sbd.find("cls")
    if above is None or not sbd.files(join(above, "cls"), ".mat"):
        what = "contains no SBD (a folder cls with .mat files)"
        remedy = "give benchmark.tgz or its unpacked folder benchmark_RELEASE"
        raise damaged(f"--sbd {sbd.path}", what, remedy)
    return join(above, "cls")


def _train_noval(sbd: Archive, cls: str, val: bytes, root: Path) -> bytes:
    """Return the list of SBD's training images: the published one, else without VOC's val.

    SBD's archive lacks the published list. It is searched in `dataset`, above it, beside the
    archive, and where an earlier run or the user put it.
    """
    dataset = PurePosixPath(cls).parent
    for folder in dict.fromkeys(map(str, (dataset, dataset.parent))):
        name = join("" if folder == "." else folder, _NOVAL)
        if sbd.has(name):
            return sbd.read(name)
    for path in (sbd.path.absolute().parent / _NOVAL, root.parent / f"sbd_{_NOVAL}"):
        if path.is_file():
            return path.read_bytes()
    train = str(dataset / "train.txt")
    if not sbd.has(train):
        what = f"--sbd {sbd.path}: contains neither {dataset / _NOVAL} nor {train}"
        raise UserError(f"{what}; unpack it again, or add {_NOVAL} from SBD's web page")
    ids = set(_ids(sbd.read(train), train)) - set(_ids(val, "val.txt"))
    log.warning(
        "--sbd %s: has no %s, so its train.txt without VOC's val is used, which is not the"
        " published list; to use that one, put %s from SBD's web page beside it",
        sbd.path, _NOVAL, _NOVAL,
    )  # fmt: skip
    return "".join(f"{i}\n" for i in sorted(ids)).encode()


def _ids(content: bytes, name: str) -> list[str]:
    try:
        ids = content.decode("utf-8-sig").split()
    except UnicodeDecodeError:
        raise UserError(f"{name}: not a list of images; unpack the download again") from None
    if not ids:
        raise UserError(f"{name}: an empty list of images; unpack the download again")
    return ids


def _voc_mask(voc: Archive, name: str, root: Path) -> bytes:
    """Return VOC's own file, after a check of its label."""
    content, path = voc.read(name), voc.path / name
    _check_label(read_label(path, content), path, root)
    return content


def _sbd_mask(sbd: Archive, name: str, root: Path) -> bytes:
    """Return a mask of SBD as a palette PNG, as VOC's are."""
    path = sbd.path / name
    label = _sbd_label(sbd.read(name), path)
    _check_label(label, path, root)
    mask = Image.fromarray(label)
    mask.putpalette(voc_palette())
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def _sbd_label(content: bytes, path: Path) -> np.ndarray:
    """Return `GTcls.Segmentation` of a .mat file (uint8 [H,W])."""
    try:
        loaded = loadmat(io.BytesIO(content), variable_names=["GTcls"])
    except Exception as error:  # SciPy raises a dozen types for damaged files
        text = " ".join(str(error).split()) or type(error).__name__
        raise damaged(path, f"cannot be read as a .mat file ({text})") from None
    try:
        label = np.asarray(loaded["GTcls"]["Segmentation"].flat[0])
    except (KeyError, ValueError, IndexError):
        what = "has no GTcls.Segmentation, so it is not from SBD's folder cls"
        raise damaged(path, what, "give benchmark_RELEASE") from None
    values = label.astype(np.uint8) if label.ndim == 2 and label.dtype.kind in "uif" else None
    if values is None or not label.size or not np.array_equal(values, label):
        raise damaged(path, "GTcls.Segmentation is not an image of class ids")
    return values


def _check_label(label: np.ndarray, path: Path, root: Path) -> None:
    """Refuse a mask with a class that VOC lacks, or of another size than its picture."""
    count = len(CLASSES["pascal"])
    wrong = label[(label > count) & (label != IGNORE)]
    if wrong.size:
        raise damaged(path, f"contains label {wrong[0]}, but VOC has 0 to {count} and {IGNORE}")
    picture = root / "JPEGImages" / f"{path.stem}.jpg"
    if not picture.exists():  # a warning was given before
        return
    height, width = image_size(picture)
    if label.shape != (height, width):
        what = f"is {label.shape[1]}x{label.shape[0]} pixels, but its picture is {width}x{height}"
        raise damaged(path, what, "download both again")
