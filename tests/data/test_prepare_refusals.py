"""Every mistake in a download or an option gives one line and exit status 2."""

import errno
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.downloads import (
    a_label,
    cut,
    make_coco,
    make_voc,
    no_leftovers,
    pack,
    refused,
    run,
    write_mask,
    write_mat,
)
from PIL import Image
from scipy.io import savemat

from util.data.prepare import archive
from util.runtime.errors import UserError

Change = Callable[[Path, Path], dict[str, object] | None]
"""Damages a download, given the folders of VOC and SBD; returns the options to change."""

MASK, MAT = "SegmentationClass/2008_000002.png", "dataset/cls/2008_000004.mat"
LISTS = "ImageSets/Segmentation"


def mask(**label: object) -> Change:
    """A mask with one value at a pixel, or of another size."""

    def change(voc: Path, sbd: Path) -> None:
        values = np.zeros(label.get("shape", (10, 12)), np.uint8)
        values[3, 4] = label.get("value", 0)
        write_mask(voc / MASK, values)

    return change


def mode(name: str) -> Change:
    return lambda voc, sbd: Image.new(name, (12, 10)).save(voc / MASK)


def mat(**fields: object) -> Change:
    return lambda voc, sbd: savemat(sbd / MAT, fields)


def segmentation(label: np.ndarray) -> Change:
    return lambda voc, sbd: write_mat(sbd / MAT, label)


def cut_archive(name: str, option: str) -> Change:
    def change(voc: Path, sbd: Path) -> dict[str, object]:
        path = pack(voc.parent / name, voc if option == "--voc" else sbd, "packed")
        cut(path)
        return {option: path}

    return change


def cut_jpeg_in_tar(voc: Path, sbd: Path) -> dict[str, object]:
    cut(voc / "JPEGImages/2008_000003.jpg")
    return {"--voc": pack(voc.parent / "voc.tar", voc, "VOC2012")}


def member(name: str, kind: bytes = tarfile.REGTYPE) -> Change:
    """A tar with one more member."""

    def change(voc: Path, sbd: Path) -> dict[str, object]:
        path = pack(voc.parent / "voc.tar", voc, "VOC2012")
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info, io.BytesIO())
        return {"--voc": path}

    return change


def text(name: str, content: bytes | None) -> Change:
    """Other content for a list of VOC or SBD; None removes it."""

    def change(voc: Path, sbd: Path) -> None:
        path = (sbd if name.startswith("dataset") else voc) / name
        path.unlink(missing_ok=True) if content is None else path.write_bytes(content)

    return change


def linked_elsewhere(voc: Path, sbd: Path) -> dict[str, object]:
    root = voc.parent / "out/VOCdevkit2012/VOC2012"
    root.mkdir(parents=True)
    (root / "JPEGImages").symlink_to(sbd)
    return {"--out": voc.parent / "out"}


def folder_there(voc: Path, sbd: Path) -> dict[str, object]:
    (voc.parent / "out/VOCdevkit2012/VOC2012/JPEGImages").mkdir(parents=True)
    return {"--out": voc.parent / "out"}


def through_a_link(voc: Path, sbd: Path) -> dict[str, object]:
    return linked_elsewhere(voc, sbd) | {"--voc": pack(voc.parent / "v.tar", voc, "VOC2012")}


def empty(voc: Path, sbd: Path) -> dict[str, object]:
    (voc.parent / "empty").mkdir()
    return {"--voc": voc.parent / "empty"}


def junk(option: str, name: str) -> Change:
    def change(voc: Path, sbd: Path) -> dict[str, object]:
        (voc.parent / name).write_bytes(b"<html>404</html>" * 99)
        return {option: voc.parent / name}

    return change


