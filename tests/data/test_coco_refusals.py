"""Every mistake in COCO's files gives one line and exit status 2."""

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.downloads import cut, make_coco, no_leftovers, pack, refused, run


def put(path: str, value: object) -> Callable[[dict], None]:
    """Set an entry such as 'annotations.0.iscrowd'; the value `...` removes it."""

    def change(content: dict) -> None:
        *way, last = (int(key) if key.isdigit() else key for key in path.split("."))
        for key in way:
            content = content[key]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return change


def shape(value: object) -> Callable[[dict], None]:
    return put("annotations.1.segmentation", value)


def code(counts: object, size: object = (10, 12)) -> Callable[[dict], None]:
    return shape({"counts": counts, "size": size})


JSON_CASES: dict[str, tuple[Callable[[dict], None], list[str]]] = {
    "no categories": (put("categories", ...), ["'categories'"]),
    "categories as object": (put("categories", {}), ["'categories'"]),
    "annotation as number": (put("annotations.0", 5), ["'annotations'", "not an object"]),
    "79 categories": (put("categories.79", ...), ["79 categories", "80"]),
    "no category": (put("categories", []), ["0 categories"]),
    "nameless category": (put("categories.3.name", ...), ["category 4", "no name"]),
    "same category twice": (put("categories.3.id", 90), ["two categories of id 90"]),
    "same image twice": (put("images.1.id", 70), ["two images of id 70"]),
    "image id as list": (put("images.1.id", [70]), ["image id [70]", "a number or a text"]),
    "image id as text twice": (put("images.1.id", "70"), ["two images of id 70"]),
    "same picture twice": (
        put("images.1.file_name", "COCO_val2014_000000000070.jpg"),
        ["two images of file_name"],
    ),
    "one name in two folders": (
        put("images.1.file_name", "b/COCO_val2014_000000000070.jpg"),
        ["two images of the same name", "'COCO_val2014_000000000070'"],
    ),
    "unknown image": (put("annotations.1.image_id", 99), ["annotation 491", "image_id 99"]),
    "unknown category": (put("annotations.1.category_id", 99), ["491", "category_id 99"]),
    "category as list": (put("annotations.1.category_id", [2]), ["491", "category_id [2]"]),
    "crowd of 2": (put("annotations.1.iscrowd", 2), ["annotation 491", "iscrowd 2"]),
    "odd polygon": (shape([[1, 2, 3, 4, 5, 6, 7]]), ["annotation 491", "7 numbers"]),
    "list of points": (shape([[1, 2], [3, 4], [5, 6]]), ["annotation 491", "points, not polygons"]),
    "NaN": (shape([[1, 2, 3, 4, 5, math.nan]]), ["annotation 491", "coordinate"]),
    "infinite": (shape([[1, 2, 3, 4, 5, math.inf]]), ["annotation 491", "coordinate"]),
    "far out": (shape([[1, 2, 3, 4, 5, 1e300]]), ["annotation 491", "coordinate"]),
    "text as number": (shape([[1, 2, 3, 4, 5, "6"]]), ["annotation 491", "not a list of numbers"]),
    "flat polygon of an odd length": (
        shape([1, 2, 3, 4, 5, 6, 7]),
        ["annotation 491", "7 numbers"],
    ),
    "shape as text": (shape("1 2 3 4"), ["annotation 491", "neither polygons"]),
    "code too short": (code([0, 119]), ["annotation 491", "does not fill"]),
    "code too long": (code([0, 121]), ["annotation 491", "does not fill"]),
    "packed code too short": (code("0g3"), ["annotation 491", "does not fill"]),
    "packed code too long": (code("0i3"), ["annotation 491", "does not fill"]),
    "packed code with a negative": (code("0m3K"), ["annotation 491", "does not fill"]),
    "empty packed code": (code(""), ["annotation 491", "does not fill"]),
    "code with a negative": (code([0, 125, -5]), ["annotation 491", "does not fill"]),
    "code of another size": (code([0, 120], [12, 10]), ["annotation 491", "size"]),
    "code without counts": (code(None), ["annotation 491", "does not fill"]),
    "code with a strange letter": (code("a é"), ["annotation 491", "character"]),
    "code cut off": (code("i"), ["annotation 491", "cut off"]),
    "height below 0": (put("images.0.height", -10), ["image 70", "height -10"]),
    "no height": (put("images.0.height", ...), ["image 70", "height None"]),
    "height of 0": (put("images.0.height", 0), ["image 70", "height 0"]),
    "width as fraction": (put("images.0.width", 12.5), ["image 70", "width 12.5"]),
    "huge width": (put("images.0.width", 10**9), ["image 70", "width"]),
    "escaping name": (put("images.0.file_name", "../x.jpg"), ["'../x.jpg'", "points outside"]),
    "absolute name": (put("images.0.file_name", "/etc/x.jpg"), ["'/etc/x.jpg'", "points outside"]),
    "no name": (put("images.0.file_name", ...), ["image 70", "file_name"]),
}


