"""PASCAL VOC 2012 with SBD's masks, from the two downloads."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy.io import loadmat

from model.constants import IGNORE
from util.data.image_io import read_label, voc_palette
from util.data.prepare.archive import Archive, join
from util.data.prepare.jobs import Job, build, note
from util.data.prepare.pictures import picture_jobs, require_outside
from util.data.source import SUBSETS
from util.folds import CLASSES
from util.runtime.errors import UserError

ROOT = "VOCdevkit2012/VOC2012"
"""The data set's folder among others."""

_MASKS, _TRAIN_NOVAL = 12031, 5623  # of the full downloads
_LISTS = "ImageSets/Segmentation"
_NOVAL = "train_noval.txt"


def prepare_voc(voc: Path, sbd: Path, out: Path, copy: bool, workers: int) -> None:
    """Prepares VOC 2012 + SBD in `out`/VOCdevkit2012, in the layout that `Source` reads.

    Args:
        voc: VOC 2012 trainval, a folder or tar.
        sbd: SBD's `benchmark_RELEASE`, a folder or tar.
        out: the folder of data sets.
        copy: copies the pictures of a folder, where they would be linked.
        workers: processes.

    Raises:
        UserError: for whatever is wrong with the downloads or `out`.
    """
    root, voc, sbd = out / ROOT, Archive(voc, "--voc"), Archive(sbd, "--sbd")
    base, cls = _find_voc(voc), _find_cls(sbd)
    for archive, folder in ((voc, base), (sbd, cls)):
        require_outside(archive, folder, root)
    lists = {subset: voc.read(join(base, f"{_LISTS}/{subset}.txt")) for subset in SUBSETS}
    drawn = voc.files(join(base, "SegmentationClass"), ".png")
    found = sbd.files(cls, ".mat").items()
    added = {name: size for name, size in found if f"{name[:-4]}.png" not in drawn}
    masks = _mask_jobs(voc, join(base, "SegmentationClass"), drawn, root, _voc_mask, True)
    masks += _mask_jobs(sbd, cls, added, root, _sbd_mask, False)
    noval = _train_noval(sbd, cls, lists["val"], root)
    for place, ids in (*lists.items(), (_NOVAL, noval)):
        _require_masks(place, _ids(ids, place), masks)
    _note_counts(len(masks), len(_ids(noval, _NOVAL)))
    pictures = {f"{job.target.stem}.jpg": f"{job.target.stem}.jpg" for job in masks}
    pictures = picture_jobs(voc, join(base, "JPEGImages"), pictures, root / "JPEGImages", copy)
    texts = [Job(root / _LISTS / f"{s}.txt", lists[s], len(lists[s])) for s in SUBSETS]
    texts.append(Job(root.parent / f"sbd_{_NOVAL}", noval, len(noval)))
    made = build(root.parent, [pictures, masks, texts], workers)
    print(f"{root}: {len(masks)} masks; {f'{made} files made' if made else 'nothing to do'}")


def _find_voc(voc: Archive) -> str:
    lists = [f"{_LISTS}/{subset}.txt" for subset in SUBSETS]
    base = voc.find("JPEGImages", "SegmentationClass", *lists, prefer="VOC2012")
    if base is None:
        raise UserError(
            f"--voc {voc.path}: holds no VOC 2012 (JPEGImages, SegmentationClass and"
            f" {_LISTS}/{{train,val}}.txt in one folder); give VOCtrainval_11-May-2012.tar or what"
            " it unpacks to"
        )
    if not voc.files(join(base, "SegmentationClass"), ".png"):
        raise UserError(f"--voc {voc.path}: its SegmentationClass holds no PNG; unpack it again")
    return base


def _find_cls(sbd: Archive) -> str:
    above = sbd.find("cls")
    if above is None or not sbd.files(join(above, "cls"), ".mat"):
        raise UserError(
            f"--sbd {sbd.path}: holds no SBD (a folder cls with .mat files); give benchmark.tgz or"
            " the benchmark_RELEASE that it unpacks to"
        )
    return join(above, "cls")