VOC_CASES: dict[str, tuple[Change, list[str]]] = {
    "no such folder": (lambda v, s: {"--voc": v / "gone"}, ["--voc", "gone", "no such file"]),
    "no such sbd": (lambda v, s: {"--sbd": v / "gone"}, ["--sbd", "gone", "no such file"]),
    "empty folder": (empty, ["--voc", "empty", "contains no VOC 2012"]),
    "VOC as SBD": (lambda v, s: {"--sbd": v}, ["--sbd", "contains no SBD", "benchmark.tgz"]),
    "SBD as VOC": (lambda v, s: {"--voc": s}, ["--voc", "contains no VOC 2012"]),
    "a page as tar": (junk("--voc", "VOC.tar"), ["--voc", "VOC.tar", "not a complete tar"]),
    "a page as tgz": (junk("--sbd", "b.tgz"), ["--sbd", "b.tgz", "not a complete tar"]),
    "cut tar": (cut_archive("v.tar", "--voc"), ["--voc", "v.tar", "not a complete tar"]),
    "cut tgz": (cut_archive("b.tgz", "--sbd"), ["--sbd", "b.tgz", "not a complete tar"]),
    "cut JPEG in a tar": (cut_jpeg_in_tar, ["2008_000003.jpg", "not a complete JPEG"]),
    "member above": (member("../evil.jpg"), ["voc.tar", "'../evil.jpg'", "points outside"]),
    "absolute member": (member("/tmp/evil.jpg"), ["voc.tar", "'/tmp/evil.jpg'", "points outside"]),
    "link member": (member("VOC2012/e", tarfile.SYMTYPE), ["'VOC2012/e'", "is a link"]),
    "hard link member": (member("VOC2012/e", tarfile.LNKTYPE), ["'VOC2012/e'", "is a link"]),
    "device member": (member("VOC2012/e", tarfile.CHRTYPE), ["'VOC2012/e'", "a device"]),
    "cut PNG": (lambda v, s: cut(v / MASK), ["2008_000002.png", "cannot be read as a mask"]),
    "empty PNG": (lambda v, s: (v / MASK).write_bytes(b""), [MASK, "cannot be read as a mask"]),
    "RGB mask": (mode("RGB"), ["2008_000002.png", "mode RGB", "8-bit"]),
    "RGBA mask": (mode("RGBA"), ["2008_000002.png", "mode RGBA", "8-bit"]),
    "16-bit mask": (mode("I;16"), ["2008_000002.png", "mode I;16", "8-bit"]),
    "1-bit mask": (mode("1"), ["2008_000002.png", "mode 1;", "8-bit"]),
    "label 21": (mask(value=21), ["2008_000002.png", "label 21"]),
    "label 254": (mask(value=254), ["2008_000002.png", "label 254"]),
    "mask of another size": (mask(shape=(12, 10)), ["2008_000002.png", "10x12", "12x10"]),
    "label 21 in .mat": (segmentation(a_label(1) + np.uint8(9)), ["2008_000004.mat", "label 2"]),
    ".mat of another size": (segmentation(a_label(1, 9, 9)), ["2008_000004.mat", "9x9", "12x10"]),
    ".mat of 3 axes": (segmentation(np.zeros((2, 3, 4))), ["2008_000004.mat", "not an image"]),
    ".mat of fractions": (segmentation(np.full((10, 12), 0.5)), ["000004.mat", "not an image"]),
    ".mat of negatives": (segmentation(np.full((10, 12), -1)), ["000004.mat", "not an image"]),
    ".mat without GTcls": (mat(GTinst=1), ["2008_000004.mat", "no GTcls.Segmentation"]),
    ".mat without field": (mat(GTcls={"a": 1}), ["2008_000004.mat", "no GTcls.Segmentation"]),
    ".mat of a number": (mat(GTcls=3), ["2008_000004.mat", "no GTcls.Segmentation"]),
    "no .mat": (lambda v, s: (s / MAT).write_bytes(b"text " * 99), ["000004.mat", "download it"]),
    "empty .mat": (lambda v, s: (s / MAT).write_bytes(b""), ["2008_000004.mat", "download it"]),
    "cut .mat": (lambda v, s: cut(s / MAT), ["2008_000004.mat", "cannot be read as a .mat"]),
    "no VOC train.txt": (text(f"{LISTS}/train.txt", None), ["--voc", "train,val"]),
    "empty val.txt": (text(f"{LISTS}/val.txt", b"\n"), ["val", "empty list"]),
    "binary val.txt": (text(f"{LISTS}/val.txt", b"\xff\xfe\x00"), ["val", "not a list"]),
    "unknown id": (text(f"{LISTS}/val.txt", b"2008_x\n"), ["val", "2008_x", "no mask"]),
    "no SBD train.txt": (text("dataset/train.txt", None), ["--sbd", "train.txt", "train_noval"]),
    "unknown SBD id": (text("dataset/train_noval.txt", b"x\n"), ["train_noval.txt", "lists x"]),
    "out in VOC": (lambda v, s: {"--out": v / "out"}, ["--out", "inside the download"]),
    "out in SBD": (lambda v, s: {"--out": s / "dataset/cls"}, ["--out", "inside the download"]),
    "out is a file": (
        lambda v, s: {"--out": s / "dataset/val.txt"},
        ["dataset/val.txt", "cannot be written"],
    ),
    "out in /proc": (lambda v, s: {"--out": "/proc/out"}, ["/proc/out", "choose another --out"]),
    "folder in the way": (folder_there, ["JPEGImages", "--copy"]),
    "link in the way": (linked_elsewhere, ["JPEGImages", "remove the link"]),
    "unpacking through a link": (through_a_link, ["JPEGImages", "remove the link"]),
    "broken picture": (
        lambda v, s: (v / "JPEGImages/2008_000002.jpg").write_bytes(b"GIF?"),
        ["2008_000002.jpg", "cannot be read as an image"],
    ),
    "no worker": (lambda v, s: {"--workers": 0}, ["--workers 0", "at least 1"]),
    "half a worker": (lambda v, s: {"--workers": 0.5}, ["--workers", "0.5"]),
    "unknown option": (lambda v, s: {"--fast": 1}, ["--fast", "--help"]),
}