@pytest.mark.parametrize("case", JSON_CASES)
def test_mistake_in_an_instances_file_is_one_line_that_names_the_entry(
    case: str, tmp_path: Path
) -> None:
    change, expected = JSON_CASES[case]
    coco = make_coco(tmp_path / "coco")
    path = coco / "annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    result = run("coco", "--coco", coco, "--out", tmp_path)
    refused(result, "instances_val2014.json", *expected)
    assert not (tmp_path / "MSCOCO2014").exists()


def rewrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def zipped(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """val2014 as a damaged zip."""

    def do(coco: Path) -> None:
        pack(coco / "val2014.zip", coco / "val2014", "val2014")
        (coco / "val2014").rename(coco.parent / "away")
        change(coco / "val2014.zip")

    return do


def zip_member(name: str, is_link: bool = False) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if is_link else 0o100644) << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, b"/etc/passwd")

    return zipped(do)


def damage(path: Path) -> None:
    """Change a byte in the middle of a picture, which the zip's checksum reveals."""
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xd8") + 200] ^= 1
    path.write_bytes(content)


def cut_in_zip(coco: Path) -> None:
    cut(coco / "val2014/COCO_val2014_000000000071.jpg")
    zipped(lambda path: None)(coco)


def lock(path: Path) -> None:
    """Set the flag of a password."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


VAL = "annotations/instances_val2014.json"
COCO_CASES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "cut JSON": (lambda c: cut(c / VAL), [VAL, "not a complete JSON"]),
    "binary JSON": (lambda c: rewrite(c / VAL, b"\xff\xfe\x81"), [VAL, "no UTF-8 text"]),
    "JSON of a list": (lambda c: rewrite(c / VAL, b"[]"), [VAL, "'images'"]),
    "deep JSON": (lambda c: rewrite(c / VAL, b"[" * 10**5), [VAL, "not a complete JSON"]),
    "no annotations": (lambda c: (c / VAL).unlink(), ["--coco", "annotations_trainval2014.zip"]),
    "no pictures": (
        lambda c: (c / "val2014").rename(c.parent / "away"),
        ["--coco", "val2014.zip", "no pictures"],
    ),
    "a page as zip": (zipped(lambda p: rewrite(p, b"404")), ["val2014.zip", "not a complete tar"]),
    "cut zip": (zipped(cut), ["val2014.zip", "not a complete tar"]),
    "damaged zip": (zipped(damage), ["val2014.zip", "cannot be read"]),
    "cut JPEG in a zip": (cut_in_zip, ["000000000071.jpg", "not a complete JPEG"]),
    "member above": (zip_member("val2014/../../x"), ["'val2014/../../x'", "points outside"]),
    "absolute member": (zip_member("/x"), ["'/x'", "points outside"]),
    "link member": (zip_member("val2014/x", is_link=True), ["'val2014/x'", "link"]),
    "zip of other things": (
        zipped(lambda p: pack(p, p.parent / "annotations", "val2014")),
        ["val2014.zip", "contains no .jpg"],
    ),
    "password": (zipped(lock), ["val2014.zip", "password"]),
}  # fmt: skip


@pytest.mark.parametrize("case", COCO_CASES)
def test_mistake_in_coco_is_one_line_with_status_2(case: str, tmp_path: Path) -> None:
    change, expected = COCO_CASES[case]
    coco = make_coco(tmp_path / "coco")
    change(coco)
    refused(run("coco", "--coco", coco, "--out", tmp_path, "--workers", "1"), *expected)
    no_leftovers(tmp_path)
