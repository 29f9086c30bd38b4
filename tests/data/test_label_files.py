"""Label files of any tool: what is taken, what is counted, and what is refused in one message."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.downloads import make_coco, refused, run, snapshot
from helpers.label_files import (
    BOX,
    HEIGHT,
    NAMES,
    WIDTH,
    four_photos,
    labels,
    masks,
    photo,
    prepare,
    prepare_trial,
)
from helpers.trials import lay

from util.data.image_io import read_label
from util.folds import read_classes
from util.runtime.errors import UserError
from util.runtime.texts import read_lines


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return four_photos(tmp_path)


def same(found: Path, wanted: Path) -> None:
    a, b = masks(found), masks(wanted)
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in b)


# --- what tools write is taken -------------------------------------------------------------------


def each(key: str, change: Callable[[Any], Any], *names: str) -> Callable[[dict], None]:
    """Changes the values of some names in all entries of a list."""

    def do(content: dict) -> None:
        for entry in content[key]:
            for name in names:
                entry[name] = change(entry[name])

    return do


def both(*changes: Callable[[dict], None]) -> Callable[[dict], None]:
    return lambda content: [change(content) for change in changes] and None


def run_lengths(kind: type) -> Callable[[dict], None]:
    """Masks as run-length codes whose numbers are of this type."""

    def do(content: dict) -> None:
        for entry in content["annotations"]:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            cv2.fillPoly(mask, [np.array(entry["segmentation"]).reshape(-1, 2)], 1)
            pixels = np.concatenate([[0], mask.T.ravel(), [2]])
            ends = np.flatnonzero(np.diff(pixels))
            counts = [kind(n) for n in np.diff([0, *ends]).tolist()]
            entry |= {"segmentation": {"counts": counts, "size": [kind(HEIGHT), kind(WIDTH)]}}
            entry["iscrowd"] = 1

    return do


def uuid(number: int) -> str:
    return f"c0ffee-{number:02d}"


TAKEN: dict[str, Callable[[dict], None]] = {
    "ids as floats": both(
        each("images", float, "id"), each("annotations", float, "image_id", "category_id", "id")
    ),
    "ids of images as texts": each("images", str, "id"),
    "ids in annotations as texts": each("annotations", str, "image_id", "category_id"),
    "ids that are no numbers": both(
        each("images", uuid, "id"), each("annotations", uuid, "image_id", "category_id"),
        each("categories", uuid, "id"),
    ),
    "sizes as floats and texts": both(
        each("images", float, "width"), each("images", lambda n: f"{n}.0", "height")
    ),
    "no sizes": each("images", lambda _: None, "width", "height"),
    "no width": lambda c: [image.pop("width") for image in c["images"]] and None,
    "one id for all annotations": each("annotations", lambda _: 7, "id"),
    "no ids of annotations": lambda c: [a.pop("id") for a in c["annotations"]] and None,
    "flat polygons": each("annotations", lambda s: s[0], "segmentation"),
    "polygons of floats": each("annotations", lambda s: [[v + 0.25 for v in s[0]]], "segmentation"),
    "crowds": each("annotations", lambda _: 1, "iscrowd"),
    "crowds as true, texts and nothing": lambda c: [
        a.update(iscrowd=v) for a, v in zip(c["annotations"], (True, "1", None, False, 1.0, 0),
                                            strict=True)] and None,
    "crowds as run-length codes": run_lengths(int),
    "run-length codes of floats": run_lengths(float),
    "ids that differ in zeros": both(
        each("images", lambda n: ("", "1", "01", "001", "0004")[n], "id"),
        each("annotations", lambda n: ("", "1", "01", "001", "0004")[n], "image_id"),
    ),
    "ids of images with zeros": each("images", lambda n: f"{n:012}", "id"),
    "ids of categories that differ in zeros": both(
        each("categories", lambda n: ("", "1", "2", "02")[n], "id"),
        each("annotations", lambda n: ("", "1", "2", "02")[n], "category_id"),
    ),
    "ids of 20 digits": both(
        each("images", lambda n: n + 10**19, "id"),
        each("annotations", lambda n: str(n + 10**19), "image_id"),
    ),
    "codes in a list": both(
        run_lengths(int), each("annotations", lambda code: [code], "segmentation")
    ),
    "a code and a polygon in a list": lambda c: run_lengths(int)(
        part := {"annotations": [dict(a) for a in c["annotations"]]}) or [
        a["segmentation"].append(p["segmentation"])
        for a, p in zip(c["annotations"], part["annotations"], strict=True)] and None,
    "backslashes": each("images", lambda n: f".\\{n}", "file_name"),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_what_tools_write_gives_the_masks_of_a_plain_file(case: str, here: Path) -> None:
    content = labels()
    assert prepare(here, content, "plain").err == ""
    TAKEN[case](content)
    assert json.dumps(content) != json.dumps(labels())
    result = prepare(here, content)
    assert result.status == 0 and result.err == "", result
    same(here / "out", here / "plain")
    assert read_classes(here / "out") == NAMES
    first = masks(here / "out")
    # By hand: 10 x 10 pixels of the first class, and in the even ones as many of the first again.
    assert np.bincount(first["p1"].ravel()).tolist() == [500, 100]
    assert np.bincount(first["p2"].ravel()).tolist() == [400, 100, 100]


@pytest.mark.parametrize(
    "encode",
    [lambda t: codecs.BOM_UTF8 + t.encode(), lambda t: t.encode("utf-16"),
     lambda t: t.encode("utf-16-be"), lambda t: t.replace("\n", "\r\n").encode()],
    ids=["UTF-8 with a mark", "UTF-16", "UTF-16 without a mark", "CRLF"],
)  # fmt: skip
def test_label_file_of_any_editor_is_read(encode: Callable[[str], bytes], here: Path) -> None:
    content = labels()
    content["categories"][0]["name"] = "Tasse à thé"
    text = json.dumps(content, ensure_ascii=False, indent=1)
    assert prepare(here, encode(text)).status == 0
    assert read_classes(here / "out")[0] == "Tasse à thé"


@pytest.mark.parametrize(
    ("pack", "kind"),
    [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"),
     (lambda content: zipped(content), "zip")],
    ids=["gzip", "bzip2", "xz", "zip"],
)  # fmt: skip
def test_packed_label_file_is_said_to_be_one(
    pack: Callable[[bytes], bytes], kind: str, here: Path
) -> None:
    packed = pack(json.dumps(labels()).encode())
    refused(prepare(here, packed), f"labels.json: is a packed file ({kind}), not text; unpack it")
    (here / "classes.txt").write_bytes(packed)
    with pytest.raises(UserError, match=rf"classes.txt: is a packed file \({kind}\)"):
        read_lines(here / "classes.txt")


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("labels.json", content)
    return file.getvalue()


def test_file_of_an_old_code_page_is_said_to_be_no_utf_8(here: Path) -> None:
    content = json.dumps(labels(), ensure_ascii=False).replace("cup", "thé").encode("cp1252")
    refused(
        prepare(here, content),
        "no UTF-8 text",
        "save it again as UTF-8, or export the labels again",
    )


@pytest.mark.parametrize("disk", ["NFC", "NFD"])
@pytest.mark.parametrize("text", ["NFC", "NFD"])
def test_names_with_accents_are_found_in_both_forms_and_become_one(
    disk: str, text: str, here: Path
) -> None:
    name, content = "café_über", labels()
    photo(here / "photos" / unicodedata.normalize(disk, f"{name}.jpg"))
    content["images"][0]["file_name"] = unicodedata.normalize(text, f"{name}.jpg")
    assert prepare(here, content).status == 0
    nfc = unicodedata.normalize("NFC", name)
    assert (here / f"out/masks/{nfc}.png").is_file()
    assert (here / f"out/images/{nfc}.jpg").read_bytes()


# --- what is not used is counted -----------------------------------------------------------------


def test_everything_left_out_is_counted_with_its_reason(here: Path) -> None:
    content = labels()
    photo(here / "photos/stranger.webp")
    photo(here / "photos/._p1.jpg")
    photo(here / "photos/more/other.jpg")
    (here / "photos/notes.txt").write_text("no picture")
    for name in ("p8.heic", "p9.jfif", "more/p1.gif"):
        photo(here / "photos/p8.jpg")
        (here / "photos/p8.jpg").rename(here / "photos" / name)
    content["categories"].append({"id": 9, "name": "fork"})
    for number in (5, 6, 7):
        photo(here / f"photos/p{number}.jpg")
        content["images"].append({**content["images"][0], "id": number,
                                  "file_name": f"p{number}.jpg"})  # fmt: skip
    more = [
        (1, [[4, 4, 9, 9]]),  # two points
        (1, [[], [1, 1], BOX]),  # no point, one point, a polygon
        (2, []), (6, None),  # boxes only
        (2, [[90, 90, 95, 90, 95, 95]]), (7, [[-9, 1, -5, 1, -5, 9]]),  # outside
        (3, [[4, 4, 6, 4, 6, 6]]), (3, [BOX]),
        (4, {"counts": [HEIGHT * WIDTH], "size": [HEIGHT, WIDTH]}),  # an empty code
    ]  # fmt: skip
    content["annotations"] += [
        {"id": 100 + n, "image_id": i, "category_id": 3, "segmentation": shape}
        for n, (i, shape) in enumerate(more)
    ]
    result = prepare(here, content)
    assert result.status == 0 and "4 images of 4 classes" in result.out
    told = [
        line.partition("left out ")[2] for line in result.err.splitlines() if "left out " in line
    ]
    assert "1 categories have no annotation and become classes without" in result.err
    assert told == [
        "2 annotations without a segmentation, such as annotation 102",
        "3 polygons of fewer than three points, such as annotation 100",
        "2 pictures that labels.json does not name, such as stranger.webp",
        "1 hidden files, such as ._p1.jpg",
        "4 files whose names do not end in .jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff, such as"
        " more/p1.gif",
        "1 images that have no annotation, such as p5.jpg",
        "3 annotations without a pixel in their image, such as one in p2.jpg",
        # The spoon on the cup in p1; in p3, one spoon covers others.
        "1 annotations that other classes cover (--overlap keeps them), such as one in p1.jpg",
        "2 images of whose annotations no pixel can be drawn, such as p6.jpg",
    ]
    assert sorted(masks(here / "out")) == ["p1", "p2", "p3", "p4"]
    again = prepare(here, content, "overlap", "--overlap").err
    assert "other classes cover" not in again and "3 annotations without a pixel" in again


def test_objects_below_another_are_counted_in_an_image_of_hundreds(here: Path) -> None:
    content = labels()
    first = content["annotations"][0]
    content["annotations"] += [first] * 300 + [{**first, "category_id": 2}]
    result = prepare(here, content)
    assert "left out 301 annotations that other classes cover" in result.err
    assert np.bincount(masks(here / "out")["p1"].ravel()).tolist() == [500, 0, 100]


@pytest.mark.parametrize("shape", [[], None, [[1, 1, 2, 2]], [[99, 99, 110, 99, 110, 110]]])
def test_labels_without_a_pixel_are_refused_for_that_reason(shape: Any, here: Path) -> None:
    content = labels()
    each("annotations", lambda _: shape, "segmentation")(content)
    refused(prepare(here, content), "no annotation has a pixel", "export polygons or masks")
    assert not (here / "out").exists()


def test_crowds_of_coco_stay_left_out_and_are_counted(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    path = coco / "annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    result = run("coco", "--coco", coco, "--out", tmp_path)
    assert "published masks, without 1 images that have no annotation and 1 crowds" in result.out
    mask = tmp_path / "MSCOCO2014/masks/val2014/COCO_val2014_000000000071.png"
    assert not read_label(mask).any()


@pytest.mark.parametrize(
    "change",
    [{"width": None, "height": None}, {"width": 0, "height": 0}, {"file_name": "/upload/p4.jpg"},
     {"file_name": "../p4.jpg"}, {"file_name": "p9.jpg"}, {"file_name": None},
     {"file_name": "p1.jpg"}],
)  # fmt: skip
def test_image_without_an_annotation_may_be_described_wrongly(change: dict, here: Path) -> None:
    content = labels()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 4]
    content["images"][3] |= change
    result = prepare(here, content)
    assert result.status == 0 and "3 images of 3 classes" in result.out
    assert "left out 1 images that have no annotation" in result.err


@pytest.mark.parametrize("shape", [{}, None, [], ""])
def test_annotation_with_an_empty_shape_is_counted(shape: Any, here: Path) -> None:
    content = labels()
    content["annotations"][4]["segmentation"] = shape
    result = prepare(here, content)
    assert result.status == 0 and "left out 1 annotations without a segmentation" in result.err


@pytest.mark.parametrize("name", [7, 7.0, "7", 0])
def test_number_may_name_a_category(name: Any, here: Path) -> None:
    content = labels()
    content["categories"][1]["name"] = name
    assert prepare(here, content).status == 0
    assert read_classes(here / "out")[1] == str(int(name))


# --- the trials ----------------------------------------------------------------------------------


def test_trial_02_brush_masks_of_cvat_are_drawn(tmp_path: Path) -> None:
    folder = lay("02_cvat_brush_iscrowd", tmp_path / "t")
    polygons = lay("01_rerun_keeps_deleted_labels", tmp_path / "polygons")
    assert prepare_trial(polygons, "v1.json").status == 0
    for name in ("all", "mixed"):
        result = prepare_trial(folder, f"{name}.json", name)
        assert result.status == 0 and not result.err
        same(folder / name, polygons / "out")
    assert sum((mask > 0).sum() for mask in masks(folder / "mixed").values()) > 90_000


@pytest.mark.parametrize(
    "name",
    ["flat", "float_ids", "float_size", "ids_twice", "no_width", "polygon4", "string_ids"],
)
def test_trial_12_entries_of_other_tools_are_taken(name: str, tmp_path: Path) -> None:
    folder = lay("12_strict_json", tmp_path / "t")
    result = prepare_trial(folder, f"{name}.json")
    assert result.status == 0 and "16 images of 4 classes" in result.out
    left_out = "left out 1 polygons of fewer than three points" in result.err
    assert left_out == (name == "polygon4") == bool(result.err)


def test_trial_16_size_of_the_unturned_picture_is_found_at_once(tmp_path: Path) -> None:
    folder = lay("16_exif_label_studio", tmp_path / "t")
    refused(prepare_trial(folder, "labels.json"), "photo_0.jpg has 120x160", "its file 160x120")
    assert not snapshot(folder / "out")
