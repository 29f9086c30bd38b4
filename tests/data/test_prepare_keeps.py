"""What a person or another tool put beside a data set survives `prepare`, whatever its form."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.downloads import refused, run, snapshot
from helpers.label_files import four_photos, labels, photo, prepare
from helpers.other_sets import make_fss1000
from PIL import Image


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return four_photos(tmp_path)


def with_suffix(here: Path, suffix: str) -> dict:
    """The labels of photos whose names end otherwise; the photos are drawn."""
    content = labels()
    for image in content["images"]:
        image["file_name"] = image["file_name"].replace("jpg", suffix)
        photo(here / "photos" / image["file_name"])
    return content


def mask(path: Path, value: int = 2) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30), value, np.uint8)).save(path)
    return path.read_bytes()


def with_trailer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"a film of a phone" * 200)


def drawn(path: Path) -> None:
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("more", [(), ("--copy",)])
@pytest.mark.parametrize(
    ("suffix", "change"),
    [("bmp", drawn), ("webp", drawn), ("tif", drawn), ("PNG", drawn), ("jpg", with_trailer),
     ("jpg", cut)],
)  # fmt: skip
def test_picture_of_any_form_that_somebody_changed_is_not_replaced(
    suffix: str, change: Callable[[Path], None], more: tuple[str], here: Path
) -> None:
    content = with_suffix(here, suffix)
    assert prepare(here, content, "out", "--copy").status == 0
    change(here / f"out/images/p1.{suffix}")
    before = snapshot(here / "out")
    refused(prepare(here, content, "out", *more), f"images/p1.{suffix} exists", "--overwrite")
    assert snapshot(here / "out") == before
    assert prepare(here, content, "out", "--overwrite", *more).status == 0


@pytest.mark.parametrize("name", ["p4.PNG", "p4.Png", "z.PNG"])
def test_mask_whose_suffix_has_another_case_counts_as_a_mask(name: str, here: Path) -> None:
    """Training reads it as well."""
    assert prepare(here, labels()).status == 0
    (here / "out/masks/p4.png").rename(here / "out/masks" / name)
    changed = labels(3)
    changed["categories"][0]["name"] = "mug"
    before = snapshot(here / "out")
    refused(prepare(here, changed, "out", "--prune"), "the classes change", f"masks/{name}")
    assert snapshot(here / "out") == before
    if name != "z.PNG":
        refused(prepare(here, labels()), f"masks/{name}", "would get the same name")


@pytest.mark.parametrize("more", [(), ("--copy",)])
def test_picture_of_another_hand_with_the_name_of_one_of_ours_is_told_of(
    more: tuple[str], here: Path
) -> None:
    photo(here / "out/images/p1.png")
    refused(prepare(here, labels(), "out", *more), "images/p1.png", "images/p1.jpg", "same name")
    assert os.listdir(here / "out/images") == ["p1.png"]


def test_two_photos_of_one_name_in_the_folder_of_the_data_set_are_told_of(here: Path) -> None:
    (here / "out").mkdir()
    (here / "photos").rename(here / "out/images")
    os.symlink(here / "out/images", here / "photos")
    photo(here / "photos/p2.webp")
    refused(prepare(here, labels()), "images/p2.webp", "images/p2.jpg", "same name")


@pytest.mark.parametrize("lose", ["removed", "copied"])
def test_files_that_stay_are_named_although_the_list_of_made_files_is_lost(
    lose: str, here: Path
) -> None:
    assert prepare(here, labels(), "out", "--copy").status == 0
    if lose == "removed":
        (here / "out/.made_by_prepare").unlink()
    else:
        shutil.copytree(here / "out", here / "new", ignore=shutil.ignore_patterns(".*"))
        shutil.rmtree(here / "out")
        (here / "new").rename(here / "out")
    for more in ((), ("--prune",)):
        result = prepare(here, labels(2), "out", "--copy", *more)
        assert result.status == 0 and "keeps 4 files" in result.err
        assert ("which another made" if more else "--prune removes") in result.err
    changed = labels(2)
    changed["categories"][0]["name"] = "mug"
    refused(prepare(here, changed, "out", "--prune", "--overwrite"), "2 masks would keep")


@pytest.mark.parametrize("name", [".p9.jpg.part", ".p9.jpg.x.part", ".p9.jpg.77.part"])
def test_half_downloads_of_other_programs_stay(name: str, here: Path) -> None:
    """The first of ours would be called `.p1.jpg.HOST.RANDOM.part`."""
    (here / "out/images").mkdir(parents=True)
    (here / "out/images" / name).write_bytes(b"half")
    (here / "out/images/.sync.part").mkdir()
    (here / "out/images/.p1.jpg.host.0123456789abcdef.part").write_bytes(b"half of ours")
    assert prepare(here, labels()).status == 0
    hidden = [path.name for path in (here / "out/images").glob(".*")]
    assert sorted(hidden) == sorted([name, ".sync.part"])


def test_half_files_of_names_that_the_labels_no_longer_hold_are_removed(here: Path) -> None:
    content = labels()
    long = content["images"][3]["file_name"] = "x" * 240 + ".jpg"
    (here / "photos/p4.jpg").rename(here / "photos" / long)
    assert prepare(here, content).status == 0
    made = [path for path in (here / "out/images").iterdir() if path.name == long]
    assert made
    for name in (f".p3.jpg.{host}.0123456789abcdef.part" for host in ("a", "b-1")):
        (here / "out/images" / name).write_bytes(b"half")
    assert prepare(here, labels(1), "out").status == 0
    assert not list((here / "out/images").glob(".*.part"))


def test_labels_file_is_never_replaced(here: Path) -> None:
    (here / "out").mkdir()
    assert prepare(here, labels(), "other").status == 0
    table = here / "out/classes.txt"
    shutil.copy(here / "labels.json", table)
    words = ["--images", here / "photos", "--labels", table, "--out", here / "out"]
    before = table.read_bytes()
    refused(run("custom", *words, "--overwrite"), "classes.txt is an input of this run")
    os.symlink(table, here / "link.json")
    words[3] = here / "link.json"
    refused(run("custom", *words, "--overwrite"), "classes.txt is an input of this run")
    assert table.read_bytes() == before


@pytest.mark.parametrize("more", [("--overwrite",), ("--overwrite", "--copy"), ()])
def test_photo_in_the_folder_of_the_images_is_never_replaced(
    more: tuple[str, ...], here: Path
) -> None:
    photos = here / "out/images"
    photos.parent.mkdir()
    (here / "photos").rename(photos)
    os.symlink(photos, here / "photos")
    photo(photos / "more/p1.jpg", 3)  # would become images/p1.jpg
    content = labels()
    content["images"][0]["file_name"] = "more/p1.jpg"
    before = snapshot(here / "out")
    refused(prepare(here, content, "out", *more), "images/p1.jpg is in", "which this run reads")
    assert snapshot(here / "out") == before


def test_file_of_a_download_is_never_replaced(tmp_path: Path) -> None:
    root = tmp_path / "in"
    make_fss1000(root, trn=4, val=2, test=3)
    assert run("fss1000", "--from", root, "--out", tmp_path / "other").status == 0
    name = sorted(os.listdir(tmp_path / "other/masks"))[0]
    content = mask(root / "masks" / name)
    words = ["fss1000", "--from", root, "--out", root]
    refused(run(*words, "--overwrite"), f"masks/{name} is in {root}", "reads")
    assert (root / "masks" / name).read_bytes() == content


@pytest.mark.parametrize("relative", [True, False])
def test_links_to_the_photos_in_place_are_complete_as_they_are(relative: bool, here: Path) -> None:
    (here / "out/images").mkdir(parents=True)
    for path in (here / "photos").iterdir():
        target = f"../../photos/{path.name}" if relative else path
        os.symlink(target, here / "out/images" / path.name)
    before = snapshot(here / "out/images")
    words = ["--images", here / "out/images", "--labels", here / "labels.json", "--out"]
    assert prepare(here, labels(), "other").status == 0
    for more in ((), ("--overwrite",)):
        assert run("custom", *words, here / "out", *more).status == 0
        assert snapshot(here / "out/images") == before


@pytest.mark.parametrize("folder", ["masks", "images"])
def test_files_behind_a_link_to_a_folder_stay_with_overwrite(folder: str, here: Path) -> None:
    assert prepare(here, labels(), "first", "--copy").status == 0
    (here / "out").mkdir()
    os.symlink(here / "first" / folder, here / "out" / folder)
    for path in (here / "first" / folder).iterdir():
        path.write_bytes(path.read_bytes() + b"\0")  # so that it must be written again
    before = snapshot(here / "first")
    result = prepare(here, labels(), "out", "--copy", "--overwrite")
    refused(result, f"out/{folder} is a link to {here / 'first' / folder}", "remove the link")
    assert snapshot(here / "first") == before


@pytest.mark.parametrize("place", ["images/p1.jpg", "masks/p1.png", "classes.txt"])
def test_pipe_in_the_place_of_a_file_is_told_of_at_once(place: str, here: Path) -> None:
    (here / "out" / place).parent.mkdir(parents=True)
    os.mkfifo(here / "out" / place)
    for more in ((), ("--copy",)):
        refused(prepare(here, labels(), "out", *more), f"{place} exists", "--overwrite")
    assert prepare(here, labels(), "out", "--overwrite").status == 0


@pytest.mark.parametrize("link", [True, False])
def test_prune_removes_no_photo_of_the_folder_of_the_images(link: bool, here: Path) -> None:
    """After a run with `--copy`, they may be the only ones."""
    assert prepare(here, labels(), "out", "--copy").status == 0
    shutil.rmtree(here / "photos")
    os.symlink(here / "out/images", here / "photos")
    (here / "labels.json").write_text(json.dumps(labels(2)))
    images = here / ("photos" if link else "out/images")
    words = ["--images", images, "--labels", here / "labels.json", "--out", here / "out"]
    result = run("custom", *words, "--copy", "--prune")
    assert result.status == 0 and "2 removed" in result.out  # the masks
    assert sorted(os.listdir(here / "out/images")) == ["p1.jpg", "p2.jpg", "p3.jpg", "p4.jpg"]
    assert sorted(os.listdir(here / "out/masks")) == ["p1.png", "p2.png"]


@pytest.mark.parametrize("more", [(), ("--copy",)])
def test_picture_of_a_download_that_links_to_itself_is_one_line(
    more: tuple[str], tmp_path: Path
) -> None:
    root = tmp_path / "in"
    make_fss1000(root, trn=4, val=2, test=3)
    picture = sorted(root.rglob("*.jpg"))[0]
    picture.unlink()
    picture.symlink_to(picture.name)
    refused(run("fss1000", "--from", root, "--out", tmp_path / "out", *more), "symbolic links")
