"""VOC 2012 + SBD from their downloads: the result has the published masks and lists."""

from pathlib import Path

import numpy as np
import pytest
from helpers.downloads import (
    a_label,
    make_voc,
    pack,
    refused,
    run,
    snapshot,
    times,
    write_mask,
    write_mat,
)
from PIL import Image

from util.data.image_io import read_label, voc_palette
from util.data.source import Source


def prepare(voc: Path, sbd: Path, out: Path, *more: object):
    result = run("voc", "--voc", voc, "--sbd", sbd, "--out", out, "--workers", "1", *more)
    assert result.status == 0, result
    return result


@pytest.fixture(scope="module")
def real(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloads with real images: masks of VOC as they are, the others as .mat files of SBD."""
    root, here = tmp_path_factory.mktemp("real"), tree / "VOCdevkit2012/VOC2012"
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE"
    have = {path.stem for path in (here / "JPEGImages").iterdir()}
    lists = {}
    for subset in ("train", "val"):
        ids = (here / f"ImageSets/Segmentation/{subset}.txt").read_text().split()
        lists[subset] = [i for i in ids if i in have][:12]
    every = (here.parent / "sbd_train_noval.txt").read_text().split()
    noval = [i for i in every if i in have][:30]
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    for subset, ids in lists.items():
        text = "".join(f"{i}\n" for i in ids)
        (voc / f"ImageSets/Segmentation/{subset}.txt").write_text(text)
    own = {*lists["train"], *lists["val"]}
    (voc / "JPEGImages").mkdir()
    (voc / "SegmentationClass").mkdir()
    (root / "truth").mkdir()
    for image_id in sorted({*own, *noval}):
        picture = voc / f"JPEGImages/{image_id}.jpg"
        picture.write_bytes((here / f"JPEGImages/{image_id}.jpg").read_bytes())
        content = (here / f"SegmentationClassAug/{image_id}.png").read_bytes()
        (root / f"truth/{image_id}.png").write_bytes(content)
        label = read_label(root / f"truth/{image_id}.png")
        if image_id in own:
            (voc / f"SegmentationClass/{image_id}.png").write_bytes(content)
            label = np.zeros_like(label)  # VOC's own must win
        write_mat(sbd / f"dataset/cls/{image_id}.mat", label)
    (sbd / "dataset/train_noval.txt").write_text("".join(f"{i}\n" for i in noval))
    return root


def test_real_masks_are_reproduced(real: Path, tmp_path: Path) -> None:
    voc, sbd = real / "VOCdevkit/VOC2012", real / "benchmark_RELEASE"
    prepare(voc, sbd, tmp_path)
    root = tmp_path / "VOCdevkit2012/VOC2012"
    truth = sorted((real / "truth").iterdir())
    assert [p.name for p in sorted((root / "SegmentationClassAug").iterdir())] == [
        p.name for p in truth
    ]
    for path in truth:
        made = root / "SegmentationClassAug" / path.name
        if (voc / "SegmentationClass" / path.name).exists():
            assert made.read_bytes() == path.read_bytes()
        with Image.open(made) as mask:
            assert mask.mode == "P" and mask.getpalette() == voc_palette()
        assert np.array_equal(read_label(made), read_label(path))
    train = Source(root, "pascal", "train")
    noval = (sbd / "dataset/train_noval.txt").read_text().split()
    listed = (voc / "ImageSets/Segmentation/train.txt").read_text().split()
    assert train.image_ids() == noval + [i for i in listed if i not in noval]
    train.find_images(train.image_ids())
    assert train.load(noval[0])[0].shape[2] == 3


def test_archives_and_folders_give_the_same_bytes(real: Path, tmp_path: Path) -> None:
    voc, sbd = real / "VOCdevkit/VOC2012", real / "benchmark_RELEASE"
    prepare(voc.parent, sbd / "dataset", tmp_path / "folder", "--copy")
    tar = pack(tmp_path / "VOCtrainval_11-May-2012.tar", voc, "VOCdevkit/VOC2012")
    tgz = pack(tmp_path / "benchmark.tgz", sbd, "benchmark_RELEASE")
    prepare(tar, tgz, tmp_path / "tar", "--workers", "2")
    assert snapshot(tmp_path / "tar") == snapshot(tmp_path / "folder")


def test_pictures_of_a_folder_are_linked_or_copied(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    result = prepare(tmp_path, tmp_path, tmp_path / "linked")  # found below
    link = tmp_path / "linked/VOCdevkit2012/VOC2012/JPEGImages"
    assert link.is_symlink() and link.samefile(voc / "JPEGImages")
    assert str(voc / "JPEGImages") in result.out
    prepare(voc, sbd, tmp_path / "copied", "--copy")
    copied = tmp_path / "copied/VOCdevkit2012/VOC2012/JPEGImages"
    assert not copied.is_symlink() and snapshot(copied) == snapshot(voc / "JPEGImages")


def test_second_run_writes_nothing_and_says_so(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    out = tmp_path / "out"
    first = prepare(voc, sbd, out, "--copy")
    before = times(out)
    second = prepare(voc, sbd, out, "--copy")
    assert "needs about" in first.out and "free" in first.out
    assert "nothing to do" in second.out and "needs" not in second.out
    assert times(out) == before


def test_changed_files_are_created_again_with_overwrite_and_complete_ones_are_kept(
    tmp_path: Path,
) -> None:
    voc, sbd = make_voc(tmp_path)
    prepare(voc, sbd, tmp_path / "out", "--copy")
    root, whole = tmp_path / "out/VOCdevkit2012/VOC2012", snapshot(tmp_path / "out")
    masks = sorted((root / "SegmentationClassAug").iterdir())
    pictures = sorted((root / "JPEGImages").iterdir())
    for path in (masks[0], masks[4], pictures[1]):
        path.write_bytes(path.read_bytes()[:-5])
    masks[5].unlink()
    (root / "SegmentationClassAug/.2008_000005.png.host.0123456789abcdef.part").write_bytes(b"half")
    (root / "ImageSets/Segmentation/val.txt").write_text("2008_")
    before = masks[1].stat().st_mtime_ns
    words = ["voc", "--voc", voc, "--sbd", sbd, "--out", tmp_path / "out", "--copy"]
    refused(run(*words), "(4 such files)", "add --overwrite")
    result = prepare(voc, sbd, tmp_path / "out", "--copy", "--overwrite")
    assert "5 files created" in result.out
    assert snapshot(tmp_path / "out") == whole and masks[1].stat().st_mtime_ns == before


def test_download_in_its_final_place_is_completed_there(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    root = tmp_path / "data/VOCdevkit2012/VOC2012"
    root.parent.mkdir(parents=True)
    voc.rename(root)
    before = snapshot(root)
    prepare(tmp_path / "data", sbd, tmp_path / "data")
    after = snapshot(root)
    assert before.items() < after.items() and not (root / "JPEGImages").is_symlink()
    assert len(after) == len(before) + 6


def test_without_train_noval_the_train_list_of_sbd_without_val_is_used(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    result = prepare(voc, sbd, tmp_path / "out")
    made = tmp_path / "out/VOCdevkit2012/sbd_train_noval.txt"
    assert made.read_text().split() == ["2008_000001", "2008_000004", "2008_000005"]
    warnings = result.err.splitlines()
    assert len(warnings) == 2
    assert "train_noval.txt" in warnings[0] and "12,031 and 5,623" in warnings[1]


@pytest.mark.parametrize("place", ["dataset", ".", ".."])
def test_train_noval_is_found_where_users_put_it(place: str, tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    (sbd / place / "train_noval.txt").write_text("2008_000005\n2008_000001\n")
    result = prepare(voc, sbd, tmp_path / "out")
    made = tmp_path / "out/VOCdevkit2012/sbd_train_noval.txt"
    assert made.read_text() == "2008_000005\n2008_000001\n"
    assert "is not the published list" not in result.err


def test_voc_2012_is_found_beside_voc_2007_and_circular_links_do_no_harm(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    old, _ = make_voc(tmp_path / "elsewhere", images=4)
    old.rename(voc.parent / "VOC2007")
    (voc.parent / "round").symlink_to(voc.parent)
    (voc.parent / "self").symlink_to("self")
    (voc / "JPEGImages/gone.jpg").symlink_to("nowhere")
    (sbd / "dataset/again").symlink_to(sbd)
    result = prepare(voc.parent, sbd, tmp_path / "out")
    assert "6 masks" in result.out


def test_paths_with_spaces_and_letters_of_any_language_work(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path / "meine Daten – 数据")
    out = tmp_path / "aus gabe é"
    prepare(voc, sbd, out)
    prepare(pack(tmp_path / "v o c.tar", voc, "ü/VOC2012"), sbd, tmp_path / "tär")
    assert (tmp_path / "tär/VOCdevkit2012/VOC2012/JPEGImages/2008_000005.jpg").is_file()


def test_gray_masks_and_other_palettes_are_copied_unchanged(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    gray = Image.fromarray(a_label(1))
    gray.save(voc / "SegmentationClass/2008_000000.png")
    write_mask(voc / "SegmentationClass/2008_000001.png", a_label(2))
    label = a_label(3)
    label[0] = 255
    other = Image.fromarray(label)
    other.putpalette(list(range(256)) * 3)
    other.save(voc / "SegmentationClass/2008_000002.png")
    prepare(voc, sbd, tmp_path / "out")
    masks = tmp_path / "out/VOCdevkit2012/VOC2012/SegmentationClassAug"
    for name in ("2008_000000.png", "2008_000002.png"):
        assert (masks / name).read_bytes() == (voc / "SegmentationClass" / name).read_bytes()


def test_missing_pictures_give_a_warning(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    (voc / "JPEGImages/2008_000005.jpg").unlink()
    assert "1 of 6 pictures" in prepare(voc, sbd, tmp_path / "out").err
