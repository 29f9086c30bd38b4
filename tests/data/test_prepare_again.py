"""A data set that is prepared again: nothing of an earlier run is taken for current."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.downloads import make_coco, refused, run, snapshot
from helpers.label_files import four_photos, labels, masks, photo, prepare, prepare_trial
from helpers.other_sets import make_fss1000
from helpers.trials import lay
from PIL import Image

from util.data.prepare import jobs
from util.folds import read_classes


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return four_photos(tmp_path)


def without_class(content: dict, category: int) -> dict:
    """The file after a class and its annotations were deleted in the tool."""
    own = [a for a in content["annotations"] if a["category_id"] != category]
    kept = [c for c in content["categories"] if c["id"] != category]
    return content | {"annotations": own, "categories": kept}


def without_image(content: dict, number: int) -> dict:
    images = [image for image in content["images"] if image["id"] != number]
    own = [a for a in content["annotations"] if a["image_id"] != number]
    return content | {"images": images, "annotations": own}


def test_deleted_class_is_refused_until_its_old_masks_are_pruned(here: Path) -> None:
    assert prepare(here, labels()).status == 0
    before = snapshot(here / "out")
    changed = without_class(labels(), 3)  # only image 3 has this one alone
    refused(
        prepare(here, changed), "classes.txt: the classes change", "1 masks", "masks/p3.png",
        "--prune",
    )  # fmt: skip
    assert snapshot(here / "out") == before
    result = prepare(here, changed, "out", "--prune")
    assert result.status == 0 and "2 removed" in result.out
    assert prepare(here, changed, "fresh").status == 0
    assert snapshot(here / "out") == snapshot(here / "fresh")
    assert len(list((here / "photos").iterdir())) == 4  # only the links went


def test_renamed_and_reordered_classes_are_drawn_anew_if_all_are_covered(here: Path) -> None:
    assert prepare(here, labels()).status == 0
    content = labels()
    content["categories"] = [
        {"id": c["id"], "name": name}
        for c, name in zip(content["categories"], ("mug", "plate", "spoon"), strict=True)
    ]
    assert prepare(here, content).status == 0 and read_classes(here / "out")[0] == "mug"
    for category in content["categories"]:
        category["id"] = 4 - category["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = 4 - annotation["category_id"]
    assert prepare(here, content).status == 0
    assert read_classes(here / "out") == ("spoon", "plate", "mug")
    assert [int(mask[5, 5]) for mask in masks(here / "out").values()] == [3, 2, 1, 3]


@pytest.mark.parametrize("copy", [(), ("--copy",)])
def test_image_that_left_the_labels_is_named_and_pruned(here: Path, copy: tuple[str]) -> None:
    assert prepare(here, labels(), "out", *copy).status == 0
    changed = without_image(labels(), 4)
    result = prepare(here, changed, "out", *copy)
    assert result.status == 0 and "nothing to do" in result.out
    assert "keeps 2 files that this run does not make" in result.err and "--prune" in result.err
    assert (here / "out/masks/p4.png").exists()
    assert "2 removed" in prepare(here, changed, "out", "--prune", *copy).out
    assert not (here / "out/masks/p4.png").exists() and (here / "photos/p4.jpg").exists()
    assert "keeps" not in prepare(here, changed, "out", *copy).err


def test_several_exports_of_the_same_classes_fill_one_folder(here: Path) -> None:
    first, second = without_image(labels(), 4), labels()
    for number in (1, 2, 3):
        second = without_image(second, number)
    assert prepare(here, first).status == 0
    assert prepare(here, second).status == 0
    assert prepare(here, labels(), "whole").status == 0
    assert snapshot(here / "out") == snapshot(here / "whole")
    # Classes in another order would give the masks of the first export a new meaning.
    second["categories"].append({"id": 0, "name": "lamp"})
    refused(prepare(here, second), "the classes change", "3 masks", "masks/p1.png")
    assert snapshot(here / "out") == snapshot(here / "whole")


def test_prune_keeps_what_somebody_changed_or_made(here: Path) -> None:
    assert prepare(here, labels()).status == 0
    corrected, own = here / "out/masks/p4.png", here / "out/masks/mine.png"
    for path in (corrected, own):
        Image.fromarray(np.full((20, 30), 2, np.uint8)).save(path)
    before = {path: path.read_bytes() for path in (corrected, own)}
    changed = without_image(labels(), 4)
    result = prepare(here, changed, "out", "--prune")
    assert result.status == 0 and "removed" not in result.out
    assert (here / "out/images/p4.jpg").is_symlink()  # else the mask would have no picture
    assert "keeps 3 files" in result.err and "such as images/p4.jpg" in result.err
    assert "--prune" not in result.err and "move away what is wrong" in result.err
    assert {path: path.read_bytes() for path in before} == before
    result = prepare(here, without_class(changed, 3), "out", "--prune")
    refused(result, "2 masks would keep", "move away masks/mine.png")
    assert {path: path.read_bytes() for path in before} == before
    own.unlink()
    corrected.unlink()
    assert prepare(here, without_class(changed, 3), "out", "--prune").status == 0


def test_picture_of_another_format_does_not_stay_beside_its_successor(here: Path) -> None:
    assert prepare(here, labels()).status == 0
    content = labels()
    content["images"][0]["file_name"] = "p1.png"
    photo(here / "photos/p1.png")
    before = snapshot(here / "out")
    refused(prepare(here, content), "images/p1.jpg: is not of this run", "images/p1.png", "--prune")
    assert snapshot(here / "out") == before
    assert prepare(here, content, "out", "--prune").status == 0
    assert sorted(os.listdir(here / "out/images")) == ["p1.png", "p2.jpg", "p3.jpg", "p4.jpg"]


def test_base_annotation_is_drawn_anew_for_a_mask_that_changed(tmp_path: Path) -> None:
    assert run("coco", "--coco", make_coco(tmp_path / "coco"), "--out", tmp_path).status == 0
    words = ["base", "--dataset", "coco", "--root", tmp_path, "--split", "0", "--workers", "1"]
    assert run(*words).status == 0 and "nothing to do" in run(*words).out
    made = tmp_path / "base_annotation/coco/val/0/COCO_val2014_000000000070.png"
    mask = tmp_path / "MSCOCO2014/masks/val2014" / made.name
    before, later = made.read_bytes(), made.stat().st_mtime_ns + 10**9
    Image.fromarray(np.full((10, 12), 2, np.uint8)).save(mask)
    os.utime(mask, ns=(later, later))
    assert "1 files created" in run(*words).out and made.read_bytes() != before


def test_list_of_made_files_leads_nowhere_else(here: Path) -> None:
    """Somebody else may have written the list."""
    assert prepare(here, labels()).status == 0
    victim = here / "victim.png"
    victim.write_bytes((here / "out/masks/p1.png").read_bytes())
    made = here / "out/.made_by_prepare"
    lines = made.read_text().replace("masks/p1.png", "masks/../../victim.png")
    made.write_text(made.read_text() + "\n" + lines)
    assert prepare(here, without_image(labels(), 4), "out", "--prune").status == 0
    assert victim.exists()


def test_classes_of_a_first_run_that_was_stopped_are_not_mixed_with_others(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = jobs._create

    def stop(outputs: object, job: jobs.Job) -> None:
        if job.target.name == "p2.png":
            raise KeyboardInterrupt
        create(outputs, job)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_create", stop)
        assert prepare(here, labels()).status == 130
    refused(prepare(here, without_image(without_class(labels(), 2), 1)), "masks/p1.png")
    assert prepare(here, labels()).status == 0
    assert sorted(masks(here / "out")) == ["p1", "p2", "p3", "p4"]


@pytest.mark.parametrize("seconds", [-9, 9])
@pytest.mark.parametrize("suffix", ["bmp", "tif"])
def test_other_picture_of_the_same_size_is_copied_or_linked_again(
    suffix: str, seconds: int, here: Path
) -> None:
    """Whatever the time stamps say."""
    content = labels()
    content["images"][0]["file_name"] = f"p1.{suffix}"
    photo(here / f"photos/p1.{suffix}")
    assert prepare(here, content, "out", "--copy").status == 0
    source, copy = here / f"photos/p1.{suffix}", here / f"out/images/p1.{suffix}"

    def edit(value: int) -> None:
        source.write_bytes(source.read_bytes()[:-40] + bytes([value]) * 40)
        when = copy.stat().st_mtime_ns + seconds * 10**9
        os.utime(source, ns=(when, when))

    edit(0)
    assert "1 files created" in prepare(here, content, "out", "--copy").out
    assert copy.read_bytes() == source.read_bytes()
    assert "nothing to do" in prepare(here, content).out  # a copy serves as well as a link
    edit(1)
    assert prepare(here, content).status == 0 and copy.is_symlink()
    assert prepare(here, content, "out", "--copy").status == 0 and not copy.is_symlink()


def test_downloaded_set_with_other_classes_is_drawn_anew_or_refused(tmp_path: Path) -> None:
    """FSS-1000's masks are computed; those of an earlier order of classes are not kept."""
    root, out = tmp_path / "in", tmp_path / "out"
    make_fss1000(root, trn=4, val=2, test=3)

    def prepare_it(name: str) -> SimpleNamespace:
        return run("fss1000", "--from", root, "--out", tmp_path / name)

    assert prepare_it("out").status == 0
    train, val = (root / f"splits/{name}.txt" for name in ("trn", "val"))
    moved = train.read_text().splitlines()
    first, last = min(moved), max(moved)
    # A class of training becomes one of validation: it and all after it have other numbers.
    train.write_text("\n".join(name for name in moved if name != first))
    val.write_text(val.read_text() + f"{first}\n")
    assert prepare_it("out").status == 0 and prepare_it("fresh").status == 0
    assert snapshot(out) == snapshot(tmp_path / "fresh")
    train.write_text("\n".join(name for name in moved if name not in (first, last)))
    refused(prepare_it("out"), "the classes change", "3 masks", f"{last}_1.png", "another --out")


def test_trial_01_deleted_class_does_not_leave_its_masks_to_another(tmp_path: Path) -> None:
    folder = lay("01_rerun_keeps_deleted_labels", tmp_path / "t")
    assert prepare_trial(folder, "v1.json").status == 0
    before = snapshot(folder / "out")
    told = ["2 masks would keep their numbers", "masks/photo_0.png", "--prune"]
    refused(prepare_trial(folder, "v2.json"), *told)
    assert snapshot(folder / "out") == before
    for out in ("out", "fresh"):
        assert prepare_trial(folder, "v2.json", out, "--prune").status == 0
    assert snapshot(folder / "out") == snapshot(folder / "fresh")
    assert read_classes(folder / "out") == ("plate", "spoon", "lamp")
