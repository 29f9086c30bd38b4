"""Small downloads of VOC, SBD and COCO, and the command that prepares them."""

import contextlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from golden.golden import published_lists
from PIL import Image
from scipy.io import savemat

from util.data.image_io import voc_palette
from util.data.prepare.__main__ import run_prepare
from util.folds import CLASSES
from util.runtime.cli import main


def run(*words: object, entry: Callable[[list[str]], None] = run_prepare) -> SimpleNamespace:
    """Run the command in this process; return `status`, `out` (stdout) and `err` (stderr)."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(lambda: entry([str(word) for word in words]))
        except SystemExit as end:
            status = end.code
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def refused(result: SimpleNamespace, *words: str) -> None:
    """Assert a single error line that contains the words; warnings may come before it."""
    assert result.status == 2, result
    lines = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and ";" in lines[0], result.err
    for word in words:
        assert word in lines[0]


def snapshot(root: Path) -> dict[str, bytes | str]:
    """The files of a tree: path -> content, or the target of a link; not the list of prepare."""
    paths = [Path(at) / name for at, below, names in os.walk(root) for name in (*below, *names)]
    paths = [path for path in paths if path.name != ".made_by_prepare"]
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in paths
        if path.is_symlink() or path.is_file()
    }


def times(root: Path) -> dict[Path, int]:
    """When each file and folder of a tree was last modified."""
    return {path: path.lstat().st_mtime_ns for path in (root, *root.rglob("*"))}


def write_jpeg(path: Path, height: int = 10, width: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), np.uint8)
    path.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes())


def write_mask(path: Path, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(label)
    mask.putpalette(voc_palette())
    mask.save(path)


def write_mat(path: Path, label: np.ndarray) -> None:
    """Write a mask as SBD does: GTcls has Boundaries, Segmentation and CategoriesPresent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    present = np.unique(label[label > 0]).reshape(-1, 1)
    boundaries = np.empty((20, 1), object)
    for row in range(20):
        boundaries[row, 0] = np.zeros((2, 2), np.uint8)
    struct = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
    savemat(path, {"GTcls": struct}, do_compression=True)


def a_label(number: int, height: int = 10, width: int = 12) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 21, (height, width), np.uint8)


def make_voc(root: Path, images: int = 6) -> tuple[Path, Path]:
    """Create VOCdevkit/VOC2012 and benchmark_RELEASE; every image has at least one mask.

    VOC's train list has images 0 and 1, its val list 2 and 3. SBD has all but 0 and 3.
    """
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE"
    ids = [f"2008_{i:06d}" for i in range(images)]
    for number, image_id in enumerate(ids):
        write_jpeg(voc / f"JPEGImages/{image_id}.jpg")
        if number < 4:
            write_mask(voc / f"SegmentationClass/{image_id}.png", a_label(number))
        if number not in (0, 3):
            write_mat(sbd / f"dataset/cls/{image_id}.mat", a_label(100 + number))
    lists = voc / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{i}\n" for i in ids[:2]))
    (lists / "val.txt").write_text("".join(f"{i}\n" for i in ids[2:4]))
    (sbd / "dataset/train.txt").write_text("".join(f"{i}\n" for i in (ids[1], *ids[:3:-1], ids[2])))
    (sbd / "dataset/val.txt").write_text("")
    return voc, sbd


SQUARE = [1.9, 1.2, 6.7, 1.2, 6.7, 6.9, 1.9, 6.9]


def coco_json(first: int, subset: str, year: str = "2014") -> dict:
    """An instances file of three images, one of them without an annotation."""
    prefix = f"COCO_{subset}2014_" if year == "2014" else ""
    images = [
        {"id": first + i, "file_name": f"{prefix}{first + i:012d}.jpg", "height": 10, "width": 12}
        for i in range(3)
    ]
    annotations = [
        {"id": 7 * first, "image_id": first, "category_id": 90, "iscrowd": 0,
         "segmentation": [SQUARE]},
        {"id": 7 * first + 1, "image_id": first + 1, "category_id": 2, "iscrowd": 0,
         "segmentation": [[4, 4, 9, 4, 9, 9, 4, 9]]},
    ]  # fmt: skip
    # As in COCO's files, ids have gaps and are not in order.
    ids = [90, *range(2, 81)]
    names = (CLASSES["coco"][-1], *CLASSES["coco"][:-1])
    categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_coco(root: Path, year: str = "2014") -> Path:
    """Create a download of COCO: pictures and annotations of both subsets."""
    for subset, first in (("train", 40), ("val", 70)):
        content = coco_json(first, subset, year)
        for image in content["images"]:
            write_jpeg(root / f"{subset}{year}" / image["file_name"])
        (root / "annotations").mkdir(exist_ok=True)
        path = root / f"annotations/instances_{subset}{year}.json"
        path.write_text(json.dumps(content))
    return root


def pack(archive: Path, folder: Path, top: str) -> Path:
    """Pack a folder under the name `top` into a .zip, .tar or .tgz."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as out:
            for path in files:
                out.write(path, f"{top}/{path.relative_to(folder)}")
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as out:
            for path in files:
                out.add(path, f"{top}/{path.relative_to(folder)}")
    return archive


def lay_out_real_images(data: Path, root: Path) -> None:
    """Link VOC and the COCO images of tests/golden/coco_lists.json.gz, from a data folder.

    The annotations of COCO are cut to these images: a test on all of them would take hours.
    """
    (root / "VOCdevkit2012").symlink_to((data / "VOCdevkit2012").resolve())
    listed = published_lists("coco")
    coco, made = (folder.resolve() / "MSCOCO2014" for folder in (data, root))
    (made / "annotations").mkdir(parents=True)
    for subset, names in (("train", listed["train_fold0"]), ("val", listed["val"])):
        (made / f"{subset}2014").mkdir()
        for name in names:
            (made / f"{subset}2014" / name).symlink_to(coco / f"{subset}2014" / name)
        file = f"annotations/instances_{subset}2014.json"
        every = json.loads((coco / file).read_text())
        images = [image for image in every["images"] if image["file_name"] in names]
        ids = {image["id"] for image in images}
        annotations = [each for each in every["annotations"] if each["image_id"] in ids]
        part = {**every, "images": images, "annotations": annotations}
        (made / file).write_text(json.dumps(part))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def no_leftovers(root: Path) -> None:
    assert not list(root.rglob(".*.part"))