@pytest.mark.parametrize("case", VOC_CASES)
def test_mistake_in_voc_or_sbd_is_one_line_with_status_2(case: str, tmp_path: Path) -> None:
    change, expected = VOC_CASES[case]
    voc, sbd = make_voc(tmp_path)
    options = {"--voc": voc, "--sbd": sbd, "--out": tmp_path / "data", "--workers": 1}
    changed = change(voc, sbd)
    options |= changed if isinstance(changed, dict) else {}
    refused(run("voc", *(word for pair in options.items() for word in pair)), *expected)
    no_leftovers(tmp_path)


def test_read_only_target_is_one_line_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    voc, sbd = make_voc(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write in any folder
    words = ("voc", "--voc", voc, "--sbd", sbd, "--out", tmp_path / "data")
    refused(run(*words), "data", "Read-only file system", "another --out")


def test_file_without_read_permission_is_one_line_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    voc, sbd = make_voc(tmp_path)
    words = ("voc", "--voc", voc, "--sbd", sbd, "--out", tmp_path / "data", "--workers", "1")
    for name in ("read_bytes", "is_dir"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refuse)
            refused(run(*words), str(tmp_path), "Permission denied")


def test_mistake_in_base_annotation_is_one_line_with_status_2(tmp_path: Path) -> None:
    words = ("base", "--dataset", "coco", "--root", tmp_path)
    refused(run(*words), "--root", "MSCOCO2014")
    refused(run(*words, "--split", "4"), "--split", "4")
    refused(run(*words[:2], "voc", *words[3:]), "--dataset", "'voc'")
    coco = make_coco(tmp_path / "coco")
    assert run("coco", "--coco", coco, "--out", tmp_path).status == 0
    path = tmp_path / "MSCOCO2014/masks/val2014/COCO_val2014_000000000070.png"
    Image.new("RGB", (12, 10)).save(path)
    refused(run(*words), path.name, "8-bit palette or grayscale")
    no_leftovers(tmp_path)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz"])
def test_member_that_is_larger_than_any_picture_or_list_is_not_read(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    for name, size in (("small.txt", 100), ("large.txt", 101)):
        (tmp_path / "set/a" / name).write_bytes(b"x" * size)
    kind = {"zip": "zip", "tar": "tar", "tgz": "gztar"}[suffix]
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "set"))
    monkeypatch.setattr(archive, "LARGEST_MEMBER", 100)
    opened = archive.open_archive(packed, "--voc")
    assert opened.read("a/small.txt") == b"x" * 100
    with pytest.raises(UserError, match="a/large.txt has 0.0 GB, more than any picture or list"):
        opened.read("a/large.txt")