def _train_noval(sbd: Archive, cls: str, val: bytes, root: Path) -> bytes:
    """Returns the list of SBD's training images: as published, else without VOC's val.

    SBD's archive is without it: it is looked for in `dataset`, above it, beside the archive, and
    where an earlier run or the user has put it.
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
        raise UserError(
            f"--sbd {sbd.path}: holds neither {dataset / _NOVAL} nor {train}; unpack it again, or"
            f" put {_NOVAL} from SBD's page there"
        )
    ids = set(_ids(sbd.read(train), train)) - set(_ids(val, "val.txt"))
    note(
        f"--sbd {sbd.path}: has no {_NOVAL}, so its train.txt without VOC's val is taken, which is"
        f" not the published list; put {_NOVAL} from SBD's page beside it for that one"
    )
    return "".join(f"{i}\n" for i in sorted(ids)).encode()


def _ids(content: bytes, name: str) -> list[str]:
    try:
        ids = content.decode().split()
    except UnicodeDecodeError:
        raise UserError(f"{name}: is no list of images; unpack the download again") from None
    if not ids:
        raise UserError(f"{name}: is an empty list of images; unpack the download again")
    return ids


def _require_masks(place: str, ids: list[str], masks: list[Job]) -> None:
    there = {job.target.stem for job in masks}
    absent = [i for i in ids if i not in there]
    if absent:
        raise UserError(
            f"{place}: lists {absent[0]} ({len(absent)} of {len(ids)} so), which has no mask in the"
            " downloads; unpack them again"
        )


def _note_counts(masks: int, train_noval: int) -> None:
    if (masks, train_noval) != (_MASKS, _TRAIN_NOVAL):
        note(
            f"{masks:,} masks and {train_noval:,} ids of SBD's {_NOVAL}; the full downloads have"
            f" {_MASKS:,} and {_TRAIN_NOVAL:,}"
        )


def _mask_jobs(
    archive: Archive,
    folder: str,
    sizes: dict[str, int],
    root: Path,
    make: Callable[[Archive, str, Path], bytes],
    is_copy: bool,
) -> list[Job]:
    """Says what to make of the files of a folder, by name and size: a mask of each."""
    return [
        Job(
            root / "SegmentationClassAug" / f"{PurePosixPath(name).stem}.png",
            partial(make, archive, join(folder, name), root),
            size,
            is_copy,
        )
        for name, size in sizes.items()
    ]


def _voc_mask(voc: Archive, name: str, root: Path) -> bytes:
    """Returns VOC's own file, after a look at what it holds."""
    content, path = voc.read(name), voc.path / name
    _check_label(read_label(path, content), path, root)
    return content


def _sbd_mask(sbd: Archive, name: str, root: Path) -> bytes:
    """Returns a mask of SBD as a palette PNG, as VOC's are."""
    path = sbd.path / name
    label = read_sbd_label(sbd.read(name), path)
    _check_label(label, path, root)
    mask = Image.fromarray(label)
    mask.putpalette(voc_palette())
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def read_sbd_label(content: bytes, path: Path) -> np.ndarray:
    """Reads a mask of SBD: `GTcls.Segmentation` of a .mat file (uint8 [H,W]).

    Args:
        content: of the file.
        path: names it in messages.

    Raises:
        UserError: when it is no such file.
    """
    try:
        read = loadmat(io.BytesIO(content), variable_names=["GTcls"])
    except Exception as error:  # SciPy raises a dozen kinds for damaged files
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a .mat file ({text}); fetch it again") from None
    try:
        label = np.asarray(read["GTcls"]["Segmentation"].flat[0])
    except (KeyError, ValueError, IndexError):
        raise UserError(
            f"{path}: has no GTcls.Segmentation, so it is no file of SBD's cls; give"
            " benchmark_RELEASE"
        ) from None
    values = label.astype(np.uint8) if label.ndim == 2 and label.dtype.kind in "uif" else None
    if values is None or not label.size or not np.array_equal(values, label):
        raise UserError(f"{path}: GTcls.Segmentation is no image of class ids; fetch it again")
    return values


def _check_label(label: np.ndarray, path: Path, root: Path) -> None:
    """Refuses a mask with a class that VOC lacks, or of another size than its picture."""
    count = len(CLASSES["pascal"])
    wrong = label[(label > count) & (label != IGNORE)]
    if wrong.size:
        raise UserError(
            f"{path}: holds the label {wrong[0]}, VOC has 0 to {count} and {IGNORE}; fetch it again"
        )
    picture = root / "JPEGImages" / f"{path.stem}.jpg"
    if not picture.exists():  # said before
        return
    try:
        with Image.open(picture) as image:  # reads the header only
            width, height = image.size
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"{picture}: cannot be read as an image ({error}); fetch it again"
        ) from None
    if label.shape != (height, width):
        raise UserError(
            f"{path}: is {label.shape[1]}x{label.shape[0]} pixels and its picture {width}x{height};"
            " fetch both again"
        )
